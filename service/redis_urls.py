"""Addresses of Redis: one server, Sentinel's choice of several, or a Cluster; with TLS or without.

redis://[[user]:password@]host:port/0                    one server; rediss:// with TLS
redis+sentinel://[[user]:password@]host:port,host:port/name/0
redis+cluster://[[user]:password@]host:port,host:port    rediss+… with TLS
"""

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
PORT, SENTINEL_PORT = 6379, 26379


class RedisClient(Protocol):
    """The calls of a client that a cache makes."""

    def mget(self, keys: list[str]) -> Awaitable[list[Any]]:
        """Of each key its value, or None."""
        ...

    def get(self, name: str) -> Awaitable[Any]:
        """The value of a key."""
        ...

    def pipeline(self, transaction: bool = True) -> Any:  # noqa: ANN401 - redis' own class
        """Commands to be sent together."""
        ...

    async def aclose(self) -> None:
        """Let connections go."""
        ...


class _Cluster(RedisCluster):
    """A cluster, where the keys of one MGET lie on several nodes."""

    async def mget(self, keys: list[str], *_: object) -> list[Any]:  # type: ignore[override]
        found: list[Any] = await self.mget_nonatomic(keys)
        return found


class _Chosen(Redis):
    """The server that Sentinels name; lets the connections to them go, too."""

    sentinels: Sequence[Redis] = ()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        for sentinel in self.sentinels:
            await sentinel.aclose()


def connect(url: str, timeout_s: float) -> RedisClient:
    """A client that waits `timeout_s` at most for a connection or an answer, and never retries.

    Raises:
        ValueError: the address is none of those above; says what is wrong with it.
    """
    check(url)
    parts = urlsplit(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    if parts.scheme in {"redis", "rediss", "unix"}:
        client: RedisClient = Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        return client
    if parts.scheme.startswith("rediss"):
        options |= {"ssl": True} | {
            name: values[0]
            for name, values in parse_qs(parts.query).items()
            if name in {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"}
        }
    who, _, _ = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    if parts.scheme in CLUSTER_SCHEMES:
        nodes = [ClusterNode(host, port) for host, port in _hosts(url, PORT)]
        return _Cluster(startup_nodes=nodes, retry=Retry(NoBackoff(), 0), **options)
    name, _, number = parts.path.strip("/").partition("/")
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        _hosts(url, SENTINEL_PORT),
        sentinel_kwargs={
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
        },
    )
    chosen: _Chosen = sentinel.master_for(
        name, redis_class=_Chosen, db=int(number or 0), retry=Retry(NoBackoff(), 0), **options
    )
    chosen.sentinels = sentinel.sentinels
    return chosen


def check(url: str) -> str:
    """The address, if it is one.

    Raises:
        ValueError: it is not; says why. A password is not repeated.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES + CLUSTER_SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES + CLUSTER_SCHEMES)
        raise ValueError(f"must begin with one of {known}")
    if parts.scheme != "unix":
        hosts = _hosts(url, PORT)
        if not hosts or not all(host for host, _ in hosts):
            raise ValueError("names no host")
    name, _, number = parts.path.strip("/").partition("/")
    if parts.scheme.endswith("sentinel"):
        if not name:
            raise ValueError("must name Sentinel's service: …://host:26379/name")
        if number and not number.isdecimal():
            raise ValueError(f"the database is {number!a}, and must be a number")
    return url


def _hosts(url: str, port: int) -> list[tuple[str, int]]:
    where = urlsplit(url).netloc.rpartition("@")[2]
    found = []
    for each in where.split(","):
        host, _, given = each.rpartition(":") if not each.endswith("]") else (each, "", "")
        if not host:
            host, given = given, ""
        if given and not given.isdecimal():
            raise ValueError(f"the port {given!a} is no number")
        found.append((host.strip("[]"), int(given or port)))
    return found
