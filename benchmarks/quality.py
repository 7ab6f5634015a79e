"""Recommendation quality on the test split: a comparison's final figures.

Runs `compare --final`, or reuses what is finished, and writes the figures that documents quote.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.figures import record
from training.compare import compare, compare_cold, read_comparison

DEFAULT = Path("training/configs/compare/ml-100k.toml")


def main() -> None:
    """Run it and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--comparison", type=Path, default=DEFAULT)
    parser.add_argument("--source", help="folder of the data (data.path)")
    parser.add_argument("--only", action="append", default=[], help="a variant; may be repeated")
    parser.add_argument("--name", default="ml100k", help="prefix of the figures' ids")
    parser.add_argument(
        "--cold-alone", action="store_true", help="ask cold items, and nothing else"
    )
    given = parser.parse_args()
    command = f"python -m benchmarks.quality --comparison {given.comparison}"
    command += "".join(f" --only {name}" for name in given.only) + f" --name {given.name}"
    command += " --cold-alone" if given.cold_alone else ""
    command += " --source DIR" if given.source else ""
    if given.cold_alone:
        comparison = read_comparison(given.comparison)
        cold = compare_cold(given.comparison, [], given.source)
        print(json.dumps(cold, indent=1), flush=True)
        unit = f"mean of {len(comparison.seeds)} seeds"
        record(cold_figures(cold, comparison.reference, given.name, unit), command)
        return

    tables = compare(given.comparison, [], given.source, final=True, only=given.only)
    print(tables.read_text(), flush=True)
    results = json.loads(tables.with_suffix(".json").read_text())
    values = figures_of(results, given.name)

    record(values, command)


def figures_of(results: dict[str, Any], name: str) -> dict[str, tuple[float, str]]:
    """Final results of a comparison as figures: id -> (value, unit)."""
    rows = {(row["variant"], row["model"]): row["protocols"] for row in results["rows"]}
    reference = results["reference"]
    unit = f"mean of {len(results['seeds'])} seeds"
    values: dict[str, tuple[float, str]] = {}
    for label, model in (("best", "ours"), ("id_only", "id-only")):
        found = rows[reference, model]
        for metric in ("hr10", "ndcg10"):
            values[f"{name}.{label}.{metric}"] = (found["full"]["overall"][metric]["mean"], unit)
            for group in found["full"].keys() - {"overall"}:
                mean = found["full"][group][metric]["mean"]
                values[f"{name}.{label}.{group}_{metric}"] = (mean, unit)
            for protocol, ending in (("sampled", "_100"), ("unfiltered", "_unfiltered")):
                mean = found[protocol]["overall"][metric]["mean"]
                values[f"{name}.{label}.{metric}{ending}"] = (mean, unit)

    def ratio(over: tuple[str, str], under: tuple[str, str], group: str) -> float:
        above, below = (
            float(rows[each]["full"][group]["ndcg10"]["mean"]) for each in (over, under)
        )
        return round(above / below, 4)

    for variant, model in rows:
        if model == "id-only":  # a row of its own only where it is another model
            cell = rows[variant, "id-only"]["full"]["overall"]["ndcg10"]
            label = "sasrec" if variant == reference else variant
            gain = ratio((variant, "ours"), (variant, "id-only"), "overall")
            values[f"{name}.gain.{label}"] = (gain, f"ratio of NDCG@10, p {cell['p']:.2g}")
        elif variant != reference:
            cell = rows[variant, "ours"]["full"]["overall"]["ndcg10"]
            label = {"tf-idf": "llm_over_tfidf"}.get(variant, f"over.{variant}")
            gain = ratio((reference, "ours"), (variant, "ours"), "overall")
            values[f"{name}.{label}"] = (gain, f"ratio of NDCG@10, p {cell['p']:.2g}")
    if "tail" in rows[reference, "ours"]["full"]:
        tail = ratio((reference, "ours"), (reference, "id-only"), "tail")
        values[f"{name}.tail_gain"] = (tail, "ratio of tail NDCG@10 to id-only's")
    return values | cold_figures(results["cold"], reference, name, unit)


def cold_figures(
    cold: dict[str, dict[str, Any]], reference: str, name: str, unit: str
) -> dict[str, tuple[float, str]]:
    """What cold items reach, by variant, as figures: id -> (value, unit)."""
    values: dict[str, tuple[float, str]] = {}
    for variant, found in cold.items():
        label = f"{name}.cold" if variant == reference else f"{name}.cold.{variant}"
        targets = f"{unit}, {found['targets']['mean']:.0f} targets"
        for metric in ("hr10", "ndcg10"):
            values[f"{label}.{metric}"] = (found[metric]["mean"], targets)
        told = f"{unit}, HR@10 of the others beside cold items / without"
        values[f"{label}.warm_kept"] = (found["warm_kept"]["mean"], told)
    return values


if __name__ == "__main__":
    main()
