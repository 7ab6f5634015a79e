"""What documents quote from the code is what the code says. `python -m tests.test_documents`
writes it anew."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from service.settings import reference
from training.config import RunConfig

ROOT = Path(__file__).parents[1]


def service_settings() -> str:
    return f"```\n{reference()}\n```\n"


def training_settings() -> str:
    lines = ["| setting | default | |", "|---|---|---|"]

    def add(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                add(kind, f"{prefix}{name}.")
                continue
            default = field.get_default(call_default_factory=True)
            shown = "required" if field.is_required() else f"`{default!r}`"
            lines.append(f"| `{prefix}{name}` | {shown} | {field.description or ''} |")

    add(RunConfig, "")
    return "\n".join(lines) + "\n"


def as_quoted(value: float) -> set[str]:
    """The ways in which a document may quote a figure: with three digits or more, or whole."""
    if value == int(value):
        return {f"{int(value)}", f"{int(value):,}", f"{value}"}
    shown = {f"{value:.4f}", f"{value:.3f}"}
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


GENERATED = {
    "docs/operations.md": ("## Settings\n\n", service_settings),
    "docs/training.md": ("## All settings\n\n", training_settings),
}


@pytest.mark.parametrize("name", GENERATED)
def test_every_setting_is_documented_as_it_is(name: str) -> None:
    heading, generate = GENERATED[name]

    assert (ROOT / name).read_text().partition(heading)[2] == generate()


@pytest.mark.parametrize("name", ["README.md", *(str(p) for p in Path("docs").rglob("*.md"))])
def test_links_between_documents_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


if __name__ == "__main__":
    for name, (heading, generate) in GENERATED.items():
        text = (ROOT / name).read_text().partition(heading)[0] + heading + generate()
        (ROOT / name).write_text(text)
