"""Recipe `evaluate`: how good the recommendations are, on the test split, against id-only.

Leave-one-out. The headline ranks the full catalogue without the history; beside it stands the
LLMEmb papers' protocol, one positive among n stored uniform negatives. Groups: overall; head and
tail by training counts; cold, items without a training interaction.

Writes negatives.safetensors, metrics.json and report.md.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from training.interactions import Split
from training.metrics import hit_rate, interval, ndcg
from training.prepare import read_prepared
from training.ranking import sample_negatives, scorer_of, target_ranks
from training.rat import read_views
from training.recipe import Evaluate, JobError, Run, Step, write_atomically
from training.report import as_markdown

Protocols = dict[str, dict[str, NDArray[np.float64]]]


def evaluate(run: Run) -> Step:
    """Measure both models on the test split, once per configuration."""
    config = run.config
    step = run.step("evaluate")
    if step.done:
        return step
    ranks, split, negatives = measure(run)
    save_file({"negatives": negatives}, step.folder / "negatives.safetensors")
    figures = summarise(ranks, split, config.evaluate)
    figures["weights"] = run.finished("rat").facts["weights"]
    figures["scft_steps"] = run.finished("scft").facts["steps"]
    figures["seed"] = config.rat.seed
    write_atomically(step.folder / "metrics.json", json.dumps(figures, indent=1) + "\n")
    write_atomically(step.folder / "report.md", as_markdown(figures))
    step.finish(**figures)
    return step


def measure(run: Run) -> tuple[Protocols, Split, NDArray[np.int32]]:
    """Rank of each user's test item (U,) by protocol and model, the split, and the negatives.

    Raises:
        JobError: the catalogue is too small for so many negatives.
    """
    _, split = read_prepared(run)
    views, _, weights, factor = read_views(run)
    shown = [view for view in views if view.name in weights]
    scorer = scorer_of(shown, weights, factor)
    id_only = [view for view in views if view.name == "id"]
    try:
        negatives = sample_negatives(split, run.config.evaluate.negatives, run.config.seed)
    except ValueError as error:
        raise JobError(str(error)) from None
    before = split.test_histories
    found: Protocols = {}
    for protocol, drawn in (("full", None), ("sampled", negatives)):
        found[protocol] = {
            "id-only": target_ranks(id_only, None, before, split.test, drawn),
            "ours": target_ranks(shown, scorer, before, split.test, drawn),
        }
    return found, split, negatives


def summarise(protocols: Protocols, split: Split, spec: Evaluate) -> dict[str, Any]:
    """HR@k and NDCG@k with 95 % intervals, by protocol, model and group, and ours minus id-only."""
    head = split.head()[split.test]
    cold = split.counts[split.test] == 0
    groups = {"overall": np.ones(len(head), bool), "head": head, "tail": ~head, "cold": cold}
    figures: dict[str, Any] = {
        "k": spec.k,
        "protocol": "leave-one-out; full: whole catalogue without the history; "
        f"sampled: 1 positive and {spec.negatives} stored uniform negatives",
        "targets": {name: int(members.sum()) for name, members in groups.items()},
    }
    for protocol, models in protocols.items():
        figures[protocol] = {}
        values = {
            model: {"hr": hit_rate(rank, spec.k), "ndcg": ndcg(rank, spec.k)}
            for model, rank in models.items()
        }
        values["difference"] = {
            metric: values["ours"][metric] - values["id-only"][metric] for metric in ("hr", "ndcg")
        }
        for model, metrics in values.items():
            figures[protocol][model] = {
                group: {
                    metric: _with_interval(value[members], spec.bootstrap)
                    for metric, value in metrics.items()
                }
                for group, members in groups.items()
                if members.any()
            }
    return figures


def _with_interval(values: NDArray[np.float64], draws: int) -> dict[str, float]:
    low, high = interval(values, draws)
    return {"mean": float(values.mean()), "low": low, "high": high}
