"""Addresses of Milvus: milvus+http://[user:password@]host:port[/database], or milvus+https://."""

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

SCHEMES = ("milvus+http", "milvus+https")
DATABASE = r"[A-Za-z_][A-Za-z0-9_]*"


class Address(NamedTuple):
    """Where Milvus is.

    Attributes:
        uri: without what is secret.
        token: `user:password`; empty where it asks for none.
        database: empty for the one that it has by itself.
    """

    uri: str
    token: str
    database: str


def read(url: str) -> Address:
    """The address in a URL.

    Raises:
        ValueError: it is none; says why. A password is not repeated.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"must be embedded, or begin with one of {_schemes()}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or not port:
        raise ValueError("must name a host and a port, as in milvus+http://milvus:19530")
    database = parts.path.strip("/")
    if database and not re.fullmatch(DATABASE, database):
        raise ValueError(f"the database {database!a} must be letters, digits and _")
    if parts.query or parts.fragment:
        raise ValueError("must end with the port or the database")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    token = ""
    if parts.username or parts.password:
        token = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return Address(f"{parts.scheme.removeprefix('milvus+')}://{host}:{port}", token, database)


def _schemes() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)
