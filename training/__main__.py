"""`python -m training COMMAND …`: run one offline job, or all of them; training.command_line."""

import argparse
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from training import JobError
from training.command_line import DONE, FAILED, PROGRAM, STEPS, STOPPED, completion, parse

if TYPE_CHECKING:
    from training.processes import Processes
    from training.recipe import Run

log = logging.getLogger("training")
SHARED = {*STEPS, "run", "compare"}  # commands that several processes may do together


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    0 when it succeeded, 1 on an error that the user can mend, 2 where the command line is wrong,
    130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        given = parse(words)
    except SystemExit as told:
        return int(told.code or 0)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "transformers", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return _guarded(given, words)
    except KeyboardInterrupt:
        pass  # the progress bar goes with the error; what is said comes after it
    return _stopped(given, words)


def _guarded(given: argparse.Namespace, words: list[str]) -> int:
    """Do it; an error that the user can mend is one line."""
    # Imported when needed: `--help` and a wrong command line answer at once, and Ctrl-C while
    # torch is loaded is a stop like any other.
    from models import OutOfMemory  # noqa: PLC0415
    from models.bundle import BundleError  # noqa: PLC0415
    from models.item import InvalidItem  # noqa: PLC0415
    from models.llm import LLMError  # noqa: PLC0415
    from training.processes import ALONE, this_job  # noqa: PLC0415

    job = this_job() if given.command in SHARED else ALONE
    try:
        if job.main:
            return _led(job, given, words)
        log.setLevel(logging.WARNING)
        job.follow()
        job.leave()
        return DONE
    except OutOfMemory as error:
        told = f"out of memory: {error}"
    except (JobError, LLMError, BundleError, InvalidItem, OSError) as error:
        told = str(error)
    if job.first_to_fail():
        _tell(f"error: {told}")
    return FAILED


def _led(job: "Processes", given: argparse.Namespace, words: list[str]) -> int:
    """Do it, and let the job's other processes go."""
    status = _do(given, words)
    job.leave()
    return status


def _tell(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


def _stopped(given: argparse.Namespace, words: list[str]) -> int:
    """Say how to go on."""
    if int(os.environ.get("RANK", "0")):
        return STOPPED  # the main process of several says it
    again = shlex.join([*PROGRAM.split(), *words])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        again = again.replace("python", "accelerate launch …", 1)
    if given.command in SHARED and not getattr(given, "dry_run", False):
        _tell(f"\nstopped; nothing that was finished is lost. To go on where it was:\n  {again}")
    else:
        _tell("\nstopped")
    return STOPPED


def _do(given: argparse.Namespace, words: list[str]) -> int:
    if given.command == "completion":
        print(completion(given.shell))  # noqa: T201
        return DONE
    if given.command == "doctor":
        from training.doctor import doctor  # noqa: PLC0415

        return doctor(given.config, given.changes, given.source, os.environ, print)
    if given.command == "report":
        from training.run_report import report_on  # noqa: PLC0415

        log.info("report: %s", report_on(given.run))
        return DONE
    if given.command == "compare":
        from training.compare import compare  # noqa: PLC0415

        tables = compare(given.config, given.changes, given.source, given.final, given.only)
        print(tables.read_text())  # noqa: T201
        return DONE
    _jobs(given, words)
    return DONE


def _jobs(given: argparse.Namespace, words: list[str]) -> None:
    """Steps of a run, or what is made of its encoder or its result."""
    from training.config import read_config  # noqa: PLC0415
    from training.recipe import Run, cold_run, time_run  # noqa: PLC0415

    whole = run = Run(read_config(given.config, given.changes, given.source))
    if given.command == "fetch":
        _fetch(run)
        return
    steps: tuple[str, ...] = STEPS if given.command == "run" else (given.command,)
    if given.command == "evaluate" and (given.cold or given.time):
        run = cold_run(run.config) if given.cold else time_run(run.config)
        steps = STEPS[: STEPS.index("evaluate") + 1]
    if given.dry_run:
        from training.plan import plan  # noqa: PLC0415

        print(plan(run, steps))  # noqa: T201
        return
    if given.command == "encode" and given.items:
        from training.stream import encode_stream  # noqa: PLC0415

        found = encode_stream(run, given.items, given.output, given.skip_unusable, given.engine)
        told = ", ".join(f"{count} {name}" for name, count in found.items())
        log.info("encode: %s (%s)", told, given.output)
        return
    if given.command == "export" and given.format != "bundle":
        _export_as(run, given.format, given.output)
        return
    with run.lock():
        _steps(steps, run, words)
    if {"evaluate", "export"} & set(steps):
        _report(whole)


def _fetch(run: "Run") -> None:
    from training.fetch import data_folder, llm_folder  # noqa: PLC0415

    log.info("data: %s", data_folder(run.config.data.path, run.cache))
    log.info("LLM: %s", llm_folder(run.config.llm.path, run.config.llm.revision, run.cache))


def _export_as(
    run: "Run", form: Literal["npy", "parquet", "sentence-transformers"], output: str | None
) -> None:
    from pathlib import Path  # noqa: PLC0415

    from training.formats import export_as  # noqa: PLC0415

    folder = Path(output) if output else run.folder / form
    with run.lock():
        export_as(run, form, folder)
    log.info("export: %s", folder)


def _steps(steps: Sequence[str], run: "Run", words: list[str]) -> None:
    from training.encode import encode  # noqa: PLC0415
    from training.evaluate import evaluate  # noqa: PLC0415
    from training.export import export  # noqa: PLC0415
    from training.journal import Journal  # noqa: PLC0415
    from training.prepare import prepare  # noqa: PLC0415
    from training.rat import rat  # noqa: PLC0415
    from training.scft import scft  # noqa: PLC0415

    jobs = {
        "prepare": prepare,
        "scft": scft,
        "encode": encode,
        "rat": rat,
        "evaluate": evaluate,
        "export": export,
    }
    journal = Journal(run.folder)
    journal.command(words)
    for number, name in enumerate(steps, 1):
        if len(steps) > 1:
            log.info("%s (step %d of %d)", name, number, len(steps))
        started = time.monotonic()
        with journal.step(name, run.folder / name) as doing:
            step = jobs[name](run)
        told = f"{time.monotonic() - started:.0f} s"
        if doing.ended == "reused":
            told = "reused, as finished before"
        log.info("%s: %s (%s)", name, told, step.folder)


def _report(run: "Run") -> None:
    """The run's report; what was measured stands without it, so a failure is but told."""
    from training.run_report import write_report  # noqa: PLC0415

    try:
        with run.lock():
            log.info("report: %s", write_report(run))
    except Exception as error:  # the steps' results are written, whatever it is
        log.warning(
            "the run's report was not written (%s: %s); `%s report --run %s` writes it",
            type(error).__name__, error, PROGRAM, run.folder,
        )  # fmt: skip


if __name__ == "__main__":
    status = main()
    if status and "TORCHELASTIC_RUN_ID" in os.environ:
        # What connects this process to others waits for them while it is taken apart.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
