"""The index on disk, so that a start need not make it anew: a folder a generation.

What stands here is derived from the catalogue's database, and only ever believed after its
checksums were compared, and as far as the database says the same: each place has the version of
its item, and versions never come twice. A generation is written beside the others, synced and then
renamed; the one before it is kept.

index/NUMBER/manifest.json   what it is of; SHA-256 of every other file
index/NUMBER/columns.npz     the attributes that filters may name; see service.columns
index/NUMBER/places.npz      `versions` (n,), and `present` (n,) of each view, as VIEW.present
index/NUMBER/VIEW.faiss      the vectors of a view; VIEW.probes beside it where they are clustered
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service.columns import Columns
from service.index import Main, Versions
from service.schema import sync
from service.vectors import Mask, Vectors, read_vectors

log = logging.getLogger(__name__)

FOLDER = "index"
MANIFEST = "manifest.json"
PLACES = "places.npz"
COLUMNS = "columns.npz"
PARTIAL = ".partial"
KEPT = 2  # generations
FORMAT = 1


class Of(NamedTuple):
    """What a generation is an index of; another one says nothing of it."""

    catalogue: str
    bundle: str
    quantised: bool
    widths: Mapping[str, int]
    filterable: list[str] | None  # in order; see CatalogueStore


class Generation(NamedTuple):
    """A main block as it was; see index.Main."""

    number: int
    vectors: Mapping[str, Vectors]
    present: Mapping[str, Mask]
    versions: Versions
    columns: Columns


def write(catalogue: Path, main: Main, of: Of) -> int:
    """Have a main block on disk, whole or not at all; its number, which is its latest version.

    Raises:
        OSError: it cannot be written.
    """
    number = int(main.versions.max(initial=0))
    folder = catalogue / FOLDER
    partial = folder / f"{number}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        arrays: dict[str, Any] = {f"{view}.present": has for view, has in main.present.items()}
        np.savez(partial / PLACES, versions=main.versions, **arrays)
        columns: dict[str, Any] = main.columns.arrays
        np.savez(partial / COLUMNS, **columns)
        for view, vectors in main.vectors.items():
            vectors.write(partial / f"{view}.faiss")
        files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        manifest = {"format": FORMAT, **of._asdict(), "widths": dict(of.widths), "files": files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in [*partial.iterdir(), partial]:
            sync(path)
        shutil.rmtree(folder / str(number), ignore_errors=True)
        partial.rename(folder / str(number))
        sync(folder)
    except RuntimeError as error:  # FAISS'
        raise OSError(f"{partial} cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _numbers(catalogue)[KEPT:]:
        shutil.rmtree(folder / str(old), ignore_errors=True)
    return number


def newest(catalogue: Path, of: Of) -> Generation | None:
    """The newest generation that is whole; None if there is none. Those that are not are told."""
    for partial in (catalogue / FOLDER).glob(f"*{PARTIAL}"):  # what a killed process left
        shutil.rmtree(partial, ignore_errors=True)
    for number in _numbers(catalogue):
        try:
            return _read(catalogue / FOLDER / str(number), number, of)
        except (OSError, ValueError, KeyError) as error:
            log.warning("generation %d of the index is not used: %s", number, error)
    return None


def _read(folder: Path, number: int, of: Of) -> Generation:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    files = manifest.pop("files")
    if manifest != {"format": FORMAT, **of._asdict(), "widths": dict(of.widths)}:
        raise ValueError("it is of another catalogue, bundle, precision or version")
    for name, digest in files.items():
        if _sha256(folder / name) != digest:
            raise ValueError(f"{name} is damaged")
    with np.load(folder / PLACES) as arrays:
        versions = arrays["versions"]
        present = {view: arrays[f"{view}.present"] for view in of.widths}
    with np.load(folder / COLUMNS) as arrays:
        columns = Columns.of_arrays(len(versions), arrays)
    vectors = {
        view: read_vectors(folder / f"{view}.faiss", present[view], quantised=of.quantised)
        for view in of.widths
    }
    return Generation(number, vectors, present, versions, columns)


def _numbers(catalogue: Path) -> list[int]:
    """Of the generations there are, the newest first."""
    folder = catalogue / FOLDER
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
