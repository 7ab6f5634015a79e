"""The command line of `python -m training`: its commands, options, examples and exit codes."""

import argparse
from pathlib import Path
from typing import NoReturn

PROGRAM = "python -m training"
DONE, FAILED, MISUSED, STOPPED = 0, 1, 2, 130
EXIT_CODES = f"""\
exit codes:
  {DONE}    done
  {FAILED}    it cannot be done; one line says why, and what to do
  {MISUSED}    the command line is wrong
  {STOPPED}  stopped by Ctrl-C; the same command goes on where it was"""
RUN = "training/configs/ml-100k.toml"

# Of each command: what it does, and examples of it, each with a word on what it is for.
COMMANDS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "run": (
        "run all steps, from the source to a bundle",
        [
            (f"run --config {RUN}", "MovieLens-100K with the default LLM, the demo's run"),
            ("run --config shop.toml --dry-run", "what it would do, how long, how much memory"),
            ("run --config shop.toml --set scft.steps=0", "leave the LLM untuned"),
            ("run --config shop.toml --set seed=7 --set folder=runs/seven", "another seed, beside"),
        ],
    ),
    "prepare": (
        "read the source's items and interactions, and check them",
        [
            ("prepare --config shop.toml", "a catalogue and histories in runs/shop/prepare"),
            (f"prepare --config {RUN} --source ml-1m.zip", "the same, of other data"),
        ],
    ),
    "scft": (
        "tune the LLM on the items' attributes (LoRA)",
        [
            ("scft --config shop.toml --set scft.minutes=30", "as many steps as fit in the time"),
            ("scft --config shop.toml --set scft.steps=0", "leave the LLM as it is"),
        ],
    ),
    "encode": (
        "read every item with the LLM: its LLM vectors",
        [
            ("encode --config shop.toml", "the run's own catalogue"),
            (
                "encode --config shop.toml --items 'more/*.parquet' --output vectors/",
                "items that are no part of the run, and need not fit in memory",
            ),
        ],
    ),
    "rat": (
        "train the views and sequence models, and choose how they are summed",
        [
            ("rat --config shop.toml", "after prepare, scft and encode"),
            ("rat --config shop.toml --set rat.sequence.max_history=100", "read longer histories"),
            ("rat --config shop.toml --set rat.sequence.model=gru4rec", "another sequence model"),
        ],
    ),
    "evaluate": (
        "measure on the test split, beside the id-only model",
        [
            ("evaluate --config shop.toml", "metrics.json, report.md, and the run's report.html"),
            ("evaluate --config shop.toml --cold", "hold items out of all training, ask for them"),
            ("evaluate --config shop.toml --time", "train on the past, ask for what came next"),
        ],
    ),
    "export": (
        "write the bundle that the service reads, or vectors for other software",
        [
            ("export --config shop.toml", "runs/shop/bundle"),
            ("export --config shop.toml --format npy", "plain arrays, in runs/shop/npy"),
        ],
    ),
    "compare": (
        "run variants of a run, times seeds, side by side",
        [
            ("compare --config training/configs/compare/ml-100k.toml", "by the validation split"),
            ("compare --config compare.toml --only no-scft", "this variant and the reference"),
            ("compare --config compare.toml --final", "read the test split, once"),
        ],
    ),
    "report": (
        "write a run's report.html anew, of the steps that are finished",
        [
            ("report --run runs/shop", "runs/shop/report.html; it opens offline"),
        ],
    ),
    "fetch": (
        "get the run's LLM and data now, so that all the rest works offline",
        [
            ("fetch --config shop.toml", "a pinned LLM goes into .cache/llm, once for all runs"),
        ],
    ),
    "doctor": (
        "check this machine: hardware, disk, memory, Redis, model files, versions",
        [
            ("doctor", "a line a check: OK, warning or problem, and what to do"),
            ("doctor --config shop.toml", "with the LLM and folders of that run"),
        ],
    ),
    "completion": (
        "print a script that completes these commands in bash or zsh",
        [
            ('eval "$(python -m training completion bash)"', "in this shell; in ~/.bashrc: in all"),
            ('eval "$(python -m training completion zsh)"', "in zsh, after compinit"),
        ],
    ),
}
PATHS = {"config", "items", "output", "run", "source"}  # options whose value is a file or folder
STEPS = ("prepare", "scft", "encode", "rat", "evaluate", "export")


