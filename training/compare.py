"""Recipe `compare`: variants of a run times seeds, side by side.

Reads validation only: each half of the users chooses weights that are measured on the other half.
`final` reads the test split, once per configuration, and writes down that it did. A variant is
compared with the reference by a paired bootstrap over users, on metrics averaged over seeds.

Writes, into the comparison's folder, a run folder per variant and seed, and results.json,
results.md and results.svg (`final-…` for the test split).
"""

import json
import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load_file

from training import JobError
from training.compare_report import PROTOCOLS, as_markdown, as_svg
from training.config import read_config
from training.encode import encode
from training.evaluate import evaluate
from training.metrics import hit_rate, ndcg
from training.prepare import prepare, read_prepared
from training.rat import rat
from training.recipe import Run, Step, cold_run, digest, write_atomically
from training.scft import scft

log = logging.getLogger(__name__)
DRAWS = 5000  # of the bootstrap
STEPS = (prepare, scft, encode, rat)

Values = dict[str, dict[str, NDArray[np.float64]]]  # by protocol and model:metric, (U,)


class Comparison(BaseModel):
    """One comparison, as its TOML file says it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str = Field(description="the run that is varied, relative to this file")
    seeds: tuple[int, ...] = Field(min_length=1, description="of rat")
    reference: str = Field(description="the variant that the others are compared with")
    variants: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="changes to the run, by section.key, by name; `config`: to another run",
    )
    cold: tuple[str, ...] = Field((), description="variants that cold items are asked of, too")


def read_comparison(path: Path) -> Comparison:
    """The comparison in a TOML file.

    Raises:
        JobError: no such file, no TOML, or a field that is unknown or has a wrong value.
    """
    try:
        found = Comparison.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise JobError(f"there is no comparison {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise JobError(f"{path} cannot be read as TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise JobError(f"{path}: {field}: {first['msg']}") from None
    for field, names in (("reference", [found.reference]), ("cold", found.cold)):
        for name in names:
            if name not in found.variants:
                known = ", ".join(found.variants)
                raise JobError(f"{path}: {field}: {name!r} is no variant; there are {known}")
    return found


def folder_of(path: Path) -> Path:
    """Where the comparison of a TOML file is kept."""
    return Path("runs") / f"compare-{path.stem}"


def variant_run(
    path: Path, comparison: Comparison, name: str, seed: int, changes: list[str], source: str | None
) -> Run:
    """The run of one variant with one seed.

    Raises:
        JobError: the variant's changes make no configuration.
    """
    place = folder_of(path) / name / f"seed-{seed}"
    own = _flat(comparison.variants[name])
    config = own.pop("config", comparison.config)
    own |= {"rat.seed": seed, "folder": str(place)}
    return Run(read_config(path.parent / config, changes, source, own))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables by section.key, however they were written; an empty one is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def compare(
    path: Path,
    changes: list[str],
    source: str | None,
    final: bool,
    only: Sequence[str] = (),
) -> Path:
    """Run what is missing of a comparison and write its results; the tables' file.

    Args:
        only: names of variants, to leave the others out; the reference is always in.

    Raises:
        JobError: a variant cannot be run, or `only` names one that is not there.
    """
    comparison = read_comparison(path)
    unknown = set(only) - comparison.variants.keys()
    if unknown:
        known = ", ".join(comparison.variants)
        raise JobError(f"{path} has no variant {sorted(unknown)[0]!r}; there are {known}")
    if only:
        kept = {*only, comparison.reference}
        chosen = {name: each for name, each in comparison.variants.items() if name in kept}
        comparison = comparison.model_copy(update={"variants": chosen})
    folder = folder_of(path)
    seeds: dict[str, list[Values]] = {name: [] for name in comparison.variants}
    groups: dict[str, NDArray[np.bool_]] = {}
    asked = ""
    cold: dict[str, list[dict[str, float]]] = {}
    for seed in comparison.seeds:
        for name in comparison.variants:
            run = variant_run(path, comparison, name, seed, changes, source)
            log.info("compare: %s, seed %d", name, seed)
            with run.lock():
                for step in STEPS:
                    step(run)
                values = _test(run, folder, name) if final else _validation(run)
                groups, targets = _groups(run, final)
            if targets != (asked := asked or targets):
                raise JobError(
                    f"{path}: {name} asks for other items, or of other users, than "
                    f"{next(iter(seeds))}; only variants of the same data and split can be compared"
                )
            seeds[name].append(values)
            if name in comparison.cold:
                cold.setdefault(name, []).append(_cold(cold_run(run.config), folder, name, final))
    results = {**_summary(comparison, seeds, groups), "cold": _cold_summary(cold)}
    prefix = "final-" if final else ""
    write_atomically(folder / f"{prefix}results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(folder / f"{prefix}results.svg", as_svg(results))
    tables = folder / f"{prefix}results.md"
    write_atomically(tables, as_markdown(results))
    return tables


def compare_cold(path: Path, changes: list[str], source: str | None) -> dict[str, dict[str, Any]]:
    """What a comparison's cold test items reach, by variant, without the rest of it.

    Of each metric the mean and deviation over seeds. Reads the test as `compare` with `final`
    does: once per configuration, and written down before.

    Raises:
        JobError: a variant cannot be run, or none asks cold items.
    """
    comparison = read_comparison(path)
    if not comparison.cold:
        raise JobError(f"{path} asks cold items of no variant; name some in `cold`")
    found: dict[str, list[dict[str, float]]] = {}
    for seed in comparison.seeds:
        for name in comparison.cold:
            run = cold_run(variant_run(path, comparison, name, seed, changes, source).config)
            found.setdefault(name, []).append(_cold(run, folder_of(path), name, final=True))
    return _cold_summary(found)


def _validation(run: Run) -> Values:
    """Ranks of users' validation items, under weights that others chose."""
    found = load_file(run.finished("rat").folder / "validation.safetensors")
    return {"full": {"ours": found["ranks"]}}


