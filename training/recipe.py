"""What a run is: its folder, and which of its steps are finished.

A run folder holds `config.json` and a folder per step. A step's folder holds `made.json` (all that
its result depends on), what the step writes, and `done.json` once it is whole. A step that would
be made of the same is reused; one that was killed goes on from its last checkpoint; one whose
inputs changed starts over.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training import JobError
from training.config import RunConfig

BEFORE: dict[str, str | None] = {
    "prepare": None,
    "scft": "prepare",
    "encode": "scft",
    "rat": "encode",
    "evaluate": "rat",
    "export": "evaluate",
}
SECTIONS = {  # of the configuration, that a step's result depends on
    "prepare": ("data", "seed"),
    "scft": ("seed", "template", "llm", "scft"),
    "encode": ("encode",),
    "rat": ("rat",),
    "evaluate": ("seed", "evaluate"),
    "export": ("name", "export"),
}
STEPS = tuple(BEFORE)
MADE = "made.json"
DONE = "done.json"


class Damaged(JobError):
    """A file of a run is not what was written there; says which, and where in it."""


def digest(facts: object) -> str:
    """SHA-256 of facts as canonical JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_facts(path: Path, *names: str) -> dict[str, Any]:
    """The JSON object that a job wrote.

    Args:
        names: of what must be in it.

    Raises:
        Damaged: it is no such object.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = "" if isinstance(found, dict) else "it is no JSON object"
    except ValueError as error:  # no JSON, or no UTF-8
        wrong = str(error)
    if not wrong:
        wrong = next((f"it has no `{name}`" for name in names if name not in found), "")
    if wrong:
        # Without its made.json a folder is of no run, so nothing is worked on in it.
        old = f"the folder {path.parent}" if path.name == MADE else "it"
        raise Damaged(f"{path} is damaged: {wrong}; remove {old}, and run what wrote it again")
    return found


def write_atomically(path: Path, content: str | bytes, partial: str | None = None) -> None:
    """Replace a file whole: after a crash there is the old one or the new one.

    Args:
        partial: name of the file before it is whole; one of its own for each of several writers.
    """
    partial_path = path.with_name(partial or path.name + ".partial")
    try:
        with partial_path.open("wb") as target:
            target.write(content.encode() if isinstance(content, str) else content)
            target.flush()
            os.fsync(target.fileno())
        partial_path.replace(path)
    except OSError:
        partial_path.unlink(missing_ok=True)  # what did not fit must not fill the disk
        raise


class Step:
    """One step's folder in a run.

    `made.json` in it says what the result depends on: the step before, sections of the
    configuration, and other facts, such as the hashes of files. A folder that was made of
    something else is cleared.

    Attributes:
        folder: where the step reads and writes.
        key: hash of all that its result depends on.

    Raises:
        JobError: a folder stands there that no run made.
    """

    def __init__(self, folder: Path, made: dict[str, Any]) -> None:
        self.folder = folder
        self.key = digest(made)
        stands = folder / MADE
        if stands.exists() and digest(read_facts(stands)) == self.key:
            return
        if folder.exists():
            if not stands.exists() and any(folder.iterdir()):
                raise JobError(f"{folder} is not of a run; move it, or choose another `folder`")
            # Renamed first, so that a kill in the middle leaves nothing half-cleared behind.
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            shutil.rmtree(old)
        folder.mkdir(parents=True)
        write_atomically(stands, json.dumps(made, indent=1, default=str) + "\n")

    @property
    def done(self) -> bool:
        """Whether the step's result is whole."""
        return (self.folder / DONE).exists()

    @property
    def facts(self) -> dict[str, Any]:
        """What the step said of itself when it finished; empty until then."""
        return self.told() if self.done else {}

    def told(self, *names: str) -> dict[str, Any]:
        """The same of a step that is done.

        Args:
            names: of what must be among it.

        Raises:
            Damaged: it is not.
        """
        return read_facts(self.folder / DONE, *names)

    def finish(self, **facts: object) -> None:
        """Mark the step whole, with facts worth keeping."""
        write_atomically(self.folder / DONE, json.dumps(facts, indent=1) + "\n")

    def log(self, **numbers: object) -> None:
        """Append a line to the step's metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"time": round(time.time(), 3), **numbers}) + "\n")


class Run:
    """A configuration and its folder. One process at a time works in a run folder."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.folder = Path(config.folder.replace("{name}", config.name)).expanduser()
        self.cache = Path(config.cache).expanduser()

    def _sections(self, name: str) -> dict[str, Any]:
        return self.config.facts(*SECTIONS[name])

    def step(self, name: str, **facts: object) -> Step:
        """The folder of a step, ready to start, to go on, or to be read.

        Args:
            facts: what else its result depends on beside the step before and the configuration.

        Raises:
            JobError: the step before it is not done.
        """
        previous = BEFORE[name]
        before = self._result(previous) if previous else None
        made = {"step": name, "before": before, "sections": self._sections(name), "facts": facts}
        return Step(self.folder / name, made)

    def finished(self, name: str) -> Step:
        """A step that is done, and was made with this configuration from what stands before it.

        Raises:
            JobError: it is not; says which step to run.
        """
        folder = self.folder / name
        if not (folder / DONE).exists():
            raise JobError(f"{folder} is not finished; run `python -m training {name}` first")
        made = read_facts(folder / MADE, "sections", "before")
        now = self._sections(name)
        changed = [section for section in now if made["sections"].get(section) != now[section]]
        if changed:
            raise JobError(
                f"{folder} was made with another `{changed[0]}`; "
                f"run `python -m training {name}` again, or undo the change"
            )
        previous = BEFORE[name]
        if previous and self._result(previous) != made["before"]:
            raise JobError(
                f"{folder} was made from another {previous}; run `python -m training {name}` again"
            )
        return Step(folder, made)

    def _result(self, name: str) -> str:
        """Hash of what a finished step was made of and of what it then said of itself."""
        step = self.finished(name)
        return digest([step.key, step.facts])

    @contextmanager
    def shared(self, kind: str, **made: object) -> Iterator[Step]:
        """The folder, in the cache, of a result that other runs may need too.

        It depends on `made` alone. A process that wants what another is making waits for it.
        """
        folder = self.cache / kind
        folder.mkdir(parents=True, exist_ok=True)
        name = digest(made)[:32]
        with (folder / f"{name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Step(folder / name, made)

    @contextmanager
    def lock(self, keep_config: bool = False) -> Iterator[None]:
        """Keep every other process out of this run folder, and leave the configuration in it.

        Args:
            keep_config: leave that which stands there.

        Raises:
            JobError: another process works in it, or it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / "lock").open("w")
        except OSError as error:
            raise JobError(f"the run folder {self.folder} cannot be written: {error}") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise JobError(f"another process works in {self.folder}; wait for it") from None
            if not keep_config:
                text = self.config.model_dump_json(indent=1) + "\n"
                write_atomically(self.folder / "config.json", text)
            yield


def cold_run(config: RunConfig, share: float = 0.1) -> Run:
    """The run, in a folder inside its own, that holds two such shares of items out as cold."""
    data = config.data.model_copy(update={"cold": config.data.cold or share})
    folder = config.folder.replace("{name}", config.name)
    return Run(config.model_copy(update={"data": data, "folder": f"{folder}/cold"}))


def time_run(config: RunConfig) -> Run:
    """The run, in a folder inside its own, that is split by time."""
    data = config.data.model_copy(update={"split": "time"})
    folder = config.folder.replace("{name}", config.name)
    return Run(config.model_copy(update={"data": data, "folder": f"{folder}/time"}))
