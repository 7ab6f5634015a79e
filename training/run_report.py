"""The report on a run: all that its finished steps say, as `report.json` and as a page.

Reads what the steps wrote, and never changes it. `report.json` holds every number that
`report.html` shows, for whoever wants to draw it otherwise. What is not there yet is said, with
the command that makes it.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.item import Item
from models.llm import LLMError
from models.prompt import PromptTemplate
from training import JobError
from training.config import RunConfig
from training.encode import read_llm_vectors, read_untuned_vectors_of
from training.evaluate import by_popularity
from training.geometry import geometry, nearest, plane
from training.interactions import Split
from training.journal import Journal, without_secrets
from training.machine import machine, versions
from training.prepare import read_prepared
from training.rat import read_trained, trained_views
from training.recipe import (
    STEPS,
    Damaged,
    Run,
    cold_run,
    read_facts,
    time_run,
    write_atomically,
)
from training.report_page import as_html

ITEMS_SHOWN = 2000  # in maps, neighbours and geometry; more are neither drawn nor judged
JUDGED = 10
NEAREST = 4  # of each judged item
CURVES = ("loss", "validation_ndcg10")
COLOURED = 6  # values of an attribute; the rest is `other`
Vectors = NDArray[np.float32]


def write_report(run: Run) -> Path:
    """Write report.json and report.html into the run folder, and tensorboard/ where it can be.

    Returns:
        The page.

    Raises:
        JobError: a file of the run cannot be read.
    """
    facts = collect(run)
    strict = _strict(facts)
    text = json.dumps(strict, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    write_atomically(run.folder / "report.json", text + "\n")
    page = run.folder / "report.html"
    write_atomically(page, as_html(facts))
    _write_tensorboard(run, facts)
    return page


def _strict(facts: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """The same, null in place of what is no finite number: JSON knows no NaN."""
    if isinstance(facts, dict):
        return {name: _strict(each) for name, each in facts.items()}
    if isinstance(facts, list | tuple):
        return [_strict(each) for each in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def report_on(folder: Path) -> Path:
    """The same for a run folder, with the configuration that stands in it.

    Raises:
        JobError: it is no run folder, or cannot be read.
    """
    path = folder / "config.json"
    if not path.exists():
        raise JobError(f"{folder} is no run folder: there is no {path}")
    try:
        config = RunConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise JobError(f"{path}: {field}: {first['msg']}") from None
    run = Run(config.model_copy(update={"folder": str(folder)}))
    with run.lock(keep_config=True):
        return write_report(run)


def collect(run: Run) -> dict[str, Any]:
    """All that is shown, by section; a section that cannot be has `missing` and `command`."""
    journal = Journal(run.folder)

    def section(make: Callable[[], dict[str, Any]], command: str, *options: str) -> dict[str, Any]:
        try:
            return make()
        except Damaged:
            raise  # no step that is run would mend it
        except (JobError, LLMError) as error:
            return {"missing": str(error), "command": journal.again(command, *options)}

    return {
        "name": run.config.name,
        "written": time.strftime("%Y-%m-%d %H:%M", time.localtime()),
        "machine": machine(),
        "versions": versions(),
        "commands": [line for line in journal.lines() if line.get("event") == "command"],
        "config": json.loads(without_secrets(run.config.model_dump_json(indent=1))),
        "timings": _timings(run, journal),
        "data": section(lambda: _data(run), "prepare"),
        "scft": section(lambda: _scft(run), "scft"),
        "rat": section(lambda: _rat(run), "rat"),
        "quality": section(lambda: _quality(run), "evaluate"),
        "cold": section(
            lambda: _evaluated(cold_run(run.config), "warm_kept"), "evaluate", "--cold"
        ),
        "time": section(lambda: _evaluated(time_run(run.config), "full"), "evaluate", "--time"),
        "ablation": _ablation(run),
        "space": section(lambda: _space(run), "encode"),
    }


def _lines(
    path: Path,
    place: str,
    values: Sequence[str],
    needed: Callable[[Iterable[object]], bool] = all,
) -> list[dict[str, Any]]:
    """A metrics.jsonl; of steps that were taken again after a kill, the last time counts.

    Args:
        place: name of the step or epoch that a line is of.
        values: names of what else a line has: all of them, or any of them.

    Raises:
        Damaged: a line lacks one of these numbers.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            facts = json.loads(line)
        except json.JSONDecodeError:
            continue  # a crash cut it
        known = facts if isinstance(facts, dict) else {}
        lacking = [n for n in (place, *values) if not isinstance(known.get(n), int | float)]
        if place in lacking or not needed(name not in lacking for name in values):
            raise Damaged(
                f"{path} is damaged: line {number} has no number `{lacking[0]}`; take it out"
            )
        found[facts[place], *sorted(facts)] = facts
    return sorted(found.values(), key=lambda facts: facts[place])


def _timings(run: Run, journal: Journal) -> dict[str, dict[str, Any] | None]:
    found: dict[str, dict[str, Any] | None] = {}
    for name in STEPS:
        took = journal.took(name, run.folder / name)
        found[name] = took._asdict() if took else None
    return found


