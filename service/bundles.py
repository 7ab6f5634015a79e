"""The bundles that this service may serve: LLMEMB_BUNDLE, and the folders of LLMEMB_BUNDLES_DIR."""

import json
from pathlib import Path
from typing import NamedTuple

from service.errors import UnknownBundle
from service.opening import active_hash
from service.schema import ELSEWHERE, CatalogueError

# The first character keeps `..` out, and none is a slash: a name is never a path.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
MANIFEST = "manifest.json"


class Lying(NamedTuple):
    """A bundle that lies under LLMEMB_BUNDLES_DIR, as its manifest says; nothing is checked."""

    name: str
    folder: Path
    bundle_hash: str


class Bundles:
    """Where bundles lie.

    Args:
        first: LLMEMB_BUNDLE, which seeds a catalogue that is new.
        folder: LLMEMB_BUNDLES_DIR.
    """

    def __init__(self, first: Path, folder: Path | None) -> None:
        self._first = first
        self._folder = folder

    def named(self, name: str) -> Path:
        """The folder of a bundle by its name, which must match NAME.

        Raises:
            UnknownBundle: there is none.
        """
        if self._folder is None:
            raise UnknownBundle(
                "there are no bundles to choose from: set LLMEMB_BUNDLES_DIR to the folder that "
                "they lie in, and restart"
            )
        folder = self._folder / name
        if not (folder / MANIFEST).is_file():
            there = ", ".join(each.name for each in self.lying()[:20]) or "none"
            raise UnknownBundle(f"LLMEMB_BUNDLES_DIR has no bundle {name!a}; there are: {there}")
        return folder

    def lying(self) -> list[Lying]:
        """All that lie under LLMEMB_BUNDLES_DIR, by name."""
        if self._folder is None:
            return []
        try:
            folders = sorted(self._folder.iterdir())
        except OSError:
            return []
        found = ((each, _told(each)) for each in folders)
        return [Lying(each.name, each, told) for each, told in found if told]

    def of(self, bundle_hash: str) -> Path | None:
        """The folder of a bundle by its hash; None where it is nowhere."""
        if _told(self._first) == bundle_hash:
            return self._first
        return next((each.folder for each in self.lying() if each.bundle_hash == bundle_hash), None)

    def name(self, bundle_hash: str) -> str | None:
        """The name of a bundle by its hash, if it lies under LLMEMB_BUNDLES_DIR."""
        return next((each.name for each in self.lying() if each.bundle_hash == bundle_hash), None)

    def to_serve(self, catalogue: Path) -> Path:
        """The folder of the bundle that a catalogue says is active; of a new one, the first.

        Raises:
            CatalogueError: that bundle is nowhere.
        """
        wanted = active_hash(catalogue)
        first = _told(self._first)
        # Where the first says nothing, whoever opens it tells why.
        if wanted is None or first is None or first == wanted:
            return (wanted and self.of(wanted)) or self._first
        folder = self.of(wanted)
        if folder is None:
            where = (
                f"no folder of LLMEMB_BUNDLES_DIR ({self._folder}) holds it: put it back there"
                if self._folder
                else "LLMEMB_BUNDLES_DIR is not set: set it to the folder that it lies in"
            )
            raise CatalogueError(
                f"{catalogue} belongs to bundle {wanted[:12]}…, {self._first} is {first[:12]}…, "
                f"and {where}, or {ELSEWHERE}"
            )
        return folder


def _told(folder: Path) -> str | None:
    """The hash that a folder's manifest says it has."""
    try:
        fields = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    told = fields.get("bundle_hash") if isinstance(fields, dict) else None
    return told if isinstance(told, str) and told else None
