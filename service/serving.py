"""The parts that answer requests: opened in order, closed in reverse."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
from fastapi import Depends, Request

from service.batcher import Batcher
from service.cache import Cache, MemoryCache, RedisCache
from service.embedder import Embedder
from service.errors import NotReady
from service.metrics import Metrics
from service.recommender import Recommender
from service.settings import Settings
from service.store import CatalogueError, CatalogueStore

if TYPE_CHECKING:
    from models.bundle import Bundle

log = logging.getLogger(__name__)

T = TypeVar("T")
READY = "ready"
DRAINING = "draining"
FAILED = "failed"
# Of this many exported LLM vectors, less their mean (without it all vectors are alike), the cosine
# with the same items' vectors here; of their median. bfloat16 against float32 stays above it.
CHECKED_ITEMS = 8
SAME_ENCODER = 0.98


@dataclass(frozen=True)
class Parts:
    """What routes work with. SQLite is written and read by `disk`, one thread."""

    bundle: "Bundle"
    store: CatalogueStore
    cache: Cache
    batcher: Batcher
    embedder: Embedder
    recommender: Recommender
    disk: ThreadPoolExecutor
    searches: ThreadPoolExecutor


class Serving:
    """The service's life: phases of start-up, `ready`, `draining`.

    Attributes:
        phase: where it stands; one of a few words that readiness shows.
        failure: why it could not start, in one sentence.
        loading: whether `load` has yet to come to its end.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.phase = "starting"
        self.failure: str | None = None
        self.loading = True
        self._parts: Parts | None = None

    @property
    def parts(self) -> Parts:
        """The parts, while there are any.

        Raises:
            NotReady: still starting, failed or closed.
        """
        if self._parts is None:
            raise NotReady(f"the service is not ready: {self.phase}", retry_after_s=2)
        return self._parts

    @property
    def alive(self) -> bool:
        """Whether it is worth keeping the process."""
        if self.failure is not None:
            return False
        return self._parts is None or self._parts.batcher.alive

    def retry_after_s(self) -> float:
        """When a request that is refused now may come again."""
        return 1.0

    def drain(self) -> None:
        """Say `draining` from now on; requests are still answered."""
        if self.phase != FAILED:
            self.phase = DRAINING

    def _enter(self, phase: str) -> None:
        if self.phase != DRAINING:
            self.phase = phase
            log.info("%s", phase)

    def load(self) -> None:
        """Open everything; minutes for a large LLM. On failure `failure` says why."""
        # Torch takes seconds to import; the port should open at once.
        from models.bundle import Bundle, BundleError  # noqa: PLC0415
        from models.llm import LLMError  # noqa: PLC0415

        try:
            settings = self.settings
            self._enter("loading the bundle")
            bundle = Bundle.open(settings.bundle, llm=settings.llm, dtype=settings.dtype)
            self._enter("checking the encoder")
            check_encoder(bundle)
            self._enter("opening the catalogue")
            store = CatalogueStore.open(settings.catalogue_dir, bundle)
            self._parts = self._assemble(bundle, store)
            self.metrics.loaded(bundle.bundle_hash, bundle.encoder_hash)
            self.metrics.index_items.set_function(lambda: len(store.snapshot))
            self._enter(READY)
        except (BundleError, LLMError, CatalogueError, OSError, MemoryError) as error:
            self.failure, self.phase = str(error) or type(error).__name__, FAILED
        except Exception as error:
            log.exception("start-up failed")
            self.failure, self.phase = f"start-up failed: {type(error).__name__}", FAILED
        finally:
            self.loading = False

    def _assemble(self, bundle: "Bundle", store: CatalogueStore) -> Parts:
        settings, metrics = self.settings, self.metrics
        cache: Cache = MemoryCache(settings.cache_items, metrics)
        if settings.redis_url:
            cache = RedisCache(
                str(settings.redis_url),
                settings.redis_timeout_s,
                settings.cache_ttl_s,
                bundle.manifest.llm_dim,
                metrics,
            )
        batcher = Batcher(
            bundle.encode,
            settings.batch_tokens,
            settings.batch_wait_ms / 1000,
            settings.max_waiting_items,
            metrics,
        )
        searches = ThreadPoolExecutor(2, "search")
        return Parts(
            bundle=bundle,
            store=store,
            cache=cache,
            batcher=batcher,
            embedder=Embedder(bundle, cache, batcher, metrics),
            recommender=Recommender(bundle, store, batcher, searches, metrics),
            disk=ThreadPoolExecutor(1, "disk"),
            searches=searches,
        )

    async def close(self) -> None:
        """Let everything go; to be called when no request is left."""
        parts, self._parts = self._parts, None
        if parts:
            parts.batcher.close()
            parts.searches.shutdown()
            parts.disk.shutdown()
            parts.store.close()
            await parts.cache.close()


def check_encoder(bundle: "Bundle") -> None:
    """Encode a few exported items again; it also warms the LLM up.

    Raises:
        BundleError: the vectors are others than the exported ones.
    """
    from models.bundle import BundleError  # noqa: PLC0415 - torch comes with it

    items = bundle.catalogue[:CHECKED_ITEMS]
    if len(bundle.catalogue) < 2:
        return
    mean = bundle.llm_vectors.mean(axis=0)
    exported = bundle.llm_vectors[: len(items)] - mean
    here = bundle.encode([bundle.prompt(item) for item in items]).vectors - mean
    lengths = np.linalg.norm(exported, axis=1) * np.linalg.norm(here, axis=1)
    cosine = float(np.median((exported * here).sum(axis=1) / (lengths + 1e-12)))
    if cosine < SAME_ENCODER:
        raise BundleError(
            f"the LLM gives another vector here than where the bundle was exported (cosine "
            f"{cosine:.3f}); try LLMEMB_DTYPE=float32, or export the bundle again"
        )


async def on_disk(parts: Parts, work: Callable[[], T]) -> T:
    """What a blocking call on the store returns, run on its thread, in the order of the calls."""
    return await asyncio.get_running_loop().run_in_executor(parts.disk, work)


def serving_of(request: Request) -> Serving:
    """The app's Serving, as a dependency."""
    serving: Serving = request.app.state.serving
    return serving


def parts_of(serving: Annotated[Serving, Depends(serving_of)]) -> Parts:
    """The parts of a service that is ready, as a dependency; see Serving.parts."""
    return serving.parts
