"""Items that come many at once, some with vectors: checked, embedded and made ready to store."""

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from models.item import InvalidItem, Item
from service.embedder import Embedded, Embedder
from service.errors import BundleMismatch, Invalid, invalid
from service.rows import Entry, Floats

if TYPE_CHECKING:
    from models.bundle import Bundle

LLM = "llm"  # the view that is the LLM's own vector
LARGEST = 1e15  # in a vector; products of such are still 32-bit floats


class IncomingItem(Item):
    """An item as it is to stand in the catalogue, and its vectors where they are known."""

    hidden: bool | None = Field(
        None,
        description="Whether to keep the item out of all answers. Without it that stays as it is; "
        "a new item is not hidden.",
    )
    vectors: dict[str, list[float] | str] | None = Field(
        None,
        description="By view, as POST /embed answers them: numbers, or base64 of little-endian "
        "32-bit floats. The LLM is not run; `llm` is its vector, of which views are made that are "
        "not given. The item has no other views.",
        examples=[{"text": [0.1, 0.2]}],
    )


def require_bundle(told: str | None, served: str) -> None:
    """Make sure that vectors belong to the bundle that is served.

    Raises:
        Invalid: it is not told where they come from.
        BundleMismatch: from another one.
    """
    if told is None:
        raise Invalid.field(
            "bundle", "must be told where items come with vectors: `bundle` of GET /info"
        )
    if told != served:
        raise BundleMismatch.field(
            "bundle",
            f"the vectors belong to bundle {told[:12]}… and {served[:12]}… is served; vectors of "
            "two bundles never meet: send the attributes alone, or vectors of this one",
            told,
        )


def require_active(told: str | None, served: str) -> None:
    """Make sure that the bundle is served that a request is meant for, if it says which.

    Raises:
        BundleMismatch: another one is.
    """
    if told is not None and told != served:
        raise BundleMismatch.field(
            "bundle",
            f"the request is meant for bundle {told[:12]!a} and {served[:12]}… is served; read "
            "GET /info again, and send what belongs to that bundle",
            told,
        )


Incoming = TypeVar("Incoming", bound=IncomingItem)


def checked(model: type[Incoming], raw: object, place: str, number: int) -> Incoming:
    """The item in a decoded JSON value.

    Args:
        place: the list of the request in which it stands.
        number: its place there.

    Raises:
        Invalid: it is none.
    """
    if not isinstance(raw, dict):
        raise Invalid.field(
            f"{place}[{number}]", "must be an object with item_id and attributes", raw
        )
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        found = invalid(errors, raw, model)
    fields = [
        each.model_copy(update={"field": _under(f"{place}[{number}]", each.field)})
        for each in found.errors
    ]
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    raise Invalid(f"{fields[0].field}: {fields[0].message}{more}", errors=fields)


def _under(where: str, field: str) -> str:
    return where if field == "body" else f"{where}{'' if field.startswith('[') else '.'}{field}"


