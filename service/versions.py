"""Versions of items, and writes that are wanted only while a version stands."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.errors import Malformed

ANY = "*"


class Condition(NamedTuple):
    """What must be so of an item for a write to be done.

    Attributes:
        match: its version must be one of these; ANY: it must be there; None: nothing is asked.
        none_match: its version must be none of these; ANY: it must not be there.
    """

    match: frozenset[int] | str | None = None
    none_match: frozenset[int] | str | None = None

    def refusal(self, version: int | None) -> str | None:
        """Why an item of a version must not be written; None if it may.

        Args:
            version: None where there is no such item.
        """
        if version is None:
            return None if self.match is None else "is not in the catalogue"
        if self.match is not None and self.match != ANY and version not in self.match:
            return f"has version {version} now; read it again and repeat the change"
        if self.none_match == ANY:
            return f"is in the catalogue already, with version {version}"
        if self.none_match is not None and version in self.none_match:
            return f"still has version {version}"
        return None


ALWAYS = Condition()


def exactly(version: int) -> Condition:
    """The item must have this version; 0: it must not be there."""
    return Condition(match=frozenset({version})) if version else Condition(none_match=ANY)


def etag(version: int) -> str:
    """A version as the ETag header has it."""
    return f'"{version}"'


def conditions_in(headers: Callable[[str], Sequence[str]]) -> Condition:
    """The condition of a request.

    Args:
        headers: the values of a header by name; several are one list.

    Raises:
        Malformed: a header is neither * nor a list of ETags.
    """
    return Condition(
        _versions("If-Match", headers("if-match"), weak=False),
        _versions("If-None-Match", headers("if-none-match"), weak=True),
    )


def _versions(name: str, values: Sequence[str], *, weak: bool) -> frozenset[int] | str | None:
    if not values:
        return None
    value = ",".join(values)
    if value.strip() == ANY:
        return ANY
    found = set()
    for part in value.split(","):
        tag = part.strip()
        strong = tag.removeprefix("W/")
        if not (len(strong) >= 2 and strong[0] == strong[-1] == '"'):
            shown = value if len(value) <= 40 else value[:39] + "…"
            raise Malformed(f'{name} is {shown!a}; send * or the ETag of an answer, as in "3"')
        # A tag that none of our answers had matches nothing, and a weak one never does in If-Match.
        digits = strong[1:-1]
        if digits.isdecimal() and digits.isascii() and len(digits) < 19 and (weak or strong == tag):
            found.add(int(digits))
    return frozenset(found)
