"""`python -m training STEP --config FILE`: run one offline job, or all of them."""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from models import OutOfMemory
from models.bundle import BundleError
from models.item import InvalidItem
from models.llm import LLMError
from training import JobError
from training.config import read_config
from training.recipe import STEPS, Run, cold_run, time_run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when it succeeded, 1 on an error that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train embeddings and a recommender, and export them as a bundle. Steps that "
        "are finished are reused; a step that was killed goes on where it was.",
    )
    parser.add_argument(
        "step", choices=[*STEPS, "run", "compare"], help="one step, `run` for all, or `compare`"
    )
    parser.add_argument("--config", type=Path, required=True, help="TOML file of the run")
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="change one value of the configuration; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--source", metavar="PATH", help="folder, .zip file or URL of the data (data.path)"
    )
    parser.add_argument(
        "--final", action="store_true", help="compare: read the test split, once per configuration"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="VARIANT",
        help="compare: this variant, beside the reference; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--cold", action="store_true",
        help="evaluate: hold two sets of items out of everything that is fitted, train without "
        "them, and ask for them; in FOLDER/cold",
    )  # fmt: skip
    parser.add_argument(
        "--time", action="store_true",
        help="evaluate: split by one moment for everybody, train on what came before it, and ask "
        "for what came next; in FOLDER/time",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=["bundle", "npy", "parquet", "sentence-transformers"],
        default="bundle", help="export: for the service, or for other software",
    )  # fmt: skip
    parser.add_argument(
        "--items", metavar="PATH",
        help="encode: items outside of the run, in .jsonl or .parquet files; a path or URL",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local",
        help="encode --items: in this process, or on the Ray cluster of RAY_ADDRESS (else on all "
        "cores or GPUs of this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--skip-unusable", action="store_true",
        help="encode --items: list a line that is no item beside its shard, and go on",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FOLDER",
        help="encode --items: where shards are written; export --format: where that is written, "
        "default FOLDER/FORMAT",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "transformers", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        _do(given)
    except (JobError, LLMError, BundleError, InvalidItem) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except OutOfMemory as error:
        print(f"error: out of memory: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _check_options(given: argparse.Namespace) -> None:
    """Refuse an option that says nothing to the step.

    Raises:
        JobError: there is one.
    """
    for name in ("cold", "time"):
        if getattr(given, name) and given.step != "evaluate":
            raise JobError(f"--{name} goes with evaluate, not with {given.step}")
    if given.cold and given.time:
        raise JobError("--cold and --time are two evaluations; ask for one after the other")
    if given.final and given.step != "compare":
        raise JobError(f"--final goes with compare, not with {given.step}")
    if given.format != "bundle" and given.step != "export":
        raise JobError(f"--format goes with export, not with {given.step}")
    if given.items and (given.step != "encode" or not given.output):
        raise JobError("--items goes with encode, and needs --output FOLDER for the vectors")
    for name, told in (("skip-unusable", given.skip_unusable), ("engine", given.engine != "local")):
        if told and not given.items:
            raise JobError(f"--{name} goes with encode --items")
    if given.output and given.format == "bundle" and not given.items:
        raise JobError("--output goes with encode --items, or with export --format")


def _do(given: argparse.Namespace) -> None:
    _check_options(given)
    if given.step == "compare":
        from training.compare import compare  # noqa: PLC0415

        tables = compare(given.config, given.changes, given.source, given.final, given.only)
        print(tables.read_text())  # noqa: T201
        return
    run = Run(read_config(given.config, given.changes, given.source))
    steps: tuple[str, ...] = STEPS if given.step == "run" else (given.step,)
    if given.cold or given.time:
        run = cold_run(run.config) if given.cold else time_run(run.config)
        steps = STEPS[: STEPS.index("evaluate") + 1]
    if given.items:
        from training.stream import encode_stream  # noqa: PLC0415

        found = encode_stream(run, given.items, given.output, given.skip_unusable, given.engine)
        told = ", ".join(f"{count} {name}" for name, count in found.items())
        logging.getLogger("training").info("encode: %s (%s)", told, given.output)
        return
    with run.lock():
        if given.format != "bundle":
            from training.formats import export_as  # noqa: PLC0415

            folder = Path(given.output) if given.output else run.folder / given.format
            export_as(run, given.format, folder)
            logging.getLogger("training").info("export: %s", folder)
            return
        for name in steps:
            _one(name, run)


def _one(name: str, run: Run) -> None:
    # Imported when needed: `--help` and a wrong configuration answer at once.
    from training.encode import encode  # noqa: PLC0415
    from training.evaluate import evaluate  # noqa: PLC0415
    from training.export import export  # noqa: PLC0415
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
    done = run.folder / name / "done.json"
    before = done.stat().st_mtime_ns if done.exists() else None
    started = time.monotonic()
    step = jobs[name](run)
    reused = before is not None and done.stat().st_mtime_ns == before
    told = "reused, as finished before" if reused else f"{time.monotonic() - started:.0f} s"
    logging.getLogger("training").info("%s: %s (%s)", name, told, step.folder)


if __name__ == "__main__":
    sys.exit(main())
