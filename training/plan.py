"""What a command would do, and about how long it would take: `--dry-run`.

Writes nothing. Times come from a measurement of some seconds on this machine, with the run's own
LLM, items and histories where they are on this disk: a batch that is encoded, one step of SCFT, a
part of an epoch. What is not here yet is said, and not guessed.
"""

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from models.item import Catalogue
from models.llm import LLMError, defining_files
from training import JobError
from training.export import require_exportable
from training.fetch import LLMS
from training.interactions import Split
from training.machine import GIB, cores, cpu, free_disk, memory
from training.prepare import preview, read_prepared
from training.rat import sequence_spec, trained_views
from training.recipe import BEFORE, DONE, MADE, Damaged, Run
from training.run_llm import RunLLM
from training.run_report import ITEMS_SHOWN
from training.scft import CALIBRATION_STEPS, step_seconds
from training.views import epoch_seconds

ENCODED = 48  # items that encoding is timed with
COPIES = 3  # of the LLM vectors in memory at once, at most: as read, scaled, and a view's
KEPT = 6  # of a view's table on disk: twice itself, the best epoch, and a checkpoint of three


Prepared = tuple[Catalogue, Split] | None


class Measured(NamedTuple):
    """What the machine does, by measurement; None where it could not be measured.

    Attributes:
        items_a_second: encoded.
        step_s: of SCFT.
        epoch_s: by view.
        llm_dim: width of the LLM vectors.
        llm_bytes: of the LLM's files.
    """

    items_a_second: float | None = None
    step_s: float | None = None
    epoch_s: dict[str, float] | None = None
    llm_dim: int = 0
    llm_bytes: int = 0

    @property
    def any(self) -> bool:
        """Whether something was timed."""
        return bool(self.items_a_second or self.step_s or self.epoch_s)


def plan(run: Run, steps: Sequence[str]) -> str:
    """The plan and the estimate, as text.

    Raises:
        JobError: the source is wrong, says where; or a step cannot be done, says why.
    """
    if "export" in steps:
        require_exportable(run.config)
    states = {name: _state(run, name, steps) for name in steps}
    left = [name for name, state in states.items() if state != REUSED]
    head = f"Run {run.config.name} in {run.folder}, on {cores()} cores of {cpu()}"
    if not left:
        rows = [f"  {name:9} {state}" for name, state in states.items()]
        return "\n".join([head, *rows, "Everything is finished; nothing would be done."])
    found = _prepared(run)
    measured = _measure(run, left, found)
    rows = []
    for name, state in states.items():
        todo = name in TELL and state != REUSED
        told = TELL[name](run, found, measured) if todo else ""
        rows.append(f"  {name:9} {state:28} {told}".rstrip())
    if found:
        catalogue, split = found
        users = len(split.train)
        rows.append(f"  {'data':9} {len(catalogue):,} items, {users:,} users, "
                    f"{int(split.counts.sum()):,} training interactions")  # fmt: skip
        rows += [_memory(catalogue, measured), _disk(run, catalogue, measured)]
    else:
        rows.append(
            "  data      not on this disk yet, so times, memory and disk are not known; after "
            "`prepare` they are"
        )
    return "\n".join([head, *rows, f"{TIMED if measured.any else ''}Nothing was changed."])


REUSED = "finished, would be reused"
TIMED = (
    "Times are from a measurement of some seconds on this machine, just now: they hold if it "
    "stays as busy. A step that finds its result in the cache takes none. "
)


def _state(run: Run, name: str, steps: Sequence[str]) -> str:
    """What would become of a step.

    Raises:
        JobError: it cannot be done before another is.
    """
    previous = BEFORE[name]
    try:
        if previous and previous not in steps:
            run.finished(previous)
    except JobError as error:
        raise JobError(f"{name} cannot be done before {previous} is: {error}") from None
    try:
        run.finished(name)
    except Damaged:
        raise  # nor could the step be started over
    except JobError:
        if (run.folder / name / DONE).exists():
            return "changed, would start over"
        begun = (run.folder / name / MADE).exists()
        return "begun, would go on" if begun else "would be done"
    return REUSED


def _prepared(run: Run) -> Prepared:
    try:
        return read_prepared(run)
    except JobError:
        return preview(run)


