"""Items to send: the films of a bundle, and films that no cache can know."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.item import Item, read_items
from models.prompt import PromptTemplate

Attributes = dict[str, Any]


class Films:
    """The items of a bundle.

    A fresh one has the title of one of them and everything else of another. So its text is as
    long as theirs are, and new: as many come as pairs, and none twice.
    """

    def __init__(self, bundle: Path, seed: int = 0) -> None:
        known = list(read_items(bundle / "items.jsonl"))
        self.ids = [each.item_id for each in known]
        self.known: list[Attributes] = [each.attributes for each in known]
        self._order = np.random.default_rng(seed).permutation(len(known)).tolist()
        self._seen: set[str] = set()
        self._made = len(known)  # the first round would pair each with itself
        manifest = json.loads((bundle / "manifest.json").read_text())
        self._template = PromptTemplate.model_validate(manifest["template"])
        self._titles = [name for name in self._template.priority if name in self.known[0]][:1]

    def fresh(self, count: int) -> list[Attributes]:
        """The attributes of items that were never made before.

        Raises:
            ValueError: no pair is left.
        """
        films: list[Attributes] = []
        while len(films) < count:
            round_, place = divmod(self._made, len(self._order))
            self._made += 1
            if round_ == len(self._order):
                raise ValueError(f"{len(self._order)} items give no more than {self._made} pairs")
            base = self.known[self._order[place]]
            other = self.known[self._order[(place + round_) % len(self._order)]]
            film = base | {name: other[name] for name in self._titles if name in other}
            text = json.dumps(film)  # two films may differ in nothing but their titles
            if text not in self._seen:
                self._seen.add(text)
                films.append(film)
        return films

    def text(self, film: Attributes) -> str:
        """What the LLM reads of it."""
        return self._template.render(Item(item_id="any", attributes=film)).text


def embed(films: Sequence[Attributes], **fields: object) -> tuple[str, str, object]:
    """A request for the text view of some films."""
    items = [{"item_id": f"f{n}", "attributes": film} for n, film in enumerate(films)]
    return "POST", "/embed", {"items": items, "view": "text"} | fields


def batches(films: Sequence[Attributes], size: int) -> list[Sequence[Attributes]]:
    """As they come, so many at a time; what is left over is left out."""
    return [films[start : start + size] for start in range(0, len(films) - size + 1, size)]
