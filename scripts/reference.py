"""What the reference pages quote from the code: settings, API, commands, metrics, errors, manifest.

Each function gives Markdown. `python -m tests.test_documents` writes it below the line MARK of its
page, and a test says when a page is behind the code.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from models.manifest import Manifest
from scripts.scaling import scaling
from service.__main__ import build_parser as service_parser
from service.auth import is_open, scope_needed
from service.errors import STATUS, openai_code, problem_type
from service.metrics import Metrics
from service.settings import PREFIX, Settings
from training.command_line import COMMANDS, PROGRAM, subparsers
from training.command_line import build_parser as training_parser
from training.config import RunConfig

ROOT = Path(__file__).parents[1]
MARK = "<!-- What follows is written by `python -m tests.test_documents`. -->\n\n"
API = ROOT / "tests" / "service" / "openapi.json"
SERVICE = "python -m service"
# Tags of the API in the order in which a reader needs them.
TAGS = {
    "recommend": "Recommend and search",
    "embed": "Embed",
    "items": "Items",
    "openai": "For OpenAI's clients",
    "bundles": "Bundles",
    "service": "The service itself",
}
WIDTH = 90  # of a line of an example
Schema = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; what would end a cell is kept in it."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = (" ".join(cell.replace("|", "\\|").split()) for cell in row)
        lines.append(f"| {' | '.join(cells)} |".replace("  |", " |"))
    return "\n".join(lines) + "\n"


# --- settings ----------------------------------------------------------------------------------


def settings() -> str:
    """The service's environment variables, then all that a run's TOML file may say."""
    service = (
        (f"`{PREFIX}{name.upper()}`", _default(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    )
    parts = (
        "## The service\n",
        table(["variable", "default", ""], service),
        "## A training run\n",
        table(["setting", "default", ""], _sections(RunConfig, "")),
    )
    return "\n".join(parts)


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    return "" if value in (None, "") else f"`{value}`"


def _sections(model: type[BaseModel], prefix: str) -> Iterable[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _sections(kind, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if field.is_required() else f"`{default!r}`"
        yield f"`{prefix}{name}`", shown, field.description or ""


# --- metrics and errors ------------------------------------------------------------------------


def metrics() -> str:
    """Every metric of the service itself, by name."""
    found = (each for each in vars(Metrics()).values() if isinstance(each, MetricWrapperBase))
    return table(["metric", "kind", ""], map(_metric, found))


def _metric(metric: MetricWrapperBase) -> tuple[str, str, str]:
    (family,) = metric.describe()
    # A counter is told by the name under which it is scraped.
    name = family.name + ("_total" if family.type == "counter" else "")
    told = family.documentation
    if metric._labelnames:
        told += f" By {', '.join(f'`{label}`' for label in metric._labelnames)}."
    return f"`{name}`", family.type, told


def errors() -> str:
    """Every type of problem, with its status, its code for OpenAI's clients, and when it comes."""
    rows = []
    for kind, status in STATUS.items():
        told = f"{status.value} {status.phrase}"
        rows.append((f"`{problem_type(kind)}`", told, f"`{openai_code(kind)}`", _first(kind)))
    return table(["`type`", "status", "`code` below `/v1/`", "when"], rows)