def _measure(run: Run, left: Sequence[str], found: Prepared) -> Measured:
    """Time what the steps that are left would do."""
    if not found:
        return Measured()
    catalogue, split = found
    config = run.config
    epochs = None
    if "rat" in left:
        print("measuring: a part of an epoch", file=sys.stderr)  # noqa: T201
        timed: dict[str, float] = {}
        epochs = {}
        for name in trained_views(config):
            spec = sequence_spec(config.rat, name)
            key = spec.model_dump_json()
            timed[key] = timed.get(key) or epoch_seconds(spec, split)
            epochs[name] = timed[key]
    folder = _llm_folder(run)
    reads = config.encode.vectors == "llm" and {"scft", "encode", "evaluate", "export"} & set(left)
    if folder is None or not reads:
        return Measured(epoch_s=epochs)
    print("measuring: the LLM on some items", file=sys.stderr)  # noqa: T201
    encoder = RunLLM(folder, None, config.llm).load()
    prompts = [config.template.render(item) for item in catalogue[:ENCODED]]
    encoder.encode(prompts[:2])  # the first call sets up more than it does
    started = time.monotonic()
    encoder.encode(prompts)
    rate = len(prompts) / (time.monotonic() - started)
    dim = encoder.dim
    del encoder
    step = None
    if "scft" in left and config.scft.steps != 0 and len(catalogue) > 1:
        print("measuring: one step of SCFT", file=sys.stderr)  # noqa: T201
        step = step_seconds(catalogue[: 2 * config.scft.batch_items], folder, config)
    size = sum(path.stat().st_size for path in defining_files(folder))
    return Measured(rate, step, epochs, dim, size)


def _llm_folder(run: Run) -> Path | None:
    """Where the LLM is on this disk; None where it would be fetched first."""
    path = run.config.llm.path
    folder = run.cache / "llm" / path if path in LLMS else Path(path).expanduser()
    try:
        return folder if folder.is_dir() and defining_files(folder) else None
    except LLMError:
        return None


def _encode(run: Run, found: Prepared, measured: Measured) -> str:
    if not found:
        return ""
    items, rate = len(found[0]), measured.items_a_second
    if run.config.encode.vectors == "tf-idf":
        return f"{items:,} items, by TF-IDF: seconds"
    if not rate:
        return f"{items:,} items; the LLM is not on this disk yet"
    return f"{items:,} items at {rate:.1f} a second: {_long(items / rate)}"


def _rat(run: Run, _: Prepared, measured: Measured) -> str:
    parts, total = [], 0.0
    for view, each in (measured.epoch_s or {}).items():
        most = sequence_spec(run.config.rat, view).max_epochs
        total += each * most
        parts.append(f"{view} {most} of {_long(each)}")
    if not parts:
        return ""
    return f"at most {_long(total)}, stops earlier as a rule: epochs {', '.join(parts)}"


def _evaluate(run: Run, found: Prepared, measured: Measured) -> str:
    if not found:
        return ""
    items = len(found[0])
    told = f"ranks {items:,} items for {len(found[1].test):,} users, twice"
    config, rate = run.config, measured.items_a_second
    if rate and config.scft.steps != 0 and config.encode.vectors == "llm":
        shown = min(items, ITEMS_SHOWN)
        told += f"; its report reads {shown:,} items with the LLM as it was before SCFT: "
        told += _long(shown / rate)
    return told


def _scft(run: Run, found: Prepared, measured: Measured) -> str:
    spec = run.config.scft
    each = measured.step_s
    if spec.steps == 0:
        return "scft.steps = 0: the LLM stays as it is"
    steps = spec.steps
    if steps is None and spec.epochs and found:
        steps = max(1, round(spec.epochs * (len(found[0]) // min(spec.batch_items, len(found[0])))))
    if steps is None and not spec.epochs:
        told = f"as many steps as fit in {spec.minutes:g} minutes (scft.minutes)"
        if each:
            fit = max(1, int(spec.minutes * 60 / each))
            whole = fit * each + CALIBRATION_STEPS * each
            told += f": about {fit} of {_long(each)}, {_long(whole)} in all"
        return told
    if steps is None:
        return f"{spec.epochs:g} epochs"
    return f"{steps:,} steps" + (f" of {_long(each)}: {_long(steps * each)}" if each else "")


TELL = {"scft": _scft, "encode": _encode, "rat": _rat, "evaluate": _evaluate}


def _memory(catalogue: Catalogue, measured: Measured) -> str:
    """The measurement's peak, which had the LLM, and what grows with the catalogue."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    grows = len(catalogue) * 4 * COPIES * (measured.llm_dim + 128)
    total, free = memory()
    need = peak + grows
    told = f"  {'memory':9} about {need / GIB:.1f} GiB (the measurement's peak, and vectors)"
    if total and need > free:
        return told + f"; only {free / GIB:.1f} GiB are free: end other programs first"
    return told + (f"; {free / GIB:.1f} are free" if total else "")


def _disk(run: Run, catalogue: Catalogue, measured: Measured) -> str:
    """What the run folder and the cache grow by, at most."""
    config, items = run.config, len(catalogue)
    views = len(trained_views(config))
    vectors = items * 4 * measured.llm_dim * 3  # tuned and untuned in the cache, and the bundle's
    tables = items * 4 * config.rat.sequence.dim * KEPT * views
    llm = measured.llm_bytes if config.export.include_llm else 0
    need, free = vectors + tables + llm, free_disk(run.folder)
    told = f"  {'disk':9} about {need / GIB:.2f} GiB more, the bundle's LLM included"
    if need > free:
        return told + f"; only {free / GIB:.1f} GiB are free: make room first"
    return told + f"; {free / GIB:.1f} are free"


def _long(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
