"""What was done in a run folder: every command and step, in `log.jsonl`, a line each.

Nothing that is trained or measured depends on it; a resumed run appends to it.
"""

import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from training.machine import machine, versions
from training.recipe import DONE, MADE, digest, read_facts

NAME = "log.jsonl"
Ending = Literal["done", "reused", "stopped", "failed"]
SECRET = re.compile(r"(://)[^/@\s']+@")


@dataclass
class Doing:
    """A step while it is done; how it ended, once it has."""

    ended: Ending = "failed"


class Took(NamedTuple):
    """Seconds of work that went into a step's result, and by how many commands.

    Attributes:
        finished: whether the last of them finished it.
    """

    seconds: float
    commands: int
    finished: bool


class Journal:
    """The log of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def command(self, arguments: Sequence[str]) -> None:
        """Write down a command, what it runs on and with; a password in a URL is left out."""
        told = SECRET.sub(r"\1…@", shlex.join(["python", "-m", "training", *arguments]))
        self._write(event="command", command=told, machine=machine(), versions=versions())

    @contextmanager
    def step(self, name: str, folder: Path) -> Iterator[Doing]:
        """Time a step, however it ends.

        Args:
            folder: its own; `made.json` and `done.json` tell what it made, and whether it had to.
        """
        done = folder / DONE
        before = done.stat().st_mtime_ns if done.exists() else None
        started = time.monotonic()
        doing = Doing()
        try:
            yield doing
            reused = before is not None and done.stat().st_mtime_ns == before
            doing.ended = "reused" if reused else "done"
        except KeyboardInterrupt:
            doing.ended = "stopped"
            raise
        finally:
            self._write(
                event="step",
                step=name,
                ended=doing.ended,
                seconds=round(time.monotonic() - started, 3),
                made=_made(folder),
            )

    def _write(self, **facts: object) -> None:
        line = json.dumps({"time": round(time.time(), 3), **facts}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """All that was written down, oldest first; a line that a crash cut is left out."""
        found = []
        there = self.path.exists()
        # What a crash cut may end within a letter.
        text = self.path.read_text(encoding="utf-8", errors="replace") if there else ""
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return [line for line in found if isinstance(line, dict)]

    def again(self, command: str, *options: str) -> str:
        """What to type to run a command on the run that was run here last."""
        words: list[str] = []
        told = [line["command"] for line in self.lines() if line.get("event") == "command"]
        last = shlex.split(told[-1])[4:] if told else ["--config", "FILE"]
        for place, word in enumerate(last):
            name, joined, _ = word.partition("=")
            if name in {"--config", "--set", "--source"}:
                words += [word] if joined else last[place : place + 2]
        return shlex.join(["python", "-m", "training", command, *words, *options])

    def took(self, name: str, folder: Path) -> Took | None:
        """The work in a step's result as it stands; None where none of it was written down.

        Work of a process that was killed outright is not in it.
        """
        made = _made(folder)
        own = [
            line
            for line in self.lines()
            if line.get("step") == name and line["made"] == made and line["ended"] != "reused"
        ]
        if not own:
            return None
        return Took(sum(line["seconds"] for line in own), len(own), own[-1]["ended"] == "done")


def _made(folder: Path) -> str | None:
    """What tells what a step's folder was made of from anything else."""
    path = folder / MADE
    return digest(read_facts(path))[:16] if path.exists() else None
