"""Copies of an item that say less than it does, for SCFT."""

from typing import TypeVar

import numpy as np

from models.item import AttributeValue, Item, is_missing
from models.prompt import Prompt, PromptTemplate

Part = TypeVar("Part")


def thin(
    item: Item,
    template: PromptTemplate,
    drop_attribute: float,
    drop_part: float,
    random: np.random.Generator,
) -> Item:
    """A copy of an item with some attributes, and parts of values, left out at random.

    The first rendered attribute, usually the title, always stays and keeps at least half of its
    words; every other is dropped with probability `drop_attribute`, and of those that stay every
    word or list element with probability `drop_part`, but never all of them.
    """
    first, *others = template.names(item)
    kept = {first: _thin_value(item.attributes[first], drop_part, random, keep=0.5)}
    for name in others:
        if random.random() >= drop_attribute:
            kept[name] = _thin_value(item.attributes[name], drop_part, random)
    return Item(item_id=item.item_id, attributes=kept)


def _thin_value(
    value: AttributeValue, drop: float, random: np.random.Generator, keep: float = 0.0
) -> AttributeValue:
    if isinstance(value, str):
        return " ".join(_thin_list(value.split(), drop, random, keep))
    if isinstance(value, list):
        said = [part for part in value if not is_missing(part)]
        parts = _thin_list(said, drop, random, keep)
        return [_thin_value(p, drop, random) if isinstance(p, list) else p for p in parts]
    return value


def _thin_list(
    parts: list[Part], drop: float, random: np.random.Generator, keep: float
) -> list[Part]:
    stays = random.random(len(parts)) >= drop
    floor = max(1, int(np.ceil(keep * len(parts))))
    if stays.sum() < floor:
        stays[:] = False
        stays[random.choice(len(parts), floor, replace=False)] = True
    return [part for part, stay in zip(parts, stays, strict=True) if stay]


def shuffle(
    item: Item, template: PromptTemplate, drop: float, random: np.random.Generator
) -> Prompt:
    """An item's attributes in a random order, int(drop * N) of the N left out.

    Source: LLMEmb (arXiv 2409.19925), attribute-level augmentation. A single attribute stays;
    the published code leaves the bare instruction of such an item.
    """
    order = random.permutation(np.array(template.names(item), dtype=object)).tolist()
    kept = order[: len(order) - int(drop * len(order))]
    attributes = {name: item.attributes[name] for name in kept}
    ordered = template.model_copy(update={"priority": tuple(kept)})
    return ordered.render(Item(item_id=item.item_id, attributes=attributes))
