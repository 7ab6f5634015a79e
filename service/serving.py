"""The parts that answer requests: opened in order, closed in reverse."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
from fastapi import Depends, Request
from threadpoolctl import threadpool_limits

from service.admission import Admission
from service.batcher import Batcher
from service.bundles import Bundles
from service.cache import Cache, MemoryCache, RedisCache
from service.catalogue import Items, Stats, Store
from service.embedder import Embedder
from service.errors import NotReady
from service.index import Floats
from service.metrics import Metrics
from service.milvus.address import read as milvus_address
from service.milvus.store import MilvusStore
from service.recommender import Recommender
from service.schema import CatalogueError
from service.settings import EMBEDDED, Settings
from service.store import CatalogueStore

if TYPE_CHECKING:
    from models.bundle import Bundle
    from service.upgrade import Upgrade

log = logging.getLogger(__name__)

T = TypeVar("T")
READY = "ready"
DRAINING = "draining"
FAILED = "failed"
CLOSING_S = 5.0
GRACE_S = 5.0  # after a request's deadline, until what it had is let go
READERS = 8  # that wait for a store that is elsewhere
CHECKED_ITEMS = 8  # of the bundle, that are embedded again at start
# The least cosine with the exported vector. Between a float32 and a bfloat16 vector of one text
# it is above .999. With an int8 one it is above .997 where the LLM is as it came, and two items'
# vectors are at .9 to .97; where tuning took items apart it falls to .975, and the catalogue has
# to be encoded in int8, too.
SAME = {"float32": 0.9999, "bfloat16": 0.999, "int8": 0.995}


@dataclass(frozen=True)
class Parts:
    """What routes work with.

    Threads: `disk` writes to the store, `reading` reads what is stored, others run the small
    models, and the batcher has its own.

    Attributes:
        parity: the least cosine of the self-test; 1 for a bundle without items.
    """

    bundle: "Bundle"
    store: Store
    cache: Cache
    batcher: Batcher
    embedder: Embedder
    recommender: Recommender
    parity: float
    disk: ThreadPoolExecutor
    reading: ThreadPoolExecutor
    threads: Sequence[ThreadPoolExecutor]


class Serving:
    """The service's life: phases of start-up, `ready`, `draining`.

    Attributes:
        phase: where it stands; one of a few words that readiness shows.
        failure: why it could not start, in one sentence.
        loading: whether `load` has yet to come to its end.
        admission: of requests.
        imports: ids of the imports that are under way.
        import_turn: of those, the one that may ask the LLM.
        exports: that are under way.
        bundles: that may be served.
        upgrade: the latest to another bundle, under way or over.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.phase = "starting"
        self.failure: str | None = None
        self.loading = True
        self.admission = Admission(
            settings.max_requests, settings.max_inflight_bytes, self.retry_after_s
        )
        self.import_turn = asyncio.Lock()
        self.imports: set[str] = set()
        self.exports: set[object] = set()
        self.bundles = Bundles(settings.bundle, settings.bundles_dir)
        self.upgrade: Upgrade | None = None
        self._parts: Parts | None = None
        self._retired: list[Parts] = []

    @property
    def parts(self) -> Parts:
        """The parts, while there are any; to be asked for once for a request.

        Another bundle has other parts, so that whoever has these sees one bundle to the end.

        Raises:
            NotReady: still starting, failed or closed.
        """
        if self._parts is None:
            raise NotReady(f"the service is not ready: {self.phase}", retry_after_s=2)
        return self._parts

    @property
    def illness(self) -> str | None:
        """Why the process is not worth keeping; None while it is."""
        if self.failure is not None:
            return self.failure
        if self._parts is None:
            return None
        batcher = self._parts.batcher
        if not batcher.alive:
            return "the inference thread has died; restart the process"
        if batcher.running_s > self.settings.stuck_s:
            return f"inference has been stuck for {batcher.running_s:.0f} s; restart the process"
        return None

    def retry_after_s(self) -> float:
        """When a request that is refused now had better come again."""
        return self._parts.batcher.retry_after_s() if self._parts else 2.0

    def drain(self) -> None:
        """Say `draining` from now on; requests are still answered."""
        if self.phase != FAILED:
            self.phase = DRAINING
        if self.upgrade:
            self.upgrade.cancel()

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
            folder = settings.bundle
            if settings.store == EMBEDDED:
                folder = self.bundles.to_serve(settings.catalogue_dir)
            bundle = Bundle.open(folder, llm=settings.llm, dtype=settings.dtype)
            self._enter("checking the encoder")
            parity = check_encoder(bundle)
            self._enter("opening the catalogue")
            self.serve(self.assemble(bundle, self._store(bundle), parity))
            self._enter(READY)
        except (BundleError, LLMError, CatalogueError, OSError, MemoryError) as error:
            self.failure, self.phase = str(error) or type(error).__name__, FAILED
        except Exception as error:
            log.exception("start-up failed")
            self.failure, self.phase = f"start-up failed: {type(error).__name__}", FAILED
        finally:
            self.loading = False

    def _store(self, bundle: "Bundle") -> Store:
        settings = self.settings
        if settings.store != EMBEDDED:
            address = milvus_address(settings.store)
            return MilvusStore.open(address, bundle, settings.filterable_names)
        return CatalogueStore.open(
            settings.catalogue_dir,
            bundle,
            settings.filterable_names,
            quantised=settings.index_dtype == "int8",
        )

    def serve(self, parts: Parts) -> None:
        """Answer with these parts from now on; what others are at work on they finish."""
        before, self._parts = self._parts, parts
        self.metrics.loaded(parts.bundle.bundle_hash, parts.bundle.encoder_hash)
        store = parts.store
        if store.at_hand:
            self.metrics.watch_catalogue(
                lambda: store.holding(()).shown,
                lambda view: store.holding(()).shown_with(view),
                parts.bundle.views,
            )
        if before:
            self._retired.append(before)

    async def let_retired_go(self) -> None:
        """Let go of the parts that were served before, once no request can have them any more."""
        retired = list(self._retired)
        await asyncio.sleep(self.settings.request_timeout_s + GRACE_S)
        for parts in retired:
            if parts in self._retired:
                self._retired.remove(parts)
                await self.let_go(parts)

    async def let_go(self, parts: Parts) -> None:
        """Let parts go that are not served; what they share with those that are, stays."""
        await parts.batcher.close()
        await asyncio.to_thread(parts.store.leave)
        for thread in parts.threads:
            thread.shutdown(wait=False)
        if self._parts is None or parts.cache is not self._parts.cache:
            await parts.cache.close()

    def assemble(
        self,
        bundle: "Bundle",
        store: Store,
        parity: float,
        beside: Parts | None = None,
    ) -> Parts:
        """The parts of a bundle.

        Args:
            beside: those of the bundle that is served now, to share what two may share.
        """
        from models.bundle import use_threads  # noqa: PLC0415 - torch comes with it

        settings, metrics = self.settings, self.metrics
        cache: Cache = MemoryCache(settings.cache_items, metrics)
        if beside and beside.bundle.encoder_hash == bundle.encoder_hash:
            cache = beside.cache
        elif settings.redis_url:
            cache = RedisCache(
                settings.redis_url,
                settings.redis_timeout_s,
                settings.cache_ttl_s,
                bundle.manifest.llm_dim,
                metrics,
            )
        batcher = Batcher(
            bundle.tokenise,
            bundle.encode_tokens,
            bundle.manifest.max_tokens,
            settings.batch_tokens,
            settings.batch_wait_ms / 1000,
            settings.max_queue_tokens,
            metrics,
            cache.put_many,
            start_thread=lambda: use_threads(None),
        )
        # The small models are done before a second thread has woken up; and numpy's products on
        # two threads made two cores answer half as many recommendations as on one.
        threadpool_limits(1, user_api="blas")
        projecting = ThreadPoolExecutor(1, "project", use_threads, (1,))
        ranking = ThreadPoolExecutor(1, "rank", use_threads, (1,))
        disk = beside.disk if beside else ThreadPoolExecutor(1, "disk")
        readers = 1 if store.at_hand else READERS
        reading = beside.reading if beside else ThreadPoolExecutor(readers, "reading")
        return Parts(
            bundle=bundle,
            store=store,
            cache=cache,
            batcher=batcher,
            embedder=Embedder(bundle, cache, batcher, projecting, metrics),
            recommender=Recommender(bundle, store, ranking, metrics),
            parity=parity,
            disk=disk,
            reading=reading,
            threads=(projecting, ranking),
        )

    async def close(self) -> None:
        """Let everything go; to be called when no request is left."""
        if self.upgrade:
            self.upgrade.cancel()
            await asyncio.to_thread(self.upgrade.wait, CLOSING_S / 2)
        retired, self._retired = self._retired, []
        for each in retired:
            await self.let_go(each)
        parts, self._parts = self._parts, None
        if parts:
            await parts.batcher.close()
            for thread in parts.threads:
                thread.shutdown(wait=False)
            # What is being written is answered before; a disk that hangs holds nobody up.
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSING_S):
                    await asyncio.to_thread(parts.store.leave)
                    await asyncio.to_thread(parts.disk.shutdown)
                    await asyncio.to_thread(parts.reading.shutdown)
                    await asyncio.to_thread(parts.store.close)
            await parts.cache.close()


