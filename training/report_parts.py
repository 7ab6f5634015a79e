"""What sections of the report are put together from, as HTML."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from training.charts import Bar

Facts = Mapping[str, Any]


def missing(facts: Facts, what: str) -> str:
    """What is not there, why, and what to type."""
    if not facts["command"]:
        return f'<p class="missing">{escape(what)}: {escape(facts["missing"])}.</p>\n'
    why = facts["missing"].partition("; ")[0]  # what follows says what to run, without the file
    return (
        f'<p class="missing">{escape(what)} are not here yet: {escape(why)}.<br>'
        f"To get them: <code>{escape(facts['command'])}</code></p>\n"
    )


def figure(title: str, svg: str, told: str = "") -> str:
    """A chart with its title, and words below it."""
    caption = f"<figcaption>{told}</figcaption>" if told else ""
    return f"<figure><h3>{escape(title)}</h3>{svg}{caption}</figure>\n"


def side_by_side(figures: Iterable[str]) -> str:
    """Figures in as many columns as there is room for."""
    return f'<div class="charts">\n{"".join(figures)}</div>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table; cells are text; from column `numbers` on, if that is not 0, right-aligned."""

    def cells(row: Sequence[str], tag: str) -> str:
        right = ' class="number"'
        return "".join(
            f"<{tag}{right if numbers and place >= numbers else ''}>{escape(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{cells(head, "th")}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def details(summary: str, inside: str) -> str:
    """What is shown once it is asked for; `inside` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>\n{inside}</details>\n"


def bar(cell: Facts | None) -> Bar | None:
    """A measured cell as a bar with its interval."""
    return Bar(cell["mean"], cell["low"], cell["high"]) if cell else None


def users(count: int) -> str:
    """A number of users, in words."""
    return f"{count:,} user" + "s" * (count != 1)
