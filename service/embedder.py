"""Items to vectors: prompt, cache, LLM, views."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.item import InvalidItem, Item
from models.prompt import Prompt
from service.batcher import Batcher, LLMVector, Unreadable
from service.cache import Cache, cache_key
from service.errors import Invalid
from service.metrics import Metrics, add_stage

if TYPE_CHECKING:
    from models.bundle import Bundle


class Read(NamedTuple):
    """What the LLM made of a prompt, and whether it had done so before."""

    value: LLMVector
    cached: bool


@dataclass(frozen=True)
class Embedded:
    """An item and its vectors.

    Attributes:
        llm_vector: (d_llm,) float32.
        views: of each view that the item has, its vector (W,) float32.
        tokens: that the LLM read of the item's own text.
        cut: attributes that lost text to the token limit.
        cached: whether the LLM vector came from the cache.
    """

    item: Item
    llm_vector: NDArray[np.float32]
    views: dict[str, NDArray[np.float32]]
    tokens: int
    cut: tuple[str, ...]
    cached: bool


class Embedder:
    """Embeds items with one bundle.

    Args:
        projecting: the one thread that `project` and `item_views` run on.
    """

    def __init__(
        self,
        bundle: "Bundle",
        cache: Cache,
        batcher: Batcher,
        projecting: ThreadPoolExecutor,
        metrics: Metrics,
    ) -> None:
        self._bundle = bundle
        self._cache = cache
        self._batcher = batcher
        self._projecting = projecting
        self._metrics = metrics

    async def embed(self, items: Sequence[Item], where: str = "items[{}]") -> list[Embedded]:
        """The vectors of items, in their order.

        Args:
            where: the field of item number {} in the request, for errors.

        Raises:
            Invalid: an item has nothing to render, or nothing that the LLM can read.
            Overloaded, NotReady, OutOfMemory: as Batcher.encode.
        """
        field = f"{where}.attributes"
        with self._timed("render"):
            prompts = []
            for position, item in enumerate(items):
                try:
                    prompts.append(self._bundle.prompt(item))
                except InvalidItem as error:
                    raise Invalid.field(field.format(position), str(error)) from None
        read = await self.read(prompts, field)
        vectors = np.stack([value.vector for value, _ in read])
        views = await self.views([item.item_id for item in items], vectors)
        return [
            Embedded(item, value.vector, seen, value.tokens, value.cut, cached)
            for item, (value, cached), seen in zip(items, read, views, strict=True)
        ]

    async def read(self, prompts: Sequence[Prompt], where: str) -> list[Read]:
        """The LLM vectors of prompts, in their order, from the cache or the LLM.

        Args:
            where: the field of prompt number {} in the request, for errors.

        Raises:
            Invalid: a prompt has nothing that the LLM can read.
            Overloaded, NotReady, OutOfMemory: as Batcher.encode.
        """
        keys = [cache_key(self._bundle.encoder_hash, prompt.text) for prompt in prompts]
        wanted = dict(zip(keys, prompts, strict=True))
        with self._timed("cache"):
            found = await self._cache.get_many(list(wanted))
        missing = {key: prompt for key, prompt in wanted.items() if key not in found}
        try:
            fresh = await self._batcher.encode(missing)
        except Unreadable as error:
            field = where.format(keys.index(error.key))
            raise Invalid.field(field, "the LLM can read nothing of this text") from None
        if fresh:
            with self._timed("cache"):
                await self._cache.put_many(fresh)
        self._metrics.embedded.labels("cache").inc(sum(key in found for key in keys))
        # Equal prompts of one request are run once.
        self._metrics.embedded.labels("inflight").inc(
            sum(key in fresh for key in keys) - len(fresh)
        )
        read = [Read(found.get(key) or fresh[key], key in found) for key in keys]
        self._metrics.truncated.inc(sum(bool(value.cut) for value, _ in read))
        return read

    async def views(
        self, item_ids: Sequence[str], llm_vectors: NDArray[np.float32]
    ) -> list[dict[str, NDArray[np.float32]]]:
        """Of each item its views, from its id and LLM vector; see Bundle.item_views."""
        with self._timed("project"):
            return await asyncio.get_running_loop().run_in_executor(
                self._projecting, self._bundle.item_views, item_ids, llm_vectors
            )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._metrics.stage.labels(stage).observe(seconds)
            add_stage(stage, seconds)