def _groups(run: Run, final: bool) -> tuple[dict[str, NDArray[np.bool_]], str]:
    """Which users are in which group, and a digest of what is asked of whom."""
    _, split = read_prepared(run)
    targets, users = (split.test, split.testing) if final else (split.validation, split.validating)
    head = split.head()[targets]
    groups = {"overall": np.ones(len(head), bool), "head": head, "tail": ~head}
    told = digest([targets.tolist(), users.tolist(), head.tolist()])
    return {name: members for name, members in groups.items() if members.any()}, told


def _test(run: Run, folder: Path, name: str) -> Values:
    """Ranks of users' test items."""
    step = _evaluated(run, folder, name)
    arrays = load_file(step.folder / "ranks.safetensors")
    values: Values = {protocol: {} for protocol in PROTOCOLS}
    for key, ranks in arrays.items():
        protocol, model = key.split("/")
        values[protocol][model] = ranks
    return values


def _evaluated(run: Run, folder: Path, name: str) -> Step:
    """The evaluation of a run; a reading of the test is logged in test-reads.jsonl before it."""
    step = run.step("evaluate")
    if not step.done:
        line = {"variant": name, "run": str(run.folder), "evaluate": step.key}
        with (folder / "test-reads.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
    return evaluate(run)


def _cold(run: Run, folder: Path, name: str, final: bool) -> dict[str, float]:
    """What cold items reach, and what share of their HR@10 the others keep beside them.

    Those of the cold validation set, which the factors were chosen with, or of the cold test set.
    """
    log.info("compare: %s, cold items", name)
    with run.lock():
        for step in STEPS:
            step(run)
        if not final:
            chosen = run.finished("rat").facts["validation"]
            return {"ndcg10": chosen["new_ndcg10"], "warm_kept": chosen["known_kept"]}
        facts = _evaluated(run, folder, name).facts
    return {
        "targets": facts["targets"]["cold_test"],
        "hr10": facts["cold_test"]["hr"]["mean"],
        "hr10_low": facts["cold_test"]["hr"]["low"],
        "hr10_high": facts["cold_test"]["hr"]["high"],
        "ndcg10": facts["cold_test"]["ndcg"]["mean"],
        "warm_kept": facts["warm_kept"],
    }


def _cold_summary(cold: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """By variant, the mean and deviation over seeds of what _cold found."""
    return {
        name: {metric: _mean(np.array([seed[metric] for seed in seeds])) for metric in seeds[0]}
        for name, seeds in cold.items()
    }


def _summary(
    comparison: Comparison, seeds: dict[str, list[Values]], groups: dict[str, NDArray[np.bool_]]
) -> dict[str, Any]:
    """Mean and deviation over seeds of each metric, and how the variant differs from another.

    A row is a variant's sum, which differs from the reference's; with test results its id-only
    model has a row too, where it is another than the reference's, and differs from its own sum.
    """
    rows = []
    reference = seeds[comparison.reference]
    for name, runs in seeds.items():
        for model in sorted(runs[0]["full"], reverse=True):  # ours before id-only
            alike = [run["full"][model] for run in reference if model in run["full"]]
            if model == "id-only" and name != comparison.reference:
                own = [run["full"][model] for run in runs]
                if all(np.array_equal(*pair) for pair in zip(own, alike, strict=True)):
                    continue  # the reference's, which has its row
            row: dict[str, Any] = {"variant": name, "model": model, "protocols": {}}
            for protocol in runs[0]:
                ranks = np.array([run[protocol][model] for run in runs])  # (seeds, U)
                other = None
                if model == "ours" and name != comparison.reference:
                    other = np.array([run[protocol]["ours"] for run in reference])
                elif model == "id-only":
                    other = np.array([run[protocol]["ours"] for run in runs])
                row["protocols"][protocol] = {
                    group: {
                        metric: _cell(
                            measure(ranks[:, members], 10),
                            None if other is None else measure(other[:, members], 10),
                        )
                        for metric, measure in (("hr10", hit_rate), ("ndcg10", ndcg))
                    }
                    for group, members in groups.items()
                }
            rows.append(row)
    return {
        "seeds": list(comparison.seeds),
        "reference": comparison.reference,
        "targets": {group: int(members.sum()) for group, members in groups.items()},
        "rows": rows,
    }


def _cell(values: NDArray[np.float64], other: NDArray[np.float64] | None) -> dict[str, float]:
    """Of (seeds, U): the mean, its deviation over seeds, and how it differs from another's."""
    cell = _mean(values.mean(axis=1))
    if other is not None:
        difference = values.mean(axis=0) - other.mean(axis=0)  # (U,)
        cell["difference"] = round(float(difference.mean()), 5)
        cell["p"] = paired_p(difference)
    return cell


def _mean(seeds: NDArray[np.float64]) -> dict[str, float]:
    """The mean and the deviation of one figure a seed."""
    return {
        "mean": round(float(seeds.mean()), 5),
        "deviation": round(float(seeds.std(ddof=1)) if len(seeds) > 1 else 0.0, 5),
    }


def paired_p(difference: NDArray[np.float64], draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of a mean difference (U,) of 0, by bootstrap over users.

    Twice the share of draws whose mean lies on the other side of 0, or at 0; the data itself
    counts as one draw more (Davison and Hinkley, 1997, section 4.2), so that p is never 0.
    """
    if not difference.any():
        return 1.0
    random = np.random.default_rng(seed)
    # Users with the same difference are drawn together, which is as exact and much faster.
    values, counts = np.unique(difference, return_counts=True)
    drawn = random.multinomial(len(difference), counts / len(difference), size=draws)
    means = drawn @ values
    other = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (other + 1) / (draws + 1))
