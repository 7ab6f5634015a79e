"""What is measured, under which names. Each app has a registry of its own."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from models import OutOfMemory
from service import version
from service.errors import NotReady, Overloaded, StorageFull, TooLate

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
METHODS = {"GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS"}
UNMATCHED = "unmatched"
REFUSALS: dict[type[Exception], str] = {
    Overloaded: "queue_full",
    NotReady: "not_ready",
    TooLate: "deadline",
    OutOfMemory: "out_of_memory",
    StorageFull: "storage_full",
}
ADMISSION = ("requests", "bytes")  # what service.admission refuses for
RESULTS = ("hit", "miss", "error", "bypass", "corrupt")
STAGES = ("render", "cache", "queue", "tokenize", "forward", "project")
# The LLM; the catalogue, of the same encoder; the bundle, whose training knew the item; the item
# had vectors of the bundle already; none can be made.
REINDEXED = ("model", "stored", "exported", "kept", "lost")
FALLBACKS = ("unknown_history", "fewer_than_k", "no_history")

# Of the request that is being answered, the seconds of its stages, for its log line.
stages: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)


def add_stage(stage: str, seconds: float) -> None:
    """Note what a stage took of the request that is being answered, if there is one."""
    noted = stages.get()
    if noted is not None:
        noted[stage] = noted.get(stage, 0.0) + seconds


class Metrics:
    """The service's metrics; every label set that is known beforehand stands at 0."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._build: tuple[str, str, str] | None = None
        self.requests = Histogram(
            "http_server_request_duration_seconds",
            "Time from a request's first byte to the last of its answer.",
            ["method", "route", "status"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.embedded = Counter(
            "llmemb_embed_items_total",
            "Items embedded, by where their LLM vector came from: the cache, the model, or "
            "inflight, as somebody had asked for the same text a moment before.",
            ["source"],
            registry=self.registry,
        )
        self.stage = Histogram(
            "llmemb_embed_stage_seconds",
            "Stages of embedding: render, cache, tokenize and project of a request, queue of a "
            "prompt, forward of a batch.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.cache = Counter(
            "llmemb_cache_requests_total",
            "Vectors looked up in the cache: hit, miss, error (asked in vain), bypass (the circuit "
            "was open), corrupt (a value that cannot be read). All but a hit are misses.",
            ["result"],
            registry=self.registry,
        )
        self.batch_items = Histogram(
            "llmemb_batch_items",
            "Prompts of a forward pass.",
            buckets=ITEMS,
            registry=self.registry,
        )
        self.batch_tokens = Histogram(
            "llmemb_batch_tokens",
            "The items' own tokens of a forward pass.",
            buckets=TOKENS,
            registry=self.registry,
        )
        self.padding = Histogram(
            "llmemb_padding_ratio",
            "Share of a forward pass's tokens that are padding.",
            buckets=RATIOS,
            registry=self.registry,
        )
        self.batch_budget = Gauge(
            "llmemb_batch_budget_tokens",
            "Most tokens of a forward pass now; below LLMEMB_BATCH_TOKENS after an out-of-memory.",
            registry=self.registry,
        )
        self.queue_tokens = Gauge(
            "llmemb_queue_tokens",
            "Tokens that wait for the LLM or run; of prompts that are not tokenised yet, a third "
            "of their bytes.",
            registry=self.registry,
        )
        self.queue_limit = Gauge(
            "llmemb_queue_limit_tokens",
            "LLMEMB_MAX_QUEUE_TOKENS, to compare with.",
            registry=self.registry,
        )
        self.inflight = Gauge(
            "llmemb_inflight_requests",
            "Requests that are being answered; health, metrics and documentation do not count.",
            registry=self.registry,
        )
        self.inflight_limit = Gauge(
            "llmemb_inflight_limit_requests",
            "LLMEMB_MAX_REQUESTS, to compare with.",
            registry=self.registry,
        )
        self.circuit = Gauge(
            "llmemb_cache_circuit_state",
            "Of the circuit breaker to Redis: 0 closed, 1 half open, 2 open.",
            registry=self.registry,
        )
        self.fallback = Counter(
            "llmemb_recommend_fallback_total",
            "Recommendations that are less than was asked for: unknown_history (the catalogue "
            "lacks an id), fewer_than_k, no_history.",
            ["reason"],
            registry=self.registry,
        )
        self.to_recommendable = Histogram(
            "llmemb_item_to_recommendable_seconds",
            "From the first byte of a write to its items being recommendable.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.rejected = Counter(
            "llmemb_rejected_total",
            "Requests refused for the service's own state: requests and bytes (in flight), "
            "queue_full, not_ready, deadline, out_of_memory, storage_full.",
            ["reason"],
            registry=self.registry,
        )
        self.truncated = Counter(
            "llmemb_truncated_total",
            "Embedded items that lost text to the token limit.",
            registry=self.registry,
        )
        self.index_items = Gauge(
            "llmemb_index_items", "Items that can be recommended.", registry=self.registry
        )
        self.view_items = Gauge(
            "llmemb_view_items",
            "Of these items, those that have a view. What training alone makes (id, hybrid) is "
            "lacked by all that came later, so this tells how much of the catalogue is cold.",
            ["view"],
            registry=self.registry,
        )
        self.search = Histogram(
            "llmemb_index_search_seconds",
            "Finding and scoring the candidates of a round: requests that came at once.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.reindexed = Counter(
            "llmemb_reindex_items_total",
            "Items that a reindex has done, by where their LLM vector came from: the model, stored "
            "with the catalogue, exported with the bundle, kept from before; or lost.",
            ["source"],
            registry=self.registry,
        )
        self.reindex_left = Gauge(
            "llmemb_reindex_left_items",
            "Items that a reindex has yet to do; 0 where none runs.",
            registry=self.registry,
        )
        self.build = Gauge(
            "llmemb_build_info",
            "Always 1; the labels say what runs.",
            ["version", "bundle", "encoder"],
            registry=self.registry,
        )
        # Memory, CPU seconds, open files and the moment of the start, where /proc tells them.
        ProcessCollector(registry=self.registry)
        for source in ("cache", "model", "inflight"):
            self.embedded.labels(source)
        for source in REINDEXED:
            self.reindexed.labels(source)
        for stage in STAGES:
            self.stage.labels(stage)
        for result in RESULTS:
            self.cache.labels(result)
        for reason in (*REFUSALS.values(), *ADMISSION):
            self.rejected.labels(reason)
        for reason in FALLBACKS:
            self.fallback.labels(reason)

    def observe_request(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count one answered request; what clients may invent is folded into one label."""
        self.requests.labels(
            method if method in METHODS else "other", route or UNMATCHED, str(status)
        ).observe(seconds)

    def observe_refusal(self, error: Exception) -> None:
        """Count an error if it is for the service's own state, not the request's."""
        for kind, reason in REFUSALS.items():
            if isinstance(error, kind):
                self.rejected.labels(getattr(error, "reason", None) or reason).inc()

    def expect_route(self, method: str, route: str, status: int) -> None:
        """Have a route's normal answer stand at 0 before the first request."""
        self.requests.labels(method, route, str(status))

    def loaded(self, bundle: str, encoder: str) -> None:
        """Say which hashes are served from now on."""
        now = (version(), bundle, encoder)
        self.build.labels(*now).set(1)
        if self._build not in (None, now):
            self.build.remove(*self._build)
        self._build = now

    def watch_catalogue(
        self, shown: Callable[[], int], shown_with: Callable[[str], int], views: Iterable[str]
    ) -> None:
        """Have the catalogue counted whenever somebody asks; all of it, and by view."""
        self.index_items.set_function(shown)
        self.view_items.clear()  # another bundle may have other views
        for view in views:
            self.view_items.labels(view).set_function(partial(shown_with, view))

    def text(self) -> bytes:
        """The Prometheus exposition."""
        return generate_latest(self.registry)