def _data(run: Run) -> dict[str, Any]:
    facts = run.finished("prepare").told("data", "items", "users", "interactions")
    _, split = read_prepared(run)
    lengths = [len(history) for history in split.train]
    counts = np.sort(split.counts[1:])[::-1]
    head = int(split.head()[1:].sum())
    found = {
        **{name: value for name, value in facts.items() if name != "data"},
        "source": run.config.data.source,
        "split": run.config.data.split,
        "core": run.config.data.core,
        "training_interactions": int(counts.sum()),
        "validation_users": len(split.validation),
        "test_users": len(split.test),
        "median_history": float(np.median(lengths)),
        "longest_history": max(lengths),
        "head_items": head,
        "head_share": float(counts[:head].sum() / counts.sum()),
        "fingerprint": facts["data"],
    }
    try:
        encoded = run.finished("encode").facts
    except JobError:
        return found
    return found | {
        name: encoded[name] for name in ("tokens", "items_cut", "dtype") if name in encoded
    }


def _scft(run: Run) -> dict[str, Any]:
    step = run.finished("scft")
    facts = step.told("steps", "adapter")
    lines = _lines(step.folder / "metrics.jsonl", "step", CURVES, any)
    spec = run.config.scft
    return {
        "steps": facts["steps"],
        "tuned": facts["adapter"] is not None,
        "objective": spec.objective,
        "loss": [[line["step"], line["loss"]] for line in lines if "loss" in line],
        "validation": [
            [line["step"], line["validation_ndcg10"]]
            for line in lines
            if "validation_ndcg10" in line
        ],
    }


def _rat(run: Run) -> dict[str, Any]:
    step = run.finished("rat")
    views = {}
    for name in trained_views(run.config):
        lines = _lines(step.folder / name / "metrics.jsonl", "epoch", CURVES)
        views[name] = {
            "loss": [[line["epoch"], line["loss"]] for line in lines],
            "validation": [[line["epoch"], line["validation_ndcg10"]] for line in lines],
        }
    return {"views": views, **step.told("weights", "validation")}


def _evaluated(run: Run, *names: str) -> dict[str, Any]:
    return run.finished("evaluate").told("k", "targets", *names)


def _quality(run: Run) -> dict[str, Any]:
    """The figures of evaluate, and the same by how often the target was in training."""
    if run.config.data.cold:
        return {"missing": "this run holds items out; see cold items", "command": ""}
    figures = _evaluated(run, "full", "protocol")
    return {**figures, "buckets": by_popularity(run)}


def _ablation(run: Run) -> dict[str, Any]:
    """Results of the comparison that this run is a part of, and of those of its data beside it."""
    own = run.folder.absolute().parents[1]
    beside = run.folder.absolute().parent.glob("compare-*")
    found = []
    for folder in dict.fromkeys([own, *sorted(beside)]):
        for name in ("final-results.json", "results.json"):
            path = folder / name
            if path.exists() and (folder == own or _is_of(folder, run.config)):
                results = read_facts(path, "reference", "rows", "seeds", "targets")
                final = name.startswith("final")
                found.append({"name": folder.name, "final": final, **results})
                break
    if found:
        return {"comparisons": found}
    return {
        "missing": "no comparison of this run's data stands beside it",
        "command": "python -m training compare --config training/configs/compare/FILE.toml",
    }


def _is_of(folder: Path, config: RunConfig) -> bool:
    """Whether a comparison's runs read the same data as this one."""
    for path in folder.glob("*/seed-*/config.json"):
        other = read_facts(path, "data")
        return bool(other["data"] == config.data.model_dump(mode="json"))
    return False


def _space(run: Run) -> dict[str, Any]:
    """Where the items lie before scft, after it, and after rat: the same items in each."""
    catalogue, split = read_prepared(run)
    tuned = read_llm_vectors(run.finished("encode"))
    able = np.ones(len(catalogue), bool)
    adapted: dict[str, Vectors] = {}
    try:
        views = read_trained(run).views
    except JobError:
        views = {}
    learnt = next((views[n] for n in ("text", "hybrid", "id") if n in views), None)
    if learnt is not None:
        able = learnt.present
        adapted[f"after RAT ({learnt.name} view)"] = learnt.items
    if able.sum() <= JUDGED:
        raise JobError(f"{int(able.sum())} items are too few for a map")
    judged, places = _chosen(split, able, run.config.seed)
    stages: dict[str, Vectors] = {}
    if run.config.encode.vectors == "tf-idf":
        stages["TF-IDF vectors"] = tuned[places]
    elif run.finished("scft").facts["adapter"]:
        stages["before SCFT"] = read_untuned_vectors_of(run, places)
        stages["after SCFT"] = tuned[places]
    else:
        stages["LLM as it comes"] = tuned[places]
    stages |= {name: vectors[places] for name, vectors in adapted.items()}
    items = [catalogue[place] for place in places.tolist()]
    where = {place: number for number, place in enumerate(places.tolist())}
    label, coloured = _coloured(items, split.counts[places + 1], run.config.template)
    found: dict[str, Any] = {
        "items": len(places),
        "of": len(catalogue),
        "coloured_by": label,
        "colours": coloured,
        "judged": [
            {
                **_told(items[where[place]], run.config.template),
                "place": where[place],
                "interactions": int(split.counts[place + 1]),
                "near": {},
            }
            for place in judged.tolist()
        ],
        "stages": {},
    }
    before: Vectors | None = None
    for name, vectors in stages.items():
        points, variance = plane(vectors, before)
        before = points if before is None else before
        size = float(np.abs(points).max()) or 1.0
        found["stages"][name] = {
            **geometry(vectors)._asdict(),
            "width": vectors.shape[1],
            "plane_share": variance,
            "points": np.round(points / size, 4).tolist(),
        }
        near = nearest(vectors, NEAREST)
        for each in found["judged"]:
            each["near"][name] = [
                _told(items[other], run.config.template) for other in near[each["place"]].tolist()
            ]
    return found


