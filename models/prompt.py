"""The text an item is shown to the LLM as."""

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from models.item import AttributeValue, InvalidItem, Item, is_missing

TEMPLATE_VERSION = 1


class Prompt(NamedTuple):
    """One item as text: the instruction all items share, then the item's own words.

    `ends` gives, for each rendered attribute in order, where in `body` its text ends, so that
    a cut can be reported by the attributes that it hit.
    """

    instruction: str
    body: str
    ends: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """All of it, as the LLM reads it."""
        return self.instruction + self.body


def render_value(value: AttributeValue) -> str:
    """A value as a person would write it; inner lists are paths: `Beauty > Nails`.

    Missing parts of a list are left out; line breaks and runs of blanks become one blank.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list):
        return ", ".join(
            " > ".join(render_value(step) for step in part if not is_missing(step))
            if isinstance(part, list)
            else render_value(part)
            for part in value
            if not is_missing(part)
        )
    return " ".join(str(value).split())


class PromptTemplate(BaseModel):
    """Renders an Item to its Prompt; the same item gives the same bytes, whatever its key order.

    Form: `The {noun} has the following attributes:\\n` and `name is value; name is value`, as in
    LLMEmb (arXiv 2409.19925). Attributes in `priority` come first, in that order, the others
    after them by name, so that a cut takes what matters least. Missing values are skipped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(
        TEMPLATE_VERSION, ge=TEMPLATE_VERSION, le=TEMPLATE_VERSION, description="of the form"
    )
    noun: str = Field("item", min_length=1, description="What an item is called: film, product.")
    priority: tuple[str, ...] = Field(
        ("title", "name"), description="Attributes that come first; the rest follow by name."
    )
    exclude: tuple[str, ...] = Field((), description="Attributes that are never rendered.")

    @property
    def instruction(self) -> str:
        """The opening that every prompt of this template shares."""
        return f"The {self.noun} has the following attributes:\n"

    def names(self, item: Item) -> list[str]:
        """The attributes of this item that are rendered, in their order."""
        place = {name: position for position, name in enumerate(self.priority)}
        present = [
            name
            for name, value in item.attributes.items()
            if name not in self.exclude and not is_missing(value)
        ]
        return sorted(present, key=lambda name: (place.get(name, len(place)), name))

    def render(self, item: Item) -> Prompt:
        """The Prompt of an item.

        Raises:
            InvalidItem: the template excludes every attribute that has a value.
        """
        body, ends = "", []
        for name in self.names(item):
            value = render_value(item.attributes[name])
            body += f"{'; ' if body else ''}{name.replace('_', ' ')} is {value}"
            ends.append((name, len(body)))
        if not body:
            raise InvalidItem(
                f"item {item.item_id!r}: no attribute with a value is left to render; "
                f"the template excludes {', '.join(self.exclude)}"
            )
        return Prompt(self.instruction, body, tuple(ends))
