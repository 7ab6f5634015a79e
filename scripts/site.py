"""What MkDocs asks of this project while it builds the site; mkdocs.yml names this file.

- Documents link to code by relative paths, which lead somewhere in the repository. The site has no
  code, so there such a link is its text and the path.
- The decisions in docs/adr/ are listed by number, so that a new one need not be named anywhere.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
UPWARDS = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")
DECISIONS = "Decisions"


def on_config(config: Any) -> Any:
    """List the decisions in the place that the navigation has for them."""
    for section in config.nav:
        for part in next(iter(section.values())):
            if isinstance(part, dict) and DECISIONS in part:
                found = sorted(DOCS.glob("adr/*.md"))
                part[DECISIONS] = [str(path.relative_to(DOCS)) for path in found]
    return config


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """The text of a page, where links that lead out of docs/ are told as paths."""
    return without_links_to_code(markdown, Path(page.file.abs_src_path).parent)


def without_links_to_code(markdown: str, folder: Path) -> str:
    """Links to files beside docs/ as text; one that leads nowhere is left for MkDocs to refuse.

    Args:
        folder: of the page.
    """

    def told(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(DOCS) or not target.exists():
            return link[0]
        path = str(target.relative_to(ROOT))
        return f"`{path}`" if path.endswith(link[1].strip("`")) else f"{link[1]} (`{path}`)"

    return UPWARDS.sub(told, markdown)
