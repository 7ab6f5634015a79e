"""What documents quote from the code is what the code says, and their links lead somewhere.

After a change of what is quoted: `python -m tests.test_documents` writes docs/reference/ anew.
"""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from scripts.reference import MARK, PAGES
from scripts.scaling import CONSTANTS
from scripts.site import without_links_to_code
from training.command_line import parse
from training.config import RunConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


def as_quoted(value: float) -> set[str]:
    """The ways in which a document may quote a figure: with three digits or more, or whole."""
    if value == int(value):
        return {f"{int(value)}", f"{int(value):,}", f"{value}"}
    shown = {f"{value:.4f}", f"{value:.3f}", f"{value}"}
    shown |= {f"{value:.2f}"} if value >= 1 else set()
    shown |= {f"{value:.1f}"} if value >= 10 else set()
    return shown | {each.removeprefix("0") for each in shown}


def test_every_figure_stands_in_a_document_as_it_was_measured() -> None:
    figures = json.loads((ROOT / "docs" / "figures.json").read_text())
    text = "".join(
        path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    )
    numbers = set(re.findall(r"(?<![\w.,])[0-9]*[.,]?[0-9]+(?:,[0-9]{3})*(?![\w])", text))

    unquoted = [name for name, told in figures.items() if not as_quoted(told["value"]) & numbers]

    assert not unquoted


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_says_what_the_code_says(name: str) -> None:
    written = (ROOT / name).read_text()

    assert written.count(MARK) == 1
    assert written.partition(MARK)[2] == PAGES[name](), "run `python -m tests.test_documents`"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by the rule of most that show Markdown."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    plain = (re.sub(r"\]\([^)]*\)|[^\w\s-]", "", title.strip().lower()) for title in titles)
    return {re.sub(r"\s", "-", title) for title in plain}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if "://" in target:
            continue
        led_to = page.parent / target if target else page
        assert led_to.exists(), target
        if anchor and led_to.suffix == ".md":
            assert anchor in anchors(led_to), f"{target}#{anchor}"


def told(pattern: str) -> list[tuple[str, str]]:
    """What all documents say that fits a pattern, with the document."""
    texts = ((name, (ROOT / name).read_text()) for name in DOCUMENTS)
    return [(name, found) for name, text in texts for found in re.findall(pattern, text, re.M)]


def named(page: str) -> set[str]:
    """The names in the first column of a reference page's tables."""
    return set(re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "reference" / page).read_text(), re.M))


def test_variables_that_documents_name_are_read() -> None:
    known = named("settings.md") | {"LLMEMB_API_KEY"}  # of `python -m service reindex`

    assert [each for each in told(r"LLMEMB_[A-Z_]+") if each[1] not in known] == []


def test_settings_that_documents_name_are_read() -> None:
    known = named("settings.md") | CONSTANTS.keys()  # ids of figures look like settings
    sections = {name.partition(".")[0] for name in named("settings.md") if "." in name}
    # Not files, nor fields of the manifest.
    dotted = rf"`((?:{'|'.join(sections)})\.[a-z_.]+)(?<!\.json)(?<!\.npy)[ =`]"
    found = [each for each in told(dotted) if each[0] != "docs/reference/bundle.md"]

    assert found
    assert [each for each in found if each[1] not in known] == []


def test_metrics_that_documents_name_are_exposed() -> None:
    known = named("metrics.md")
    found = told(r"`(llmemb_[a-z_]+)")

    assert found
    assert [e for e in found if re.sub("_(bucket|count|sum)$", "", e[1]) not in known] == []


@pytest.mark.parametrize(
    ("name", "line"), told(r"^ *(?:\.venv/bin/)?python -m training ([a-z].*?)(?:  +#.*| &)?$")
)
def test_a_training_command_of_the_documents_can_be_parsed(name: str, line: str) -> None:
    assert parse(shlex.split(line)).command


RUNS = [each for each in told(r"^ *```toml\n((?:(?! *```).*\n)*)") if "[data]" in each[1]]


@pytest.mark.parametrize(("name", "text"), RUNS)
def test_a_run_of_the_documents_can_be_read(name: str, text: str) -> None:
    assert RunConfig.model_validate(tomllib.loads(text)).name


def test_on_the_site_a_link_to_code_is_its_path() -> None:
    page = "[`service/app.py`](../service/app.py), [the tests](../../tests), [a page](../scft.md)"

    told = without_links_to_code(page, ROOT / "docs" / "how-to")

    assert (
        told == "[`service/app.py`](../service/app.py), the tests (`tests`), [a page](../scft.md)"
    )
    assert without_links_to_code(page, ROOT / "docs").startswith("`service/app.py`, ")


if __name__ == "__main__":
    for name, generate in PAGES.items():
        head = (ROOT / name).read_text().partition(MARK)[0]
        (ROOT / name).write_text(head + MARK + generate())