class Readying:
    """Makes entries of items, by the vectors that they bring or by the LLM."""

    def __init__(self, bundle: "Bundle", embedder: Embedder) -> None:
        self._bundle = bundle
        self._embedder = embedder
        self._widths = {name: view.width for name, view in bundle.views.items()}
        self._widths[LLM] = bundle.manifest.llm_dim
        self._tables = bundle.training_views()

    async def entries(
        self, items: Sequence[IncomingItem], where: Sequence[str]
    ) -> list[Entry | Invalid]:
        """Of each item its entry, or why it can have none.

        Args:
            where: of each, its path in the request, for errors.

        Raises:
            Overloaded, NotReady, OutOfMemory: as Embedder.embed.
        """
        found: list[Entry | Invalid | None] = [None] * len(items)
        bare = [at for at, item in enumerate(items) if item.vectors is None]
        with_llm: list[tuple[int, dict[str, Floats]]] = []
        if len(bare) < len(items):
            # Some hundred vectors take longer to read than others are to wait for the event loop.
            read = await asyncio.to_thread(self._given, items, where)
            for at, given in enumerate(read):
                if isinstance(given, dict):
                    with_llm.append((at, given))
                else:
                    found[at] = given
        if with_llm:
            made = await self._embedder.views(
                [items[at].item_id for at, _ in with_llm],
                np.stack([vectors[LLM] for _, vectors in with_llm]),
            )
            for (at, vectors), views in zip(with_llm, made, strict=True):
                found[at] = _entry(items[at], vectors, views)
        plain = [_plain(items[at]) for at in bare]
        for at, each in zip(bare, await self.embed(plain, [where[at] for at in bare]), strict=True):
            found[at] = (
                each
                if isinstance(each, Invalid)
                else Entry(each.item, each.llm_vector, each.views, items[at].hidden)
            )
        return [each for each in found if each is not None]

    async def embed(self, items: Sequence[Item], where: Sequence[str]) -> list[Embedded | Invalid]:
        """Embed those that can be rendered: together, or one by one if the LLM cannot read one."""
        found: list[Embedded | Invalid | None] = [None] * len(items)
        for at, item in enumerate(items):
            try:
                self._bundle.prompt(item)
            except InvalidItem as error:
                found[at] = Invalid.field(f"{where[at]}.attributes", str(error))
        sound = [at for at, each in enumerate(found) if each is None]
        embedded = await self._together([items[at] for at in sound], [where[at] for at in sound])
        for at, made in zip(sound, embedded, strict=True):
            found[at] = made
        return [each for each in found if each is not None]

    async def _together(
        self, items: Sequence[Item], where: Sequence[str]
    ) -> list[Embedded | Invalid]:
        if not items:
            return []
        try:
            return list(await self._embedder.embed(items))
        except Invalid:
            pass
        alone = [self._embedder.embed([item], at) for item, at in zip(items, where, strict=True)]
        answers = await asyncio.gather(*alone, return_exceptions=True)
        found: list[Embedded | Invalid] = []
        for answer in answers:
            if isinstance(answer, Invalid):
                found.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += answer
        return found

    def vectors(self, given: Mapping[str, Sequence[float] | str], where: str) -> dict[str, Floats]:
        """Of each view, and of `llm`, the vector that came.

        Raises:
            Invalid: there is none, or one that is not as its view has them.
        """
        if not given:
            raise Invalid.field(f"{where}.vectors", "is empty; leave it out to run the LLM")
        return {view: self._vector(view, told, where) for view, told in given.items()}

    def _vector(self, view: str, told: Sequence[float] | str, where: str) -> Floats:
        if view not in self._widths:
            raise Invalid.field(
                f"{where}.vectors",
                f"there is no view {view!a}; there are {', '.join(self._widths)}",
            )
        field, width = f"{where}.vectors.{view}", self._widths[view]
        if isinstance(told, str):
            try:
                stored = base64.b64decode(told, validate=True)
            except (binascii.Error, ValueError):
                raise Invalid.field(field, "is a string that is not base64", told) from None
            if len(stored) != 4 * width:
                raise Invalid.field(
                    field, f"must be {width} 32-bit floats, {4 * width} bytes; got {len(stored)}"
                )
            vector = np.frombuffer(stored, "<f4")
        else:
            if len(told) != width:
                raise Invalid.field(field, f"must have {width} numbers; got {len(told)}")
            vector = np.array(told, np.float64)
        if not np.isfinite(vector).all():
            raise Invalid.field(field, "holds a number that is not finite")
        if np.abs(vector).max(initial=0) > LARGEST:
            raise Invalid.field(field, f"holds a number beyond {LARGEST:g}; scores would overflow")
        return vector.astype(np.float32)

    def _given(
        self, items: Sequence[IncomingItem], where: Sequence[str]
    ) -> list[Entry | Invalid | dict[str, Floats] | None]:
        """Of each item its entry by the vectors that it brings.

        Or why it can have none; or the vectors, where the LLM's is among them, of which views are
        to be made; None where it brings none.
        """
        found: list[Entry | Invalid | dict[str, Floats] | None] = []
        for item, path in zip(items, where, strict=True):
            if item.vectors is None:
                found.append(None)
                continue
            try:
                vectors = self.vectors(item.vectors, path)
            except Invalid as error:
                found.append(error)
                continue
            given = LLM in vectors
            found.append(vectors if given else _entry(item, vectors, self._by_id(item.item_id)))
        return found

    def _by_id(self, item_id: str) -> dict[str, Floats]:
        """The views that come by id, which only training items have."""
        row = self._bundle.catalogue.rows.get(item_id)
        if row is None:
            return {}
        return {
            name: vectors[row - 1]
            for name, (vectors, present) in self._tables.items()
            if present[row - 1] and name not in self._bundle.open_views
        }


def _entry(item: IncomingItem, vectors: Mapping[str, Floats], made: Mapping[str, Floats]) -> Entry:
    """The entry of an item by the vectors that it brought, and those that were made of them."""
    views = {**made, **{view: each for view, each in vectors.items() if view != LLM}}
    return Entry(_plain(item), vectors.get(LLM), views, item.hidden, given=True)


def _plain(item: IncomingItem) -> Item:
    # It was checked when it came.
    return Item.model_construct(item_id=item.item_id, attributes=item.attributes)
