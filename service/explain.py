"""What of an item's attributes carries its score: the score with all of them, less without one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.item import Item
from service.embedder import Embedder
from service.index import Floats

if TYPE_CHECKING:
    from models.bundle import Bundle


async def attribute_shares(
    bundle: "Bundle", embedder: Embedder, items: Sequence[Item], queries: Mapping[str, Floats]
) -> list[dict[str, float]]:
    """By how much each item's score falls when it is embedded without one of its attributes.

    A negative share says that the item would score higher without the attribute. Shares need not
    add up to the score. An item with a single attribute that is rendered has none to leave out,
    and gets no shares. The LLM reads one prompt for each attribute, cached as any other.

    Args:
        queries: (1, W) of each view, as models.scorer.Scorer.queries gives them.

    Raises:
        Invalid, Overloaded, NotReady, OutOfMemory: as Embedder.embed.
    """
    less: list[tuple[int, str, Item]] = []  # position, the attribute left out, the item without it
    for position, item in enumerate(items):
        names = bundle.manifest.template.names(item)
        for name in names if len(names) > 1 else []:
            rest = {each: value for each, value in item.attributes.items() if each != name}
            less.append((position, name, Item(item_id=item.item_id, attributes=rest)))
    shares: list[dict[str, float]] = [{} for _ in items]
    if not less:
        return shares
    embedded = await embedder.embed([*items, *(each for _, _, each in less)])
    scores = _scores(bundle, queries, [each.views for each in embedded])
    for (position, name, _), without in zip(less, scores[len(items) :], strict=True):
        shares[position][name] = float(scores[position] - without)
    return shares


def _scores(
    bundle: "Bundle", queries: Mapping[str, Floats], items: Sequence[Mapping[str, Floats]]
) -> Floats:
    """Scores (n,) of items by their views; what follows what is the same with and without."""
    tables, present = {}, {}
    for name, view in bundle.views.items():
        present[name] = np.array([name in each for each in items])
        nothing = np.zeros(view.width, np.float32)
        tables[name] = np.stack([each.get(name, nothing) for each in items])
    scores: Floats = bundle.scorer.score(queries, tables, present)[0]
    return scores