def check_encoder(bundle: "Bundle") -> float:
    """Embed a few exported items one by one and together; it also warms the LLM up.

    Returns:
        The least cosine of such a vector with the exported one, and of the one with the other.

    Raises:
        BundleError: a cosine is below what the same LLM gives in these dtypes (SAME).
    """
    from models.bundle import BundleError  # noqa: PLC0415 - torch comes with it

    items = bundle.catalogue[:CHECKED_ITEMS]
    if not items:
        return 1.0
    prompts = [bundle.prompt(item) for item in items]
    exported = bundle.llm_vectors[: len(items)]
    together = bundle.encode(prompts).vectors
    alone = np.concatenate([bundle.encode([prompt]).vectors for prompt in prompts])
    cosine = min(_cosine(alone, together), _cosine(alone, exported), _cosine(together, exported))
    least = min(SAME[bundle.dtype], SAME[bundle.manifest.dtype])
    if not cosine >= least:
        raise BundleError(
            f"the LLM gives other vectors here than where the bundle was exported (cosine "
            f"{cosine:.5f}, and {least} is the least); leave LLMEMB_DTYPE at auto, or "
            "encode and export the bundle again"
        )
    return cosine


def _cosine(left: Floats, right: Floats) -> float:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / (lengths + 1e-12)).min())