def _first(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


# --- the bundle --------------------------------------------------------------------------------


def manifest() -> str:
    """The fields of manifest.json."""
    schema = Manifest.model_json_schema()
    return table(["field", "type", ""], _fields(schema, schema))


def _fields(root: Schema, schema: Schema, prefix: str = "") -> Iterable[Sequence[str]]:
    """Every field of a schema and of those in it, with its type."""
    for name, field in schema["properties"].items():
        inner = _object_in(field, root)
        if inner is None:
            kind = told_type(field)
            yield f"`{prefix}{name}`", kind, _said(field, kind)
            continue
        listed = "[]" if field.get("type") == "array" else ""
        said = field.get("description") or str(inner.get("description", "")).partition("\n")[0]
        yield f"`{prefix}{name}`", "list of objects" if listed else "object", said
        yield from _fields(root, inner, f"{prefix}{name}{listed}.")


def _object_in(field: Schema, root: Schema) -> Schema | None:
    """The object that a field is, may be or is a list of; None if it is something else."""
    for each in (field, field.get("items", {}), *field.get("anyOf", ())):
        if "$ref" in each:
            found: Schema = root["$defs"][each["$ref"].rpartition("/")[2]]
            return found if "properties" in found else None
    return None


# --- the API -----------------------------------------------------------------------------------


def api() -> str:
    """Every route by its tag, then every body."""
    document = json.loads(API.read_text())
    by_tag: dict[str, list[str]] = {tag: [] for tag in TAGS}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            (tag,) = operation["tags"]
            by_tag[tag].append(_operation(method.upper(), path, operation))
    parts = [f"## {TAGS[tag]}\n\n{''.join(told)}" for tag, told in by_tag.items()]
    bodies = {_body_name(name): each for name, each in document["components"]["schemas"].items()}
    told = (_body(name, each) for name, each in bodies.items() if name != VALUE)
    return "".join(parts) + "## Bodies\n\n" + "\n".join(told)


def _operation(method: str, path: str, operation: Schema) -> str:
    lines = [f"### `{method} {path}`", "", f"**{operation['summary']}.**"]
    lines[-1] = lines[-1].replace("?.**", "?**")
    # Lines that stand after an empty one are a paragraph of their own.
    lines += [" ".join(part.split()) + "\n" for part in operation["description"].split("\n\n")]
    scope = "none, open to all" if is_open(path) else f"`{scope_needed(method, path)}`"
    facts = [f"Scope: {scope}."]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        facts.append(f"Body: {told_type(content['schema'])}{_media(media)}.")
    answers = {int(status): told for status, told in operation["responses"].items()}
    for status, told in answers.items():
        if status < 400:
            facts.append(_answer(status, told))
    refused = ", ".join(str(status) for status in answers if status >= 400)
    facts.append(f"[Errors](errors.md): {refused}.")
    lines += [f"- {fact}" for fact in facts]
    parameters = [
        (f"`{each['name']}`", each["in"], told_type(each["schema"]), _said(each))
        for each in operation.get("parameters", ())
    ]
    if parameters:
        lines += ["", table(["parameter", "in", "type", ""], parameters).rstrip()]
    return "\n".join(lines) + "\n\n"


def _answer(status: int, told: Schema) -> str:
    said = told["description"]
    text = f"{status}" + ("" if said == "Successful Response" else f", {said[0].lower()}{said[1:]}")
    for media, content in told.get("content", {}).items():
        text = f"{text.rstrip('.')}: {told_type(content['schema'])}{_media(media)}"
    if "headers" in told:
        text = f"{text.rstrip('.')}, with {', '.join(f'`{name}`' for name in told['headers'])}"
    return text.rstrip(".") + "."


def _media(media: str) -> str:
    return "" if media == "application/json" else f" (`{media}`)"


def _body(name: str, schema: Schema) -> str:
    told = f"### {name}\n\n{schema.get('description', '')}\n\n"
    told += table(["field", "type", ""], _properties(schema, ""))
    for example in schema.get("examples", [])[:1]:
        told += f"\n```json\n{shown(example)}\n```\n"
    return told


def _properties(schema: Schema, prefix: str) -> Iterable[Sequence[str]]:
    needed = schema.get("required", ()) if schema.get("additionalProperties") is False else ()
    for name, field in schema["properties"].items():
        said = ["Required."] if name in needed else []
        kind = told_type(field)
        said.append(_said(field, kind))
        yield f"`{prefix}{name}`", kind, " ".join(said).strip()
        inner = field.get("items", field)
        if "properties" in inner:  # told in place, as it has no name
            listed = "[]" if "items" in field else ""
            yield from _properties(inner, f"{prefix}{name}{listed}.")


def _said(field: Schema, kind: str = "") -> str:
    """What is said of a field or parameter: its description, its bounds and its default."""
    schema = field.get("schema", field)
    parts = [field.get("description", "")]
    parts[0] += "." if parts[0] and parts[0][-1] not in ".:?!" else ""
    parts += [f"{bounds}." for bounds in _bounds(schema) if bounds]
    default = schema.get("default")
    if default not in (None, [], {}) and "object" not in kind:
        parts.append(f"Default `{json.dumps(default, ensure_ascii=False)}`.")
    return " ".join(part for part in parts if part)


def _bounds(schema: Schema) -> Iterable[str]:
    plain = next((each for each in schema.get("anyOf", ()) if each.get("type") != "null"), schema)
    for low, high, what in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
    ):
        least, most = (
            f"{plain[key]:.15g}".removesuffix(".0") if key in plain else None for key in (low, high)
        )
        if least and most and least != most:
            yield f"{least} to {most}{what}"
        elif most and not least:
            yield f"At most {most}{what}"
        elif what and least == "1":
            yield "Not empty"
        elif least and not most:
            yield f"At least {least}{what}"


