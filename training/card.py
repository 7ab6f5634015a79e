"""MODEL_CARD.md of a bundle: what it was made of, how good it is, what it is for and is not."""

import json
import time
from collections import Counter
from typing import Any

from models.item import is_missing
from models.llm import licence_of
from models.manifest import Manifest
from training import JobError
from training.evaluate import by_popularity
from training.fetch import LLMS
from training.journal import Journal, without_secrets
from training.machine import machine
from training.prepare import read_prepared
from training.recipe import STEPS, Run, cold_run
from training.report import as_markdown, cold_as_markdown, popularity_as_markdown
from training.run_llm import RunLLM

ATTRIBUTES_SHOWN = 12
FEW = 1000  # tested users, below which an interval is wide

INTENDED = """\
- To recommend items of this catalogue to somebody with a history in it, and items that are
  described by the same attributes and came later.
- To find items that are alike, and as item vectors of another recommender.

It is not meant to decide about people, or for catalogues of another kind or language without being
measured there."""


def model_card(run: Run, manifest: Manifest) -> str:
    """The card of a finished run, as Markdown.

    Args:
        manifest: of the bundle that the card lies in; its hashes are told.

    Raises:
        JobError: a step of the run is not finished.
    """
    config = run.config
    figures = run.finished("evaluate").facts
    sections = {
        "What it is": _what(manifest),
        "Intended use": INTENDED,
        "Data": _data(run),
        "How good it is": "\n".join(
            [
                f"Protocol: {figures['protocol']}. Brackets are 95 % intervals, by bootstrap over "
                f"users. One seed ({config.rat.seed}). Head are the fifth of items with most "
                "interactions in training, tail are the rest, cold are those without any; id-only "
                "is a model of the same kind that reads no attributes.",
                "",
                as_markdown(figures),
                "### By the target's interactions in training, full catalogue",
                "",
                popularity_as_markdown(by_popularity(run), figures["k"]),
            ]
        ),
        "Limits": _limits(run),
        "How it was made": _made(run, manifest),
        "Hashes": _list(
            {
                "bundle": f"`{manifest.bundle_hash}`, of all that changes an answer",
                "base LLM": f"`{manifest.llm.sha256}`",
                "training data": f"`{manifest.data}`",
            }
        ),
    }
    text = "\n".join(f"## {title}\n\n{body.rstrip()}\n" for title, body in sections.items())
    return f"# Model card of `{manifest.name}`\n\n{text}"


