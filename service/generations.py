"""The index on disk, so that a start need not make it anew: a folder a generation.

What stands here is derived from the catalogue's database, and only ever believed after its
checksums were compared, and as far as the database says the same: each place has the version of
its item, and versions never come twice. A generation is written beside the others, synced and then
renamed; the one before it is kept, and the newest of another bundle, for the way back.

index/COUNT/manifest.json   what it is of; SHA-256 of every other file
index/COUNT/columns.npz     the attributes that filters may name; see service.columns
index/COUNT/places.npz      `versions` (n,), and `present` (n,) of each view, as VIEW.present
index/COUNT/VIEW.faiss      the vectors of a view; VIEW.probes beside it where they are clustered
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
KEPT = 2  # generations of a bundle
FORMAT = 1
ROOM = 2**26  # bytes that a generation leaves free on the disk, for the catalogue itself


class Of(NamedTuple):
    """What a generation is an index of; another one says nothing of it."""

    catalogue: str
    bundle: str
    making: str  # which of all times that the bundle's vectors were made; see beside.Known
    quantised: bool
    widths: Mapping[str, int]
    filterable: list[str] | None  # in order; see CatalogueStore


class Generation(NamedTuple):
    """A main block as it was; see index.Main.

    Attributes:
        number: its latest version.
    """

    number: int
    vectors: Mapping[str, Vectors]
    present: Mapping[str, Mask]
    versions: Versions
    columns: Columns


def write(catalogue: Path, main: Main, of: Of) -> None:
    """Have a main block on disk, whole or not at all.

    Raises:
        OSError: it cannot be written, or would take the room that the catalogue needs.
    """
    number = int(main.versions.max(initial=0))
    folder = catalogue / FOLDER
    folder.mkdir(exist_ok=True)
    size = sum(4 * vectors.width * len(vectors) for vectors in main.vectors.values())
    if shutil.disk_usage(folder).free < 2 * size + ROOM:
        raise OSError(f"{folder} has not much more room than the {size} bytes of its vectors")
    counts = _counts(catalogue)
    partial = folder / f"{1 + max(counts, default=0)}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        arrays: dict[str, Any] = {f"{view}.present": has for view, has in main.present.items()}
        np.savez(partial / PLACES, versions=main.versions, **arrays)
        columns: dict[str, Any] = main.columns.arrays
        np.savez(partial / COLUMNS, **columns)
        for view, vectors in main.vectors.items():
            vectors.write(partial / f"{view}.faiss")
        files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        manifest = {**_manifest(of), "number": number, "files": files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in [*partial.iterdir(), partial]:
            sync(path)
        partial.rename(partial.with_suffix(""))
        sync(folder)
    except RuntimeError as error:  # FAISS'
        raise OSError(f"{partial} cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _prune(catalogue, of)


def _prune(catalogue: Path, of: Of) -> None:
    own = others = 0
    for count in _counts(catalogue):
        folder = catalogue / FOLDER / str(count)
        told = _told(folder)
        if told.get("making") == of.making:
            own += 1
            keep = own <= KEPT
        else:
            others += 1
            keep = others == 1 and bool(told)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def clean(catalogue: Path, changes: int) -> None:
    """Remove what a killed process left, and what is of changes that the catalogue has not had.

    Those are of a catalogue that a backup has taken the place of: the same versions come again, for
    other items. To be called before anything is written to the catalogue.

    Args:
        changes: how many the catalogue has had.
    """
    folder = catalogue / FOLDER
    for partial in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)
    for count in _counts(catalogue):
        number = _told(folder / str(count)).get("number")
        if isinstance(number, int) and number > changes:
            log.warning("generation %d of the index is of another catalogue, and removed", count)
            shutil.rmtree(folder / str(count))


def newest(catalogue: Path, of: Of) -> Generation | None:
    """The newest generation that is whole; None if there is none. Those that are not are told."""
    for count in _counts(catalogue):
        try:
            return _read(catalogue / FOLDER / str(count), of)
        except (OSError, ValueError, KeyError) as error:
            log.warning("generation %d of the index is not used: %s", count, error)
    return None


def _manifest(of: Of) -> dict[str, Any]:
    return {"format": FORMAT, **of._asdict(), "widths": dict(of.widths)}


def _told(folder: Path) -> dict[str, Any]:
    """What a generation's manifest says, if it can be read."""
    try:
        told = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _read(folder: Path, of: Of) -> Generation:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    files, number = manifest.pop("files"), manifest.pop("number")
    if manifest != _manifest(of):
        raise ValueError("it is of another catalogue, bundle, precision or version")
    needed = {PLACES, COLUMNS, *(f"{view}.faiss" for view in of.widths)}
    if lacks := needed - files.keys():
        raise ValueError(f"{min(lacks)} is not in it")
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


def _counts(catalogue: Path) -> list[int]:
    """Of the generations there are, the newest first."""
    folder = catalogue / FOLDER
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