VALUE = "AttributeValue"  # what an attribute may be; told by its own words


def _body_name(name: str) -> str:
    return name.removesuffix("-Input").removesuffix("-Output")


def told_type(schema: Schema) -> str:
    """What a schema allows, in words; a body by its name, which leads to it."""
    if "$ref" in schema:
        name = _body_name(schema["$ref"].rpartition("/")[2])
        return "[value](#values)" if name == VALUE else f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(map(told_type, schema[several])))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", "any")
    several_kinds = kinds if isinstance(kinds, list) else [kinds]
    return " or ".join(_kind(kind, schema) for kind in several_kinds)


def _kind(kind: str, schema: Schema) -> str:
    if kind == "array" and "items" in schema:
        return f"list of {told_type(schema['items'])}"
    inner = schema.get("additionalProperties")
    if kind == "object" and isinstance(inner, dict) and inner:
        return f"object of {told_type(inner)}"
    return {"array": "list"}.get(kind, kind)


def shown(value: object, indent: str = "") -> str:
    """JSON whose short parts stand on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= WIDTH or not isinstance(value, (dict, list)):
        return flat
    deeper = indent + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {shown(each, deeper)}" for key, each in value.items()]
    else:
        parts = [shown(each, deeper) for each in value]
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    return f"{opened}\n{deeper}" + f",\n{deeper}".join(parts) + f"\n{indent}{closed}"


# --- the command lines -------------------------------------------------------------------------


def commands() -> str:
    """`python -m training` and `python -m service`: every command, its options, examples."""
    training = subparsers(training_parser())
    # Headings without `-m`, of which some viewers make another anchor than others.
    summary = ((f"[`{PROGRAM} {name}`](#training-{name})", COMMANDS[name][0]) for name in training)
    parts = ["## The training jobs\n\n", table(["command", ""], summary), "\n"]
    for name, parser in training.items():
        told, examples = COMMANDS[name]
        parts.append(f"### `training {name}`\n\n{told[0].upper()}{told[1:]}.\n\n")
        parts.append(_options(parser))
        lines = [
            f"{command if command.startswith('eval ') else f'{PROGRAM} {command}'}\n    # {why}"
            for command, why in examples
        ]
        parts.append("```sh\n" + "\n".join(lines).replace("\n    #", "  #") + "\n```\n\n")
    parser = service_parser()
    told = f"`{SERVICE}`, without a command. {parser.description}"
    parts += [f"## The service\n\n{told}\n\n", _options(parser)]
    for name, each in subparsers(parser).items():
        told = " ".join((each.description or "").split())
        parts += [f"### `service {name}`\n\n`{SERVICE} {name}`. {told}\n\n", _options(each)]
    return "".join(parts).rstrip("\n") + "\n"


def _options(parser: argparse.ArgumentParser) -> str:
    rows = []
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        names = ", ".join(action.option_strings) or action.metavar or action.dest
        value = ""
        if action.choices:
            value = " " + "|".join(map(str, action.choices)) if action.option_strings else ""
            names = names if action.option_strings else "|".join(map(str, action.choices))
        elif action.option_strings and action.nargs != 0:
            value = f" {action.metavar or action.dest.upper()}"
        said = action.help or ""
        if action.required and action.option_strings:
            said += " (required)"
        rows.append((f"`{names}{value}`", said))
    return table(["option", ""], rows) + "\n" if rows else ""


PAGES = {
    "docs/reference/settings.md": settings,
    "docs/reference/metrics.md": metrics,
    "docs/reference/errors.md": errors,
    "docs/reference/bundle.md": manifest,
    "docs/reference/api.md": api,
    "docs/reference/commands.md": commands,
    "docs/scaling.md": scaling,
}
