"""Embed the rows of a CSV through the service: a row is an item, a column an attribute.

    python examples/embed_csv.py products.csv --id sku --list categories=| --output vectors

writes vectors/vectors.npy, (rows, width) float32, and vectors/item_ids.json in the same order. The
catalogue is not changed. Needs httpx and numpy, and a service (`make serve`); its templates decide
which attributes are read, so columns should be called as they were in training.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np
from client import Client, NewItem, Problem

AT_ONCE = 16  # a request has a deadline, and a small processor reads a few texts a second


def read_items(path: Path, id_column: str, lists: Mapping[str, str]) -> Iterator[NewItem]:
    """The rows of a CSV as items; empty cells are no attributes.

    Args:
        lists: of columns that hold several values, what stands between them.

    Raises:
        ValueError: there is no such column, or an id is empty or stands twice; names the line.
    """
    seen: set[str] = set()
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        for name in (id_column, *lists):
            if name not in columns:
                raise ValueError(f"{path} has no column {name!r}; it has {', '.join(columns)}")
        for row in rows:
            item_id = row.pop(id_column)
            if not item_id or item_id in seen:
                fault = f"{item_id!r} stands twice" if item_id else "is empty"
                raise ValueError(f"{path} line {rows.line_num}: the {id_column} {fault}")
            seen.add(item_id)
            # A row that is longer than the header has the rest under None.
            cells = {name: text for name, text in row.items() if name is not None and text}
            yield {
                "item_id": item_id,
                "attributes": {
                    name: [part.strip() for part in text.split(lists[name])]
                    if name in lists
                    else text
                    for name, text in cells.items()
                },
            }


def embed(service: Client, items: Sequence[NewItem], view: str) -> Iterator[list[float]]:
    """The vector of each item in one view, so few at once that each answer is in time."""
    at_once = min(AT_ONCE, service.info()["limits"]["max_items"])
    for start in range(0, len(items), at_once):
        for each in service.embed(items[start : start + at_once], view):
            yield each["vectors"][view]
        print(f"{min(start + at_once, len(items))} of {len(items)}", file=sys.stderr)


def main() -> None:
    """Read the arguments, embed, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("csv", type=Path)
    parser.add_argument("--id", default="item_id", help="the column of ids (default item_id)")
    parser.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="COLUMN=SEPARATOR",
        help="a column that holds several values, and what stands between them",
    )
    parser.add_argument("--view", default="text", help="of GET /info, or llm (default text)")
    parser.add_argument("--output", type=Path, default=Path("vectors"), help="a folder")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", help="an API key, where the service has them")
    arguments = parser.parse_args()
    lists = dict(each.partition("=")[::2] for each in arguments.list)
    if not all(lists.values()):
        parser.error("--list wants COLUMN=SEPARATOR, as in --list genres=|")
    try:
        items = list(read_items(arguments.csv, arguments.id, lists))
        if not items:
            raise ValueError(f"{arguments.csv} has no rows")
        with Client(arguments.url, arguments.key) as service:
            vectors = np.array(list(embed(service, items, arguments.view)), np.float32)
    except (OSError, ValueError, Problem, httpx.TransportError) as error:
        sys.exit(str(error))
    arguments.output.mkdir(parents=True, exist_ok=True)
    np.save(arguments.output / "vectors.npy", vectors)
    (arguments.output / "item_ids.json").write_text(json.dumps([each["item_id"] for each in items]))
    print(f"{len(items)} vectors of {vectors.shape[-1]} numbers in {arguments.output}/")


if __name__ == "__main__":
    main()