class _Parser(argparse.ArgumentParser):
    """Says `error: …` in one line, and where help is, in place of the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"error: {message}; `{self.prog} --help` has examples\n")


def _examples(shown: list[tuple[str, str]]) -> str:
    lines = ["examples:"]
    for command, told in shown:
        whole = command if command.startswith("eval ") else f"{PROGRAM} {command}"
        lines += [f"  {whole}", f"      {told}"]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` and, by command, its options."""
    first = [(name, told) for name, (told, _) in COMMANDS.items() if name not in STEPS]
    steps = [(name, COMMANDS[name][0]) for name in STEPS]
    start = [
        ("doctor", "is this machine fit for it?"),
        (f"run --config {RUN}", "train on MovieLens-100K; then look at the run's report.html"),
        ("run --config shop.toml --dry-run", "your own data: the plan and an estimate first"),
        ("scft --help", "examples of one command"),
    ]
    parser = _Parser(
        prog=PROGRAM,
        description="Train embeddings and a recommender, and export them as a bundle.",
        usage=f"{PROGRAM} COMMAND --config FILE [options]",
        epilog="\n".join(
            [
                "steps, in their order:",
                *(f"  {name:11} {told}" for name, told in steps),
                "",
                "and:",
                *(f"  {name:11} {told}" for name, told in first),
                "",
                "A step that is finished is reused, one whose inputs changed starts over, and one",
                "that was stopped or killed goes on where it was.",
                "",
                _examples(start),
                "",
                EXIT_CODES,
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS, prog=PROGRAM
    )
    for name, (told, examples) in COMMANDS.items():
        each = commands.add_parser(
            name,
            help=told,
            description=told[0].upper() + told[1:] + ".",
            epilog=f"{_examples(examples)}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        _add_options(name, each)
    return parser


def _add_options(name: str, to: argparse.ArgumentParser) -> None:
    """The options of one command."""
    if name in {*STEPS, "run", "compare", "fetch"}:
        what = "the comparison" if name == "compare" else "the run"
        _config(to, what, required=True)
        _dry_run(name, to)
    if name == "evaluate":
        to.add_argument(
            "--cold", action="store_true",
            help="hold two sets of items out of everything that is fitted, train without them, "
            "and ask for them; in FOLDER/cold",
        )  # fmt: skip
        to.add_argument(
            "--time", action="store_true",
            help="split by one moment for everybody, train on what came before it, and ask for "
            "what came next; in FOLDER/time",
        )  # fmt: skip
    if name == "export":
        to.add_argument(
            "--format", choices=["bundle", "npy", "parquet", "sentence-transformers"],
            default="bundle", help="for the service (the default), or for other software",
        )  # fmt: skip
        to.add_argument(
            "--output", metavar="FOLDER",
            help="with --format: where that is written; default FOLDER/FORMAT",
        )  # fmt: skip
    if name == "encode":
        to.add_argument(
            "--items", metavar="PATH",
            help="items outside of the run, in .jsonl or .parquet files; a path or URL",
        )  # fmt: skip
        to.add_argument("--output", metavar="FOLDER", help="with --items: where shards are written")
        to.add_argument(
            "--engine", choices=["local", "ray"], default="local",
            help="with --items: in this process, or on the Ray cluster of RAY_ADDRESS (else on all "
            "cores or GPUs of this machine)",
        )  # fmt: skip
        to.add_argument(
            "--skip-unusable", action="store_true",
            help="with --items: list a line that is no item beside its shard, and go on",
        )  # fmt: skip
    if name == "compare":
        to.add_argument(
            "--final", action="store_true", help="read the test split, once per configuration"
        )
        to.add_argument(
            "--only", action="append", default=[], metavar="VARIANT",
            help="this variant, beside the reference; may be repeated",
        )  # fmt: skip
    if name == "report":
        to.add_argument(
            "--run", type=Path, required=True, metavar="FOLDER", help="the run's folder"
        )
    if name == "doctor":
        _config(to, "a run, whose LLM and folders are checked", required=False)
    if name == "completion":
        to.add_argument("shell", choices=["bash", "zsh"])


def _config(to: argparse.ArgumentParser, what: str, required: bool) -> None:
    to.add_argument("--config", type=Path, required=required, help=f"TOML file of {what}")
    to.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="change one value of the configuration; may be repeated",
    )  # fmt: skip
    to.add_argument(
        "--source", metavar="PATH", help="folder, .zip file or URL of the data (data.path)"
    )


def _dry_run(name: str, to: argparse.ArgumentParser) -> None:
    if name not in {"compare", "fetch"}:
        to.add_argument(
            "--dry-run", action="store_true",
            help="change nothing: print what would be done, and an estimate of time, memory and "
            "disk out of a measurement of some seconds",
        )  # fmt: skip


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What a command line asks for.

    Raises:
        SystemExit: help was asked for, or the command line is wrong; 0 or MISUSED.
    """
    parser = build_parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse(parser, given.command, unknown[0])
    _check(parser, given)
    return given


def _refuse(parser: argparse.ArgumentParser, command: str, word: str) -> NoReturn:
    """Say of an option where it belongs."""
    option = word.partition("=")[0]
    places = [
        name
        for name, each in subparsers(parser).items()
        if any(option in action.option_strings for action in each._actions)
    ]
    if places:
        parser.error(f"{option} goes with {' or '.join(places)}, not with {command}")
    parser.error(f"{command} has no option or argument {word}")


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name, the parser of each command."""
    return dict(_commands(parser).choices)


def _commands(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction[_Parser]":
    (found,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return found


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse options that say nothing together."""
    if given.command == "evaluate" and given.cold and given.time:
        parser.error("--cold and --time are two evaluations; ask for one after the other")
    if given.command == "encode":
        if bool(given.items) != bool(given.output):
            parser.error("--items and --output FOLDER go together")
        if not given.items and (given.skip_unusable or given.engine != "local"):
            parser.error("--skip-unusable and --engine go with --items")
    if given.command == "export" and given.output and given.format == "bundle":
        parser.error("--output goes with a --format for other software")
    if given.command == "encode" and given.items and given.dry_run:
        parser.error("--dry-run plans a run's own steps, and --items are no part of it")
    if given.command == "export" and given.format != "bundle" and given.dry_run:
        parser.error("--dry-run plans a run's own steps, and vectors for other software are none")


def completion(shell: str) -> str:
    """A script that completes `python -m training` in bash or zsh, as the options are now."""
    import shtab  # noqa: PLC0415 - needed here alone

    parser = build_parser()
    parser.prog = "training"
    _commands(parser).help = "what to do"  # shtab leaves out what has no help
    for each in subparsers(parser).values():
        for action in each._actions:
            if action.dest in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script + (BASH if shell == "bash" else ZSH)


# shtab completes a command of one word; these let `python -m training` be one.
BASH = r"""
_llmemb_python() {
  if [[ "${COMP_WORDS[1]-}" == -m && "${COMP_WORDS[2]-}" == training && $COMP_CWORD -gt 2 ]]; then
    COMP_WORDS=(training "${COMP_WORDS[@]:3}")
    COMP_CWORD=$((COMP_CWORD - 2))
    _shtab_training
  else
    COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
  fi
}
complete -o filenames -F _llmemb_python python python3
"""
ZSH = r"""
_llmemb_python() {
  if [[ ${words[2]} == -m && ${words[3]} == training ]] && (( CURRENT > 3 )); then
    words=(training ${words[4,-1]})
    (( CURRENT -= 2 ))
    _shtab_training
  else
    _files
  fi
}
compdef _llmemb_python python python3
"""
