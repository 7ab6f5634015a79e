"""Charts as SVG: text stays text, colours follow the page, each says in words what it shows.

Drawn here and not by a plotting library, whose SVG knows neither dark pages nor words for those
who cannot see it. Colours are classes (`s0` … `s7`, `other`); STYLE defines them for light pages,
dark ones and paper.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH = 460  # of a chart, in units of about a pixel on a phone
LINE = 15  # height of a line of text
COLOURS = 8
LEFT, MOST_LEFT = 108.0, WIDTH / 2  # room for the names of bars, at least and at most
LETTER, SMALL_LETTER = 7.6, 6.7  # of text, about, and of small text
# Okabe and Ito's palette, told apart by most who see colours differently; darker or lighter where
# the page asks for it.
STYLE = """
:root { --s0: #0072b2; --s1: #d55e00; --s2: #007a5a; --s3: #aa5a94; --s4: #8a6d00; --s5: #9b1c1c;
  --s6: #6b4c9a; --s7: #5a5a5a; --other: #a5a9ad; }
.dark { --s0: #56b4e9; --s1: #e69f00; --s2: #2bbd94; --s3: #df94c3; --s4: #f0e442; --s5: #ff8f87;
  --s6: #b79ae6; --s7: #c8c8c8; --other: #6c7177; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg .small { font-size: 11.5px; fill: var(--soft); }
svg .axis { stroke: var(--soft); stroke-width: 1; fill: none; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .whisker { stroke: var(--ink); stroke-width: 1.4; fill: none; }
svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .points { fill: none; stroke-linecap: round; stroke-width: 4; stroke-opacity: .75; }
svg .mark circle { fill: var(--page); stroke: var(--ink); stroke-width: 1.3; }
svg .mark text { font-size: 11px; font-weight: 600; }
""" + "\n".join(f"svg .s{n} {{ stroke: var(--s{n}); fill: var(--s{n}); }}" for n in range(COLOURS))
STYLE += "\nsvg .other { stroke: var(--other); fill: var(--other); }"
STYLE += "\nsvg .curve, svg .points { fill: none; }\n"

Points = Sequence[tuple[float, float]]


class Bar(NamedTuple):
    """A value, and the interval it lies in where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


def _svg(title: str, alt: str, height: float, body: Sequence[str]) -> str:
    mark = f"{zlib.crc32(f'{title}{alt}'.encode()):08x}"  # one of its own on a page
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
            f'aria-labelledby="t{mark} d{mark}">',
            f'<title id="t{mark}">{escape(title)}</title>',
            f'<desc id="d{mark}">{escape(alt)}</desc>',
            *body,
            "</svg>",
        ]
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, evenly apart."""
    span = high - low or abs(high) or 1.0
    rough = span / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def shown(value: float) -> str:
    """A number as short as a chart needs it."""
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _legend(names: Sequence[str], top: float, swatch: str = "rect") -> tuple[list[str], float]:
    """Coloured names, on as many lines as they need; and where they end."""
    parts, x, y = [], 4.0, top
    for number, name in enumerate(names):
        wide = 32 + LETTER * len(name)
        if x + wide > WIDTH and x > 4:
            x, y = 4.0, y + LINE + 4
        colour = "other" if name == "other" else f"s{number % COLOURS}"
        if swatch == "rect":
            parts.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" class="{colour}"/>')
        else:
            parts.append(f'<path d="M{x} {y - 4}h14" class="curve {colour}" {_dashes(number)}/>')
        parts.append(_text(x + 18, y, name))
        x += wide
    return parts, y + LINE


def _dashes(number: int) -> str:
    """Lines differ in more than colour."""
    return f'stroke-dasharray="{("none", "7 3", "2 3", "9 3 2 3")[number % 4]}"'


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Points],
    alt: str,
    best: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Curves over a common axis.

    Points that are not finite are left out.

    Args:
        best: a point of a curve that is marked with a ring; its value stands beside the name.
    """
    series = {name: [each for each in points if _finite(each)] for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return _svg(title, alt, 2 * LINE, [_text(4, LINE, "No value is a finite number.")])
    best = {name: point for name, point in (best or {}).items() if _finite(point)}
    named = [f"{n} (best {best[n][1]:.4f})" if best and n in best else n for n in series]
    parts, top = _legend(named, LINE, "line") if len(series) > 1 else ([], 4.0)
    left, bottom, height = 56.0, 44.0, top + 280
    across = [x for points in series.values() for x, _ in points]
    up = [y for points in series.values() for _, y in points]
    xs = [tick for tick in ticks(min(across), max(across)) if float(tick).is_integer()]
    ys = ticks(min(up), max(up))
    low_x, high_x = min(across), max(*across, min(across) + 1)
    floor = height - bottom

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (WIDTH - left - 16) * (x - low_x) / (high_x - low_x),
            floor - (floor - top - 30) * (y - ys[0]) / (ys[-1] - ys[0]),
        )

    parts.append(_text(4, top + 10, y_label, kind="small"))
    for y in ys:
        place = at(low_x, y)[1]
        parts.append(f'<path d="M{left} {place:.1f}H{WIDTH - 16}" class="grid"/>')
        parts.append(_text(left - 6, place + 4, shown(y), "end", "small"))
    for x in xs:
        if low_x <= x <= high_x:
            parts.append(_text(at(x, ys[0])[0], floor + 17, shown(x), "middle", "small"))
    parts.append(f'<path d="M{left} {floor}H{WIDTH - 16}" class="axis"/>')
    parts.append(_text((left + WIDTH - 16) / 2, height - 8, x_label, "middle", "small"))
    for number, (name, points) in enumerate(series.items()):
        told = "L".join("{:.1f} {:.1f}".format(*at(x, y)) for x, y in points)
        colour = f"s{number % COLOURS}"
        dashes = _dashes(number) if len(series) > 1 else ""
        parts.append(f'<path d="M{told}" class="curve {colour}" {dashes}/>')
        if len(points) == 1:
            px, py = at(*points[0])
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" class="{colour}"/>')
        if best and name in best:
            px, py = at(*best[name])
            parts.append(f'<g class="mark"><circle cx="{px:.1f}" cy="{py:.1f}" r="4.5"/></g>')
    return _svg(title, alt, height, parts)


def _finite(point: tuple[float, float]) -> bool:
    return all(math.isfinite(each) for each in point)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def bars(
    title: str,
    value_label: str,
    groups: Sequence[tuple[str, str]],
    series: Mapping[str, Sequence[Bar | None]],
    alt: str,
    form: str = ".4f",
) -> str:
    """Bars from left to right, one of each series in every group; whiskers are intervals.

    Args:
        groups: name of each, and a word below it; what is wider than half the chart is cut.
        series: a bar of each group; None where there is none.
        form: of the value that stands at a bar's end.
    """
    parts, top = _legend(list(series), LINE) if len(series) > 1 else ([], 4.0)
    right, thick, gap = 58.0, 15.0, 13.0
    longest = max(
        (max(LETTER * len(n), SMALL_LETTER * len(below)) for n, below in groups), default=0.0
    )
    left = min(max(LEFT, longest + 12), MOST_LEFT)
    tall = max(thick * len(series), 2 * LINE) + gap
    most = max(bar.high or bar.value for each in series.values() for bar in each if bar) or 1.0
    marks = ticks(0, most, 4)
    floor = top + 8 + tall * len(groups)

    def at(value: float) -> float:
        return left + (WIDTH - left - right) * value / marks[-1]

    for mark in marks:
        parts.append(f'<path d="M{at(mark):.1f} {top}V{floor:.1f}" class="grid"/>')
        parts.append(_text(at(mark), floor + 15, shown(mark), "middle", "small"))
    parts.append(_text((left + WIDTH - right) / 2, floor + 33, value_label, "middle", "small"))
    for place, (name, below) in enumerate(groups):
        y = top + 8 + tall * place
        middle = y + (tall - gap) / 2
        shortened = _short(name, int((MOST_LEFT - 12) / LETTER))
        parts.append(_text(left - 8, middle + (0 if below else 4), shortened, "end"))
        if below:
            shortened = _short(below, int((MOST_LEFT - 12) / SMALL_LETTER))
            parts.append(_text(left - 8, middle + 13, shortened, "end", "small"))
        y = middle - thick * len(series) / 2
        for number, each in enumerate(series.values()):
            bar = each[place]
            if bar is None:
                continue
            line = y + thick * number
            parts.append(
                f'<rect x="{left}" y="{line + 1:.1f}" width="{max(at(bar.value) - left, 0.5):.1f}" '
                f'height="{thick - 2}" class="s{number}"/>'
            )
            end = at(bar.value)
            if bar.low is not None and bar.high is not None and bar.high > bar.low:
                low, end, half = at(bar.low), at(bar.high), line + thick / 2
                parts.append(
                    f'<path d="M{low:.1f} {half:.1f}H{end:.1f}M{low:.1f} {half - 3:.1f}v6'
                    f'M{end:.1f} {half - 3:.1f}v6" class="whisker"/>'
                )
            parts.append(_text(end + 5, line + thick - 3.5, f"{bar.value:{form}}", kind="small"))
    parts.append(f'<path d="M{left} {top}V{floor:.1f}" class="axis"/>')
    return _svg(title, alt, floor + 40, parts)


def scatter(
    title: str,
    groups: Mapping[str, Points],
    alt: str,
    numbered: Points = (),
    legend: bool = True,
) -> str:
    """Points in a square without axes, which have no meaning here; coloured by group.

    Args:
        groups: the name `other` is grey, and drawn below the rest.
        numbered: points that carry their numbers, from 1.
    """
    parts, top = _legend(list(groups), LINE) if legend else ([], 0.0)
    every = [point for points in groups.values() for point in points]
    size = max(1e-9, *(max(values) - min(values) for values in zip(*every, strict=True)))
    middle = [(max(values) + min(values)) / 2 for values in zip(*every, strict=True)]
    side = WIDTH - 24

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return (
            WIDTH / 2 + side * (point[0] - middle[0]) / size,
            top + 12 + side / 2 - side * (point[1] - middle[1]) / size,
        )

    parts.append(
        f'<rect x="1" y="{top + 1}" width="{WIDTH - 2}" height="{side + 22}" class="axis" rx="4"/>'
    )
    drawn = sorted(enumerate(groups.items()), key=lambda each: each[1][0] != "other")
    for number, (name, points) in drawn:
        colour = "other" if name == "other" else f"s{number % COLOURS}"
        told = "".join("M{:.1f} {:.1f}h0".format(*at(point)) for point in points)
        parts.append(f'<path d="{told}" class="points {colour}"/>')
    for number, point in enumerate(numbered, 1):
        x, y = at(point)
        parts.append(
            f'<g class="mark"><circle cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
            f"{_text(x, y + 4, str(number), 'middle')}</g>"
        )
    return _svg(title, alt, top + side + 26, parts)