async def on_disk(parts: Parts, work: Callable[[], T]) -> T:
    """What a blocking call on the store returns, run on its thread, in the order of the calls."""
    return await asyncio.get_running_loop().run_in_executor(parts.disk, work)


async def reading(parts: Parts, work: Callable[[Items], T]) -> T:
    """What is read of the stored items, while others write."""
    return await asyncio.get_running_loop().run_in_executor(parts.reading, work, parts.store.items)


async def asked(parts: Parts, work: Callable[[Store], T]) -> T:
    """What the store answers from memory; on a thread, where it is not at hand."""
    if parts.store.at_hand:
        return work(parts.store)
    return await asyncio.get_running_loop().run_in_executor(parts.reading, work, parts.store)


async def counted(serving: Serving, parts: Parts) -> Stats:
    """What the catalogue holds; of one that is elsewhere, metrics show what was counted last."""
    stats = await asked(parts, lambda store: store.stats)
    if not parts.store.at_hand:
        serving.metrics.index_items.set(stats.items - stats.hidden)
    return stats


# Dependencies that are no coroutines FastAPI runs on threads, which costs more than these do.
async def serving_of(request: Request) -> Serving:
    """The app's Serving, as a dependency."""
    serving: Serving = request.app.state.serving
    return serving


async def parts_of(serving: Annotated[Serving, Depends(serving_of)]) -> Parts:
    """The parts of a service that is ready, as a dependency; see Serving.parts."""
    return serving.parts
