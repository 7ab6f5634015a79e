"""API keys: who may ask for what. A route is closed unless one of two lists opens it."""

import hashlib
import hmac
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.errors import Forbidden, Unauthenticated
from service.settings import PREFIX, BadSettings

log = logging.getLogger(__name__)

KeyScope = Literal["read", "write"]
ALL: frozenset[KeyScope] = frozenset({"read", "write"})

# OPEN: for everybody, with a key or without. Probes and scrapers have none, the documentation
# says how to use one, and the page asks for one.
OPEN = frozenset(
    {"/", "/health/live", "/health/ready", "/metrics", "/docs", "/docs/start.js", "/openapi.json"}
)
OPEN_FOLDERS = ("/static-offline-docs/", "/web/")  # what /docs and the page load
# READ: routes that change nothing. All others, also those that do not exist, need `write`.
READ_METHODS = frozenset({"GET", "HEAD"})
READ_POSTS = frozenset({"/embed", "/items:lookup", "/recommend", "/search", "/v1/embeddings"})

WORLD_READABLE = 0o004


def is_open(path: str) -> bool:
    """Whether a path, decoded, needs no key."""
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def scope_needed(method: str, path: str) -> KeyScope:
    """What a key must hold for a route that is not open."""
    reads = method in READ_METHODS or (method == "POST" and path in READ_POSTS)
    return "read" if reads else "write"


@dataclass(frozen=True)
class Key:
    """A key as it is kept: its SHA-256, never the key."""

    name: str
    scopes: frozenset[KeyScope]
    digest: bytes


def require(key: Key, method: str, path: str) -> None:
    """Let a key through.

    Raises:
        Forbidden: its scopes do not hold what the route needs.
    """
    needed = scope_needed(method, path)
    if needed not in key.scopes:
        raise Forbidden(
            f"this needs the scope {needed}; the key {key.name!r} has {','.join(key.scopes)}"
        )


class Keys:
    """The keys that are known."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)

    def identify(self, authorization: str | None) -> Key:
        """Whose key an Authorization header holds.

        Raises:
            Unauthenticated: none, or one that is not known.
        """
        kind, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if kind.lower() != "bearer" or not token:
            raise Unauthenticated("send an API key: `Authorization: Bearer KEY`")
        key = self._find(token)
        if key is None:
            raise Unauthenticated("the API key is not known")
        return key

    def _find(self, token: str) -> Key | None:
        digest = hashlib.sha256(token.encode("latin-1", "replace")).digest()
        found = None
        for key in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def read_keys(path: Path) -> Keys:
    """The keys in a file: `name scopes key` a line, blank lines and # comments aside.

    Scopes are `read`, `write` or `read,write`. The key is plain or `sha256:` and 64 hex digits.

    Raises:
        BadSettings: it cannot be read, or a line cannot be used; says which, never what it holds.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
        readable_by_all = path.stat().st_mode & WORLD_READABLE
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadSettings(f"{PREFIX}API_KEYS_FILE is {path}: {reason}") from None
    keys: list[Key] = []
    plain = 0
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            keys.append(_key(fields))
            if len({key.name for key in keys}) < len(keys):
                raise ValueError("its name stands twice")
            if len({key.digest for key in keys}) < len(keys):
                raise ValueError("its key stands twice")
        except ValueError as error:
            raise BadSettings(f"{PREFIX}API_KEYS_FILE: line {number} of {path}: {error}") from None
        plain += not fields[2].startswith("sha256:")
    if not keys:
        raise BadSettings(f"{PREFIX}API_KEYS_FILE is {path}, which holds no key")
    if plain and readable_by_all:
        log.warning(
            "%s holds %d plain keys and everybody on this machine may read it; "
            "chmod o-r, or write sha256:HEX in their place",
            path,
            plain,
        )
    return Keys(keys)


def _key(fields: Sequence[str]) -> Key:
    if len(fields) != 3:
        raise ValueError(f"it has {len(fields)} fields; write `name scopes key`")
    name, scopes, secret = fields
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise ValueError("a name is 1 to 64 letters, digits, dots, dashes and underscores")
    held = frozenset(scope for scope in ALL if scope in scopes.split(","))
    if len(held) != len(scopes.split(",")):
        raise ValueError("scopes are read, write or read,write")
    if secret.startswith("sha256:"):
        if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", secret):
            raise ValueError("sha256: is followed by 64 hex digits")
        digest = bytes.fromhex(secret.removeprefix("sha256:"))
    elif re.fullmatch(r"[!-~]+", secret):
        digest = hashlib.sha256(secret.encode()).digest()
    else:
        raise ValueError("a key is of visible ASCII characters")
    return Key(name, held, digest)
