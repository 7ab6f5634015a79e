"""Items to vectors: prompt, cache, LLM, views."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.item import InvalidItem, Item
from models.prompt import Prompt
from service.batcher import Batcher, LLMVector, Unreadable
from service.cache import Cache, cache_key
from service.errors import Invalid
from service.metrics import Metrics

if TYPE_CHECKING:
    from models.bundle import Bundle


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
    """Embeds items with one bundle; equal prompts of one request are computed once."""

    def __init__(self, bundle: "Bundle", cache: Cache, batcher: Batcher, metrics: Metrics) -> None:
        self._bundle = bundle
        self._cache = cache
        self._batcher = batcher
        self._metrics = metrics

    async def embed(self, items: Sequence[Item], where: str = "items[{}]") -> list[Embedded]:
        """The vectors of items, in their order.

        Args:
            where: the field of item number {} in the request, for errors.

        Raises:
            Invalid: an item has nothing to render, or nothing that the LLM can read.
            Overloaded, NotReady, OutOfMemory: as Batcher.encode.
        """
        where = f"{where}.attributes"
        started = time.perf_counter()
        prompts = []
        for position, item in enumerate(items):
            try:
                prompts.append(self._bundle.prompt(item))
            except InvalidItem as error:
                raise Invalid.field(where.format(position), str(error)) from None
        self._metrics.stage.labels("render").observe(time.perf_counter() - started)

        read = await self.read(prompts, where)
        vectors = np.stack([each.vector for each, _ in read])
        ids = [item.item_id for item in items]
        before = time.perf_counter()
        views = await self._batcher.call(lambda: self._bundle.item_views(ids, vectors))
        self._metrics.stage.labels("project").observe(time.perf_counter() - before)
        return [
            Embedded(item, each.vector, seen, each.tokens, each.cut, cached)
            for item, (each, cached), seen in zip(items, read, views, strict=True)
        ]

    async def read(
        self, prompts: Sequence[Prompt], where: str = "items[{}].attributes"
    ) -> list[tuple[LLMVector, bool]]:
        """Of each prompt its LLM vector, and whether that came from the cache.

        Args:
            where: the field of prompt number {} in the request, for errors.

        Raises:
            Invalid: the LLM can read nothing of a prompt.
            Overloaded, NotReady, OutOfMemory: as Batcher.encode.
        """
        started = time.perf_counter()
        keys = [cache_key(self._bundle.encoder_hash, prompt.text) for prompt in prompts]
        found = dict(zip(keys, await self._cache.get_many(keys), strict=True))
        hits = {key for key, value in found.items() if value is not None}
        self._metrics.stage.labels("cache").observe(time.perf_counter() - started)

        misses = {
            key: position for position, key in enumerate(keys) if key not in hits
        }  # equal keys are equal prompts
        try:
            fresh = await self._batcher.encode([prompts[position] for position in misses.values()])
        except Unreadable as error:
            position = list(misses.values())[error.position]
            raise Invalid.field(
                where.format(position), "the LLM can read nothing of this text"
            ) from None
        computed = dict(zip(misses, fresh, strict=True))
        await self._cache.put_many(computed)

        known: list[LLMVector] = [computed.get(key) or found[key] for key in keys]  # type: ignore[misc]
        self._metrics.embedded.labels("cache").inc(sum(key in hits for key in keys))
        self._metrics.embedded.labels("model").inc(sum(key not in hits for key in keys))
        self._metrics.truncated.inc(sum(bool(each.cut) for each in known))
        return [(each, key in hits) for each, key in zip(known, keys, strict=True)]
