"""Figures of an evaluation as a table that a person can read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TITLES = {
    "full": "Full-catalogue ranking, history excluded",
    "unfiltered": "Full-catalogue ranking, items of the history among the candidates",
    "sampled": "One positive among stored uniform negatives",
}
MODELS = {
    "id-only": "id-only",
    "ours": "ours",
    "difference": "ours - id-only",
}


def as_markdown(figures: dict[str, Any]) -> str:
    """A table per protocol: models by groups, HR@k and NDCG@k with 95 % intervals."""
    k = figures["k"]
    blocks = []
    for protocol, title in TITLES.items():
        lines = [f"### {title}", ""]
        lines.append(f"| group | targets | model | HR@{k} (95 %) | NDCG@{k} (95 %) |")
        lines.append("|---|--:|---|---|---|")
        for group, targets, model, hr, nd in _rows(figures, protocol):
            lines.append(f"| {group} | {targets} | {MODELS[model]} | {hr} | {nd} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def popularity_as_markdown(buckets: Sequence[dict[str, Any]], k: int) -> str:
    """A table by how often the target was in training: both models, full catalogue."""
    lines = [f"| interactions in training | targets | model | HR@{k} (95 %) | NDCG@{k} (95 %) |"]
    lines.append("|---|--:|---|---|---|")
    for bucket in buckets:
        for model in ("id-only", "ours"):
            hr, nd = (interval(bucket[model][metric]) for metric in ("hr", "ndcg"))
            lines.append(f"| {counts(bucket)} | {bucket['targets']} | {model} | {hr} | {nd} |")
    return "\n".join(lines) + "\n"


def cold_as_markdown(figures: dict[str, Any]) -> str:
    """A table of what cold and warm items reach."""
    k = figures["k"]
    lines = [f"Protocol: {figures['protocol']}.", ""]
    lines += [f"| targets | number | HR@{k} (95 %) | NDCG@{k} (95 %) |", "|---|--:|---|---|"]
    for name, targets in figures["targets"].items():
        cells = [interval(figures[name][metric], "") for metric in ("hr", "ndcg")]
        lines.append(f"| {name} | {targets} | {' | '.join(cells)} |")
    kept = f"Warm HR@{k} with cold candidates / without: {figures['warm_kept']:.4f}."
    return "\n".join([*lines, "", kept]) + "\n"


def as_text(figures: dict[str, Any], protocol: str = "full") -> str:
    """The same table of one protocol, aligned for a terminal."""
    k = figures["k"]
    header = (
        f"{'':9}{'targets':>8}  {'model':15}{f'HR@{k} (95 % interval)':27}NDCG@{k} (95 % interval)"
    )
    lines = [TITLES[protocol], header]
    for group, targets, model, hr, nd in _rows(figures, protocol):
        first = f"{group:9}{targets:>8}" if model == "id-only" else " " * 17
        lines.append(f"{first}  {MODELS[model]:15}{hr:27}{nd}")
    return "\n".join(lines)


def _rows(figures: dict[str, Any], protocol: str) -> Iterator[tuple[str, int, str, str, str]]:
    """Group, its targets, model, HR and NDCG with intervals; groups without targets left out."""
    for group, targets in figures["targets"].items():
        for model in MODELS:
            cell = figures[protocol][model].get(group)
            if cell is not None:
                sign = "+" if model == "difference" else ""
                hr, nd = (interval(cell[metric], sign) for metric in ("hr", "ndcg"))
                yield group, targets, model, hr, nd


def counts(bucket: Mapping[str, Any]) -> str:
    """The interactions in training that items of a bucket have."""
    low, high = bucket["low"], bucket["high"]
    return (
        f"{low:,} or more" if high is None else f"{low:,} to {high:,}" if high > low else f"{low}"
    )


def interval(value: Mapping[str, float], sign: str = "") -> str:
    """A measured figure with its interval."""
    mean, low, high = (f"{value[name]:{sign}.4f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
