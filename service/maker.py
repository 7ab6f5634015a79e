"""What a bundle makes of items of the catalogue that it has not been told of."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import Counter

from models import OutOfMemory
from models.item import InvalidItem, Item
from service.beside import Stale
from service.index import Floats
from service.pace import Pace
from service.rows import written
from service.schema import CatalogueError
from service.seal import sealed, unsealed

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.encoder import Tokens

BATCH_TOKENS = 256  # of a forward pass; whoever comes meanwhile waits for the rest of one at most
FEW = 8  # items that are made tokens of before others come first


class Maker:
    """Makes a bundle's vectors of items, on the thread that asks; the LLM runs only if it must.

    Args:
        sources: counts items by where their LLM vector came from; see metrics.REINDEXED.
    """

    def __init__(self, bundle: "Bundle", sources: Counter, pace: Pace) -> None:
        self._bundle = bundle
        self._sources = sources
        self._pace = pace

    def made(
        self, stale: Sequence[Stale], urgent: bool
    ) -> list[tuple[dict[str, Floats], bytes | None]]:
        """Of each item its views, and its LLM vector if that is not stored yet.

        Both are empty where the bundle can make nothing of an item.

        Args:
            urgent: whether not to wait for others.

        Raises:
            OutOfMemory: an item does not fit, not even alone.
            CatalogueError: a stored vector is damaged.
        """
        found: dict[int, tuple[dict[str, Floats], bytes | None]] = {}
        llm: dict[int, Floats] = {}
        unread: dict[int, Item] = {}
        for at, each in enumerate(stale):
            if each.views:
                found[at] = ({view: _told(each, told) for view, told in each.views.items()}, None)
                self._sources.labels("kept").inc()
                continue
            item = Item.model_construct(
                item_id=each.item_id, attributes=json.loads(each.attributes)
            )
            exported = self._exported(item, each.attributes)
            if each.llm_vector is not None:
                llm[at] = _told(each, each.llm_vector)
                self._sources.labels("stored").inc()
            elif exported is not None:
                llm[at] = exported
                self._sources.labels("exported").inc()
            else:
                unread[at] = item
        read = self._read(unread, urgent)
        self._sources.labels("model").inc(len(read))
        llm |= read
        if llm:
            places = list(llm)
            views = self._bundle.item_views(
                [stale[at].item_id for at in places], np.stack([llm[at] for at in places])
            )
            for at, seen in zip(places, views, strict=True):
                stored = stale[at].llm_vector is not None
                found[at] = (seen, None if stored else sealed(llm[at]))
        self._sources.labels("lost").inc(len(stale) - len(found))
        return [found.get(at, ({}, None)) for at in range(len(stale))]

    def _exported(self, item: Item, attributes: str) -> Floats | None:
        """The LLM vector that came with the bundle, of an item that stands as training knew it."""
        bundle = self._bundle
        row = bundle.catalogue.rows.get(item.item_id)
        if row is None or written(bundle.catalogue[row - 1]) != attributes:
            return None
        vector: Floats = bundle.llm_vectors[row - 1]
        return vector

    def _read(self, items: Mapping[int, Item], urgent: bool) -> dict[int, Floats]:
        """LLM vectors of those of these items that the LLM can read, a few at a time."""
        tokens: dict[int, Tokens] = {}
        for row, (at, item) in enumerate(items.items()):
            if row % FEW == 0 and not urgent:
                self._pace.let_others_first()
            try:
                (tokens[at],) = self._bundle.tokenise([self._bundle.prompt(item)])
            except InvalidItem:
                continue
        found: dict[int, Floats] = {}
        batch: list[int] = []
        for at in sorted(tokens, key=lambda at: len(tokens[at].ids)):
            if batch and len(tokens[at].ids) * (len(batch) + 1) > BATCH_TOKENS:
                found |= self._forward({each: tokens[each] for each in batch}, urgent)
                batch = []
            batch.append(at)
        if batch:
            found |= self._forward({each: tokens[each] for each in batch}, urgent)
        return found

    def _forward(self, tokens: Mapping[int, "Tokens"], urgent: bool) -> dict[int, Floats]:
        if not urgent:
            self._pace.let_others_first()
        started = time.monotonic()
        try:
            vectors = self._bundle.encode_tokens(list(tokens.values()), BATCH_TOKENS).vectors
        except (OutOfMemory, FloatingPointError) as error:
            if len(tokens) > 1:  # whose was it?
                found: dict[int, Floats] = {}
                for at, each in tokens.items():
                    found |= self._forward({at: each}, urgent)
                return found
            if isinstance(error, OutOfMemory):
                raise
            return {}
        finally:
            self._pace.forward_s = time.monotonic() - started
        return {at: vectors[row].copy() for row, at in enumerate(tokens)}


def _told(item: Stale, stored: bytes) -> Floats:
    vector = unsealed(stored)
    if vector is None:
        raise CatalogueError(
            f"a stored vector of item {item.item_id!r} is damaged; take the item out and put it "
            "again, or restore a backup to a new folder by `python -m service restore`"
        )
    return vector
