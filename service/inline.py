"""Items that stand in a request by what they are, and need not be in the catalogue."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from models.item import MAX_ATTRIBUTES, MAX_ID_BYTES, AttributeValue, Item
from service.embedder import Embedder
from service.errors import AN_ID, AN_ITEM, Invalid
from service.incoming import LLM, IncomingItem, Readying, checked, require_bundle
from service.index import Floats, Views

if TYPE_CHECKING:
    from models.bundle import Bundle

NOBODY = ""  # no item's id, so none of the views that come by id are taken for this item's


class InlineItem(BaseModel):
    """An item by its attributes or by its vectors. It is not stored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    attributes: dict[str, AttributeValue] | None = Field(
        None,
        min_length=1,
        max_length=MAX_ATTRIBUTES,
        description="The LLM reads them, as POST /embed has it.",
        examples=[{"title": "The Matrix", "genres": ["Action", "Sci-Fi"]}],
    )
    vectors: dict[str, list[float] | str] | None = Field(
        None,
        description="By view, as POST /embed answers them, of the `bundle` of the request: "
        "numbers, or base64 of little-endian 32-bit floats. `llm` is the LLM's vector, of which "
        "views are made that are not given.",
        examples=[{"text": [0.1, 0.2]}],
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "InlineItem":
        if (self.attributes is None) == (self.vectors is None):
            raise ValueError("must have either `attributes` or `vectors`")
        return self


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return AN_ID
    return AN_ITEM if isinstance(value, dict | InlineItem) else None


ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)]
HistoryElement = Annotated[
    Annotated[ItemId, Tag(AN_ID)] | Annotated[InlineItem, Tag(AN_ITEM)],
    Discriminator(
        _kind,
        custom_error_type="history_element",
        custom_error_message="must be an item id, or an object with `attributes` or `vectors`",
    ),
]


async def seen(
    history: Sequence[str | InlineItem],
    told: str | None,
    most: int,
    bundle: "Bundle",
    embedder: Embedder,
    *,
    with_attributes: bool,
) -> list[str | Views]:
    """A history whose items are ids or views.

    Args:
        told: the hash of the bundle that vectors are said to belong to.
        most: items that may come with attributes.
        with_attributes: whether anybody looks at views that come of attributes. Without, an item
            that has only attributes is checked, and has no views.

    Raises:
        Invalid: an item cannot be used, or too many have attributes.
        BundleMismatch: vectors belong to another bundle.
        Overloaded, NotReady, OutOfMemory: as Embedder.embed.
    """
    found: list[str | Views] = [each if isinstance(each, str) else {} for each in history]
    inline = [(at, each) for at, each in enumerate(history) if isinstance(each, InlineItem)]
    if not inline:
        return found
    readying = Readying(bundle, embedder)
    read: dict[int, Item] = {}
    with_llm: dict[int, dict[str, Floats]] = {}
    for at, each in inline:
        if each.vectors is None:
            fields = {"item_id": "inline", "attributes": each.attributes}
            attributes = checked(IncomingItem, fields, "history", at).attributes
            read[at] = Item.model_construct(item_id=NOBODY, attributes=attributes)
            continue
        if not each.vectors:
            raise Invalid.field(
                f"history[{at}].vectors",
                "is empty; send the vector of a view, or `attributes` in their place",
                each.vectors,
            )
        require_bundle(told, bundle.bundle_hash)
        vectors = readying.vectors(each.vectors, f"history[{at}]")
        if LLM in vectors:
            with_llm[at] = vectors
        else:
            found[at] = vectors
    if len(read) > most:
        raise Invalid.field(
            "history", f"has {len(read)} items with attributes; at most {most} may come"
        )
    if with_llm:
        made = await embedder.views(
            [NOBODY] * len(with_llm), np.stack([each[LLM] for each in with_llm.values()])
        )
        for (at, vectors), views in zip(with_llm.items(), made, strict=True):
            given = {view: each for view, each in vectors.items() if view != LLM}
            found[at] = {**views, **given}
    if not with_attributes:
        return found
    embedded = await readying.embed(list(read.values()), [f"history[{at}]" for at in read])
    for at, one in zip(read, embedded, strict=True):
        if isinstance(one, Invalid):
            raise one
        found[at] = one.views
    return found
