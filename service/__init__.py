"""The online side: HTTP in front of a bundle and a catalogue. Never imports training."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def version() -> str:
    """The installed version of llmemb; `0+unknown` when run from a bare folder."""
    try:
        return installed_version("llmemb")
    except PackageNotFoundError:
        return "0+unknown"
