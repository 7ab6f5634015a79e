"""What tuning the LLM gives: the text view by itself and the whole recipe, tuned and untuned.

Runs two comparisons on the test split, or reuses what is finished, and writes the figures that
documents quote. `--whole` leaves the first out; `--paper` runs the published method beside ours,
and without each of its parts, instead.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.figures import record
from training.compare import compare

COMPARISONS = Path("training/configs/compare")
TEXT, WHOLE = COMPARISONS / "scft-text.toml", COMPARISONS / "scft.toml"
PAPER, PARTS = COMPARISONS / "llmemb-paper.toml", COMPARISONS / "llmemb-parts.toml"
# What is told of the published method: protocol, group of users, metric.
PAPER_METRICS = {
    "hr10_100": ("sampled", "overall", "hr10"),
    "ndcg10_100": ("sampled", "overall", "ndcg10"),
    "hr10": ("full", "overall", "hr10"),
    "ndcg10": ("full", "overall", "ndcg10"),
    "tail_ndcg10": ("full", "tail", "ndcg10"),
}
Values = dict[str, tuple[float, str]]


def main() -> None:
    """Run them and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", help="folder of the data (data.path)")
    parser.add_argument("--name", default="beauty", help="prefix of the figures' ids")
    parser.add_argument("--whole", action="store_true", help="the whole recipe alone")
    parser.add_argument("--paper", action="store_true", help="the published method, beside ours")
    given = parser.parse_args()
    command = "python -m benchmarks.tuning" + " --whole" * given.whole + " --paper" * given.paper
    command += f" --name {given.name}" + " --source DIR" * bool(given.source)
    if given.paper:
        paper, parts = (_final(each, given.source) for each in (PAPER, PARTS))
        record(paper_figures(paper, parts, given.name), command)
        return
    if not given.whole:
        text = _final(TEXT, given.source)
        values = gains(text, given.name, "")
        for label, variant in (("tfidf", "tf-idf"), ("minilm", "sentence-encoder")):
            values[f"{given.name}.scft_over_{label}"] = _ratio(text, "tuned", variant, "overall")
        record(values, command)
    whole = _final(WHOLE, given.source)
    record(gains(whole, given.name, "_full") | cold_gain(whole, given.name), command)


def _final(comparison: Path, source: str | None) -> dict[str, Any]:
    tables = compare(comparison, [], source, final=True)
    print(tables.read_text(), flush=True)
    found: dict[str, Any] = json.loads(tables.with_suffix(".json").read_text())
    return found


def gains(results: dict[str, Any], name: str, ending: str) -> Values:
    """NDCG@10 of tuned and untuned in every group, and what the tuned LLM gains."""
    seeds = _seeds(results)
    values: Values = {}
    for group in results["targets"]:
        label = f"{name}.scft_gain{ending}" + ("" if group == "overall" else f".{group}")
        values[label] = _ratio(results, "tuned", "untuned", group)
        for variant in ("tuned", "untuned"):
            found = _cells(results, variant)[group]["ndcg10"]["mean"]
            values[f"{name}.scft{ending}.{variant}.{group}_ndcg10"] = (found, seeds)
    return values


def cold_gain(results: dict[str, Any], name: str) -> Values:
    """HR@10 of cold items, tuned and untuned, and the ratio."""
    seeds = _seeds(results)
    values: Values = {}
    for variant, found in results["cold"].items():
        targets = f"{seeds}, {found['targets']['mean']:.0f} targets"
        values[f"{name}.scft_full.{variant}.cold_hr10"] = (found["hr10"]["mean"], targets)
        kept = (found["warm_kept"]["mean"], f"{seeds}, HR@10 of the others beside them / without")
        values[f"{name}.scft_full.{variant}.warm_kept"] = kept
    tuned, untuned = (results["cold"][each]["hr10"]["mean"] for each in ("tuned", "untuned"))
    values[f"{name}.scft_gain_cold"] = (round(tuned / untuned, 4), "ratio of cold HR@10")
    return values


def paper_figures(paper: dict[str, Any], parts: dict[str, Any], name: str) -> Values:
    """What the published method reaches, and ours over it; what it does without each part."""
    reference = paper["reference"]
    told = {
        "": (paper, reference, "ours"),
        "id_only.": (paper, reference, "id-only"),
        "ours.": (paper, "ours", "ours"),
    }
    told |= {f"{row['variant']}.": (parts, row["variant"], "ours") for row in parts["rows"]}
    values: Values = {}
    for ending, (protocol, group, metric) in PAPER_METRICS.items():
        for label, (results, variant, model) in told.items():
            cell = _cells(results, variant, protocol, model)[group][metric]
            values[f"{name}.paper.{label}{ending}"] = (cell["mean"], _seeds(results))
        over = _ratio(paper, "ours", reference, group, metric, protocol)
        values[f"{name}.ours_over_paper.{ending}"] = over
    return values


def _seeds(results: dict[str, Any]) -> str:
    count = len(results["seeds"])
    return f"mean of {count} seeds" if count > 1 else "1 seed"


def _cells(
    results: dict[str, Any], variant: str, protocol: str = "full", model: str = "ours"
) -> dict[str, Any]:
    rows = {(row["variant"], row["model"]): row["protocols"] for row in results["rows"]}
    cells: dict[str, Any] = rows[variant, model][protocol]
    return cells


def _ratio(
    results: dict[str, Any],
    over: str,
    under: str,
    group: str,
    metric: str = "ndcg10",
    protocol: str = "full",
) -> tuple[float, str]:
    """A ratio, with the p of the difference; one of the two variants is the reference."""
    above, below = (_cells(results, each, protocol)[group][metric] for each in (over, under))
    told = next(cell["p"] for cell in (above, below) if "p" in cell)
    label = {"ndcg10": "NDCG@10", "hr10": "HR@10"}[metric]
    return round(above["mean"] / below["mean"], 4), f"ratio of {label}, p {told:.2g}"


if __name__ == "__main__":
    main()