def _list(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {label}: {value}" for label, value in facts.items())


def _what(manifest: Manifest) -> str:
    """The views and their weights."""
    lines = [
        f"Vectors of {manifest.items:,} items out of their attributes, and a recommender over "
        "histories of them: a sum of views, each of which reads a history in its own way.",
        "",
        "| part | width | vectors of items | read by | weight |",
        "|---|--:|---|---|--:|",
    ]
    told = {
        "projection": "trained projection of the LLM's; new items have it",
        "content": "the LLM's, scaled; new items have it",
        "table": "learnt of interactions; new items lack it",
    }
    lines += [
        f"| {view.name} | {view.width} | {told[view.source]} | {view.sequence_model} "
        f"| {view.weight:.3g} |"
        for view in manifest.views
    ]
    if manifest.neighbours:
        weight = f"{manifest.neighbours.weight:.3g}"
        lines.append(f"| neighbours | | what followed what in training | counts | {weight} |")
    return "\n".join(lines)


def _data(run: Run) -> str:
    facts, data = run.finished("prepare").facts, run.config.data
    catalogue, split = read_prepared(run)
    told = Counter(
        name
        for item in catalogue
        for name, value in item.attributes.items()
        if not is_missing(value) and name not in run.config.template.exclude
    )
    shown = [
        f"{name} ({100 * count / len(catalogue):.0f} %)"
        for name, count in told.most_common(ATTRIBUTES_SHOWN)
    ]
    rest = len(told) - len(shown)
    out = {
        "users with too few interactions": facts["users_left_out"],
        "interactions with unknown items": facts["interactions_with_unknown_items"],
        "repeated interactions": facts["interactions_repeated"],
        "interactions outside of the core": facts.get("interactions_outside_core", 0),
        "items without attributes": facts.get("items_without_attributes", 0),
    }
    left = ", ".join(f"{count:,} {label}" for label, count in out.items() if count)
    return _list(
        {
            "format": data.source,
            "items": f"{facts['items']:,}, "
            f"{facts['items_without_training_interactions']:,} without interactions in training",
            "users": f"{facts['users']:,}; their ids are not in the bundle",
            "interactions": f"{facts['interactions']:,}, {int(split.counts.sum()):,} of them train",
            "attributes that are read, and how many items have them": ", ".join(shown)
            + (f", and {rest} more" if rest > 0 else ""),
            "left out": left or "nothing",
            "split": f"{data.split}; {len(split.validation):,} users validate, "
            f"{len(split.test):,} test",
        }
    )


def _limits(run: Run) -> str:
    _, split = read_prepared(run)
    lines = [
        "- Measured on what people did, not by asking them: what was never shown could not be "
        "chosen. Intervals are over users, not over seeds or days.",
        "- Nothing is known here of fairness towards groups of users: the data says nothing of "
        "them but their histories.",
        "- What the LLM took from its training text, prejudice too, is in the vectors, and it "
        "knows languages as well as it did there.",
    ]
    if run.config.data.split == "leave-one-out":
        lines.append(
            "- Leave-one-out lets the model learn of other users' later interactions, as a service "
            "cannot; `evaluate --time` measures without."
        )
    if len(split.test) < FEW:
        lines.append(f"- Only {len(split.test):,} users test, so intervals are wide.")
    return "\n".join([*lines, _cold(run)])


def _cold(run: Run) -> str:
    """What items reach that nothing fitted has seen, where that was measured."""
    try:
        figures = cold_run(run.config).finished("evaluate").facts
    except JobError:
        return (
            "- Items that came after training were not measured by themselves; `evaluate --cold` "
            "does that."
        )
    table = cold_as_markdown(figures)
    return f"\nItems that nothing fitted has seen, in a run of its own:\n\n{table}"


def _made(run: Run, manifest: Manifest) -> str:
    config, journal = run.config, Journal(run.folder)
    llm, tuned, here = RunLLM.of(run), run.finished("scft").facts, machine()
    pinned = LLMS.get(config.llm.path)
    licence = pinned.licence if pinned else licence_of(llm.folder)
    took = {name: journal.took(name, run.folder / name) for name in STEPS}
    times = [f"{name} {each.seconds:,.0f} s" for name, each in took.items() if each]
    revision = f", revision {manifest.llm.revision}" if manifest.llm.revision else ""
    scft = f"{tuned['steps']:,} steps of SCFT ({config.scft.objective}) with LoRA"
    facts = {
        "base LLM": f"{manifest.llm.name}{revision}",
        "licence of the base LLM": licence or "not known; see where the LLM came from",
        "tuned": scft if manifest.adapter else "no, the LLM is as it came",
        "dtype": manifest.dtype,
        "prompt": f"`{manifest.template.instruction.strip()}` and then its attributes",
        "seeds": f"{config.seed}, of the sequence models {config.rat.seed}",
        "software": f"llmemb {manifest.version}, {time.strftime('%Y-%m-%d')}",
        "machine": f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB"
        + (f", {here['gpu']}" if here["gpu"] else ""),
        "time": ", ".join(times) or "not written down",
    }
    commands = [line["command"] for line in journal.lines() if line.get("event") == "command"]
    settings = json.dumps(
        config.model_dump(mode="json", exclude_defaults=True), indent=1, ensure_ascii=False
    )
    return "\n".join(
        [
            _list(facts),
            "",
            "Commands, in their order:",
            "",
            "```sh",
            *(dict.fromkeys(commands) or ["# none was written down"]),
            "```",
            "",
            "Settings that are not the defaults:",
            "",
            "```json",
            without_secrets(settings),
            "```",
        ]
    )
