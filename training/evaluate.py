"""Recipe `evaluate`: how good the recommendations are, on the test split, against id-only.

Leave-one-out. The headline ranks the full catalogue without the history; beside it stands the
LLMEmb papers' protocol, one positive among n stored uniform negatives. Groups: overall; head and
tail by training counts; cold, items without a training interaction.

Writes negatives.safetensors, ranks.safetensors (rank of each user's target by protocol/model),
metrics.json and report.md.
"""

import json
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from training import JobError
from training.config import Evaluate
from training.interactions import Split
from training.metrics import hit_rate, interval, ndcg
from training.prepare import read_cold, read_prepared
from training.ranking import sample_negatives
from training.rat import read_trained
from training.recipe import Run, Step, write_atomically
from training.report import as_markdown, cold_as_markdown

log = logging.getLogger(__name__)

# Of the target's interactions in training: least and most of each bucket.
COUNTS = ((0, 0), (1, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, 199), (200, None))
SPLIT_BY = {
    "leave-one-out": "leave-one-out",
    "time": "split by time: the latest tenth of all interactions tests, by the first item of each "
    "user who is known before",
}
Protocols = dict[str, dict[str, NDArray[np.float64]]]


def evaluate(run: Run) -> Step:
    """Measure both models on the test split, once per configuration.

    Where items are held out as cold, measure what becomes of them instead.
    """
    config = run.config
    step = run.step("evaluate")
    if step.done:
        return step
    if config.data.cold:
        figures = measure_cold(run)
        write_atomically(step.folder / "metrics.json", json.dumps(figures, indent=1) + "\n")
        write_atomically(step.folder / "report.md", cold_as_markdown(figures))
        step.finish(**figures)
        return step
    ranks, split, negatives = measure(run)
    save_file({"negatives": negatives}, step.folder / "negatives.safetensors")
    arrays = {
        f"{protocol}/{name}": each
        for protocol, models in ranks.items()
        for name, each in models.items()
    }
    save_file(arrays, step.folder / "ranks.safetensors")
    figures = summarise(
        ranks, split, config.evaluate, SPLIT_BY[config.data.split], negatives.shape[1]
    )
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
        JobError: a user has used the whole catalogue.
    """
    _, split = read_prepared(run)
    trained = read_trained(run)
    wanted = run.config.evaluate.negatives
    try:
        negatives = sample_negatives(split, wanted, run.config.seed)
    except ValueError as error:
        raise JobError(str(error)) from None
    if negatives.shape[1] < wanted:
        log.warning(
            "the sampled protocol has %d negatives in place of %d: so many items are left to the "
            "user who used most",
            negatives.shape[1], wanted,
        )  # fmt: skip
    before = split.test_histories
    found: Protocols = {}
    for model, ranker in (("id-only", trained.id_only), ("ours", trained.ours)):
        for protocol, each in ranker.ranks_by_protocol(before, split.test, negatives).items():
            found.setdefault(protocol, {})[model] = each
    return found, split, negatives


def measure_cold(run: Run) -> dict[str, Any]:
    """HR@k and NDCG@k of cold test items, which nothing fitted has seen, and of warm ones.

    `warm_alone` is what warm test items reach where no cold item is a candidate. An id-only model
    cannot rank a cold item at all.
    """
    spec = run.config.evaluate
    found = read_cold(run)
    if found is None:
        raise JobError("no item is held out; data.cold is 0")
    held, interactions = found
    catalogue, split = read_prepared(run)
    trained = read_trained(run)
    asked = held.questions(interactions, held.test)
    if not len(asked.targets):
        raise JobError("no user has a history before a cold test item; data.cold is too small")
    before, items = split.test_histories, len(catalogue)
    others = held.mask(items, held.validation)  # the factors were chosen with them
    ranks = {
        "cold_test": trained.ours.ranks(asked.histories, asked.targets, banned=others),
        "warm": trained.ours.ranks(before, split.test, banned=others),
        "warm_alone": trained.ours.ranks(before, split.test, banned=held.mask(items)),
    }
    figures: dict[str, Any] = {
        "k": spec.k,
        "protocol": f"cold: {len(held.test)} items to test and {len(held.validation)} to validate "
        "out of everything fitted; the former are then added to the catalogue of all others; the "
        "history before a user's first held-out item is the query; the whole of that catalogue "
        "without the history",
        "cold_items": len(held.test),
        "partial_factors": trained.partial_factors,
        "weights": trained.weights,
        "seed": run.config.rat.seed,
        "targets": {name: len(rank) for name, rank in ranks.items()},
    }
    for name, rank in ranks.items():
        figures[name] = {
            "hr": _with_interval(hit_rate(rank, spec.k), spec.bootstrap),
            "ndcg": _with_interval(ndcg(rank, spec.k), spec.bootstrap),
        }
    alone = figures["warm_alone"]["hr"]["mean"]
    figures["warm_kept"] = figures["warm"]["hr"]["mean"] / alone if alone else 1.0
    return figures


def summarise(
    protocols: Protocols, split: Split, spec: Evaluate, split_by: str, negatives: int
) -> dict[str, Any]:
    """HR@k and NDCG@k with 95 % intervals, by protocol, model and group, and ours minus id-only.

    Args:
        negatives: as many as were drawn.
    """
    head = split.head()[split.test]
    cold = split.counts[split.test] == 0
    groups = {"overall": np.ones(len(head), bool), "head": head, "tail": ~head, "cold": cold}
    figures: dict[str, Any] = {
        "k": spec.k,
        "protocol": f"{split_by}; full: whole catalogue without the history; "
        f"sampled: 1 positive and {negatives} stored uniform negatives",
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


def by_popularity(run: Run) -> list[dict[str, Any]]:
    """HR@k and NDCG@k of both models by how often the target was in training, full catalogue.

    Buckets that no target is in are left out. Of a run that holds no items out.

    Raises:
        JobError: evaluate is not finished.
    """
    step, spec = run.finished("evaluate"), run.config.evaluate
    ranks = load_file(step.folder / "ranks.safetensors")
    _, split = read_prepared(run)
    asked = split.counts[split.test]
    buckets = []
    for low, high in COUNTS:
        members = (asked >= low) & (asked <= (np.inf if high is None else high))
        if not members.any():
            continue
        models = {
            model: {
                metric: _with_interval(
                    measured(ranks[f"full/{model}"][members], spec.k), spec.bootstrap
                )
                for metric, measured in (("hr", hit_rate), ("ndcg", ndcg))
            }
            for model in ("id-only", "ours")
        }
        buckets.append({"low": low, "high": high, "targets": int(members.sum()), **models})
    return buckets


def _with_interval(values: NDArray[np.float64], draws: int) -> dict[str, float]:
    low, high = interval(values, draws)
    return {"mean": float(values.mean()), "low": low, "high": high}
