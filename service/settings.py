"""Everything an operator may change without a new image."""

import json
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    DirectoryPath,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.logs import LogFormat
from service.milvus.address import read as milvus_address
from service.redis_urls import check as check_url

PREFIX = "LLMEMB_"
# As browsers send it: no path, no slash at the end, in lower case; and no wildcard.
ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
MAX_ITEMS = 1024  # of one /embed, whatever the operator says


class BadSettings(ValueError):
    """A setting that cannot be used; the message names the variable, its value and the reason."""


EMBEDDED = "embedded"


def _require_store(value: str) -> str:
    if value != EMBEDDED:
        milvus_address(value)
    return value


StoreAddress = Annotated[str, AfterValidator(_require_store)]
STORE: Any = Field(
    EMBEDDED,
    description="what holds the catalogue: embedded is catalogue_dir; "
    "milvus+http://[user:password@]host:port[/database] any number of processes may share",
)
CATALOGUE_DIR: Any = Field(
    Path("catalogue"), description="writable folder of the catalogue, of one process alone"
)


class CatalogueSettings(BaseSettings):
    """What says where the catalogue is; all that a backup needs to know."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    store: StoreAddress = STORE
    catalogue_dir: Path = CATALOGUE_DIR


class ClientSettings(BaseSettings):
    """What a client of a running service on this machine needs to know."""

    model_config = CatalogueSettings.model_config

    port: int = Field(8000, ge=1, le=65535)
    api_key: str | None = None


class Settings(BaseSettings):
    """Read once at start-up from the environment, by read_settings."""

    model_config = CatalogueSettings.model_config

    bundle: DirectoryPath = Field(description="folder that `python -m training export` wrote")
    bundles_dir: DirectoryPath | None = Field(
        None, description="folder of the bundles that `python -m service reindex` may name"
    )
    llm: DirectoryPath | None = Field(
        None, description="folder of the base LLM, for a bundle exported without it"
    )
    dtype: Literal["auto", "bfloat16", "float32", "int8"] = Field(
        "auto", description="what the LLM runs in; auto is what the bundle was encoded in"
    )
    store: StoreAddress = STORE
    catalogue_dir: Path = CATALOGUE_DIR
    index_dtype: Literal["float32", "int8"] = Field(
        "float32",
        description="how vectors are kept in memory beyond 100,000 items; int8 takes a quarter, "
        "and scores are nearly as they were",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    api_keys_file: Path | None = Field(
        None, description="keys that clients must have; a line is `name scopes key`"
    )
    allow_anonymous: bool = Field(
        False, description="whether others than this machine may ask without a key"
    )
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    redis_url: str | None = Field(
        None,
        description="cache shared by processes: redis(s)://, redis+sentinel:// or "
        "redis+cluster://; none keeps the cache in this process",
    )
    redis_timeout_s: float = Field(
        0.1, gt=0, le=10, description="longest wait for Redis; slower is a cache miss"
    )
    cache_ttl_s: int = Field(
        7 * 24 * 3600, ge=1, description="lifetime of a cached vector in Redis"
    )
    cache_items: int = Field(10_000, ge=0, description="vectors kept by the in-process cache")
    max_body_bytes: int = Field(2 * 2**20, ge=1024, description="largest request body")
    max_requests: int = Field(256, ge=1, description="requests in flight; more is 429")
    max_inflight_bytes: int = Field(
        64 * 2**20, ge=1024, description="bytes of bodies in flight; more is 429"
    )
    max_items: int = Field(64, ge=1, le=MAX_ITEMS, description="most items of one /embed")
    batch_tokens: int = Field(1024, ge=1, description="tokens of one forward pass")
    batch_wait_ms: float = Field(3.0, ge=0, le=1000, description="wait for a batch to fill")
    max_queue_tokens: int = Field(
        2048, ge=1, description="tokens waiting for the LLM or running; more is 429"
    )
    stuck_s: float = Field(
        60.0, gt=0, description="how long one batch may run before liveness says so"
    )
    request_timeout_s: float = Field(30.0, gt=0, description="deadline of a request; later is 504")
    drain_delay_s: float = Field(
        0.0, ge=0, le=300, description="how long to say `draining` before the port closes"
    )
    drain_limit_s: float = Field(
        30.0, ge=0, le=3600, description="then how long to finish what is in flight"
    )
    cors_origins: str = Field(
        "",
        description="origins whose pages may ask, as in https://shop.example; commas between",
    )
    filterable: str = Field(
        "*",
        description="attributes that filters may name, commas between; * is all, and takes the "
        "memory of all",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line of the log"
    )
    log_format: LogFormat = Field(
        "json", description="json is an object a line, text is for people"
    )

    @field_validator("redis_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return value and check_url(value)

    @property
    def cors(self) -> list[str]:
        """The origins of cors_origins."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def filterable_names(self) -> frozenset[str] | None:
        """The names of filterable; None for all."""
        names = frozenset(name.strip() for name in self.filterable.split(",") if name.strip())
        return None if names == {"*"} else names

    @field_validator("filterable")
    @classmethod
    def _all_or_some(cls, value: str) -> str:
        names = {name.strip() for name in value.split(",")}
        if "*" in names and len(names) > 1:
            raise ValueError("* is all attributes; write it alone, or names alone")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: str) -> str:
        for origin in value.split(","):
            if origin.strip() and not ORIGIN.fullmatch(origin.strip()):
                raise ValueError(f"{origin.strip()!a} is no origin; write scheme://host[:port]")
        return value

    @model_validator(mode="after")
    def _strangers_need_a_key(self) -> "Settings":
        if not (self.api_keys_file or self.allow_anonymous or is_loopback(self.host)):
            raise ValueError(
                f"{PREFIX}HOST is {json.dumps(self.host)}, which others can reach, and there are "
                f"no API keys: set {PREFIX}API_KEYS_FILE to a file of keys, or "
                f"{PREFIX}ALLOW_ANONYMOUS=1 to serve everybody who can reach it"
            )
        return self

    @model_validator(mode="after")
    def _one_request_fits(self) -> "Settings":
        if self.max_body_bytes > self.max_inflight_bytes:
            raise ValueError(
                f"{PREFIX}MAX_BODY_BYTES is {self.max_body_bytes}, more than "
                f"{PREFIX}MAX_INFLIGHT_BYTES, which is {self.max_inflight_bytes}"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a socket that listens on a host."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def read_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - pydantic checks them
    """Settings from the environment; an override that is not None wins.

    Raises:
        BadSettings: a value cannot be used.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise _bad(error) from None


def _bad(error: ValidationError) -> BadSettings:
    first = error.errors(include_url=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return BadSettings(reason)
    variable = PREFIX + str(first["loc"][0]).upper()
    if first["type"] == "missing":
        return BadSettings(f"{variable} is not set: {describe(str(first['loc'][0]))}")
    # An address may hold a password.
    value = re.sub(r"//[^/@]*@", "//…@", json.dumps(first["input"], default=str))
    hint = ""
    if value.startswith('"tcp://'):
        # Kubernetes sets NAME_PORT for every service of a namespace.
        hint = "; is that a Kubernetes service link? Set enableServiceLinks: false"
    return BadSettings(f"{variable} is {value}: {reason}{hint}")


def read_catalogue_dir(override: str | None) -> Path:
    """The catalogue's folder alone, for what needs no bundle; an override wins.

    Raises:
        BadSettings: the catalogue is in no folder.
    """
    if override:
        return Path(override)
    try:
        settings = CatalogueSettings()
    except ValidationError as error:
        raise _bad(error) from None
    if settings.store != EMBEDDED:
        raise BadSettings(
            f"{PREFIX}STORE says that the catalogue is in Milvus, which is backed up by Milvus' "
            "own tools; for one in a folder send --catalogue"
        )
    return settings.catalogue_dir


def read_client_settings() -> ClientSettings:
    """What a client of a service on this machine needs to know.

    Raises:
        BadSettings: a value cannot be used.
    """
    try:
        return ClientSettings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        variable = PREFIX + str(first["loc"][0]).upper()
        raise BadSettings(f"{variable} is {json.dumps(first['input'])}: {first['msg']}") from None


def describe(name: str) -> str:
    """What a setting is, in a few words."""
    return Settings.model_fields[name].description or name


def reference() -> str:
    """One line a variable: its name, default and meaning."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else f"default {field.default}"
        lines.append(f"  {PREFIX + name.upper():<26} {field.description} ({default})")
    return "\n".join(lines)