def _chosen(
    split: Split, able: NDArray[np.bool_], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the items that are judged, and of all that are shown, ascending.

    Judged are the most used ones, which many people know, and as many of the tail, at random.
    """
    counts, random = split.counts[1:], np.random.default_rng([seed, 6])
    popular = np.argsort(-np.where(able, counts, -1), kind="stable")[: JUDGED // 2]
    rest = np.setdiff1d(np.flatnonzero(able & ~split.head()[1:]), popular)
    used = rest[counts[rest] > 0]
    rest = used if len(used) >= JUDGED - len(popular) else rest
    tail = random.permutation(rest)[: JUDGED - len(popular)]
    judged = np.concatenate([popular, tail]).astype(np.int64)
    others = random.permutation(np.setdiff1d(np.flatnonzero(able), judged))
    return judged, np.sort(np.concatenate([judged, others[: ITEMS_SHOWN - len(judged)]]))


def _told(item: Item, template: PromptTemplate) -> dict[str, Any]:
    """An item as a person reads it: what comes first in its prompt, and then the rest."""
    first, *others = template.names(item)
    rest = [f"{name.replace('_', ' ')}: {_words(item.attributes[name])}" for name in others]
    return {"item_id": item.item_id, "title": _words(item.attributes[first]), "rest": rest}


def _words(value: object, most: int = 80) -> str:
    parts = [_words(part) for part in value] if isinstance(value, list) else [str(value)]
    text = ", ".join(parts)
    return text if len(text) <= most else text[: most - 1] + "…"


def _coloured(
    items: Sequence[Item], counts: NDArray[np.int64], template: PromptTemplate
) -> tuple[str, dict[str, list[int]]]:
    """What the map is coloured by, and the places of each colour.

    An attribute whose six most frequent values tell the most items apart, numbers aside; where
    there is none that does for half of them, how often an item was used in training.
    """
    best: tuple[float, str, dict[str, list[int]]] = (0.5, "", {})
    names = {name for item in items for name in template.names(item)}
    for name in sorted(names):
        values = [_values(item.attributes.get(name)) for item in items]
        often: dict[str, int] = {}
        for each in values:
            for value in each:
                often[value] = often.get(value, 0) + 1
        top = sorted(often, key=lambda value: (-often[value], value))[:COLOURED]
        # One value that all have tells nothing apart.
        top = [value for value in top if 2 <= often[value] < 0.9 * len(items)]
        groups: dict[str, list[int]] = {value: [] for value in [*top, "other"]}
        for place, each in enumerate(values):
            first = min((v for v in each if v in top), key=top.index, default="other")
            groups[first].append(place)
        share = 1 - len(groups["other"]) / len(items)
        if len(top) > 1 and share > best[0]:
            best = (share, name, {value: each for value, each in groups.items() if each})
    if best[1]:
        return best[1].replace("_", " "), best[2]
    edges = {"0": (0, 0), "1-9": (1, 9), "10-99": (10, 99), "100 or more": (100, np.inf)}
    groups = {
        name: np.flatnonzero((counts >= low) & (counts <= high)).tolist()
        for name, (low, high) in edges.items()
    }
    return "training interactions", {name: each for name, each in groups.items() if each}


def _values(value: object) -> list[str]:
    """Words that an item may be sorted by: of a list each, of a list of lists the first of each."""
    if isinstance(value, list):
        found = [
            v for part in value for v in _values(part)[: 1 if isinstance(part, list) else None]
        ]
        return list(dict.fromkeys(found))
    text = str(value).strip() if isinstance(value, str | bool) else ""
    return [text] if text and not text.replace(".", "").isdecimal() and len(text) <= 40 else []


def _write_tensorboard(run: Run, facts: Mapping[str, Any]) -> None:
    """The curves for TensorBoard, anew, where it is installed (the extra `tensorboard`)."""
    from training.tensorboard import write_curves  # noqa: PLC0415 - asks whether it is installed

    curves: dict[str, dict[str, list[list[float]]]] = {}
    if "missing" not in facts["scft"]:
        curves["scft"] = {name: facts["scft"][name] for name in ("loss", "validation")}
    if "missing" not in facts["rat"]:
        curves |= {f"rat-{name}": view for name, view in facts["rat"]["views"].items()}
    write_curves(run.folder / "tensorboard", curves)
