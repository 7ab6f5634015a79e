import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.item import Item
from models.prompt import PromptTemplate
from training.copies import shuffle, thin

TEMPLATE = PromptTemplate(priority=("title",))
words = st.lists(st.sampled_from(["red", "blue", "nail", "polish"]), min_size=1, max_size=8)


@given(words, words, st.lists(words, max_size=3), st.integers(0, 10_000))
def test_thinning_never_takes_the_title_and_never_everything(
    title: list[str], note: list[str], paths: list[list[str]], seed: int
) -> None:
    item = Item(
        item_id="1", attributes={"title": " ".join(title), "note": " ".join(note), "paths": paths}
    )

    thinned = thin(item, TEMPLATE, 0.9, 0.9, np.random.default_rng(seed))

    kept = str(thinned.attributes["title"]).split()
    assert len(kept) >= len(title) / 2
    assert all(word in title for word in kept)
    for name, value in thinned.attributes.items():
        assert value, name
    TEMPLATE.render(thinned)


def test_values_are_thinned_inside_and_copies_differ() -> None:
    item = Item(
        item_id="1",
        attributes={"title": "one two three four five six", "genres": ["a", "b", "c", "d"]},
    )
    random = np.random.default_rng(0)

    copies = [thin(item, TEMPLATE, 0.3, 0.3, random) for _ in range(50)]

    assert len({copy.model_dump_json() for copy in copies}) > 30
    assert any(len(copy.attributes.get("genres", [])) in {1, 2, 3} for copy in copies)
    assert any("genres" not in copy.attributes for copy in copies)


def test_without_dropping_a_copy_is_the_item() -> None:
    item = Item(item_id="1", attributes={"title": "a b", "price": 3, "genres": [["x", "y"], "z"]})

    assert thin(item, TEMPLATE, 0.0, 0.0, np.random.default_rng(0)) == item


def test_the_papers_copies_are_shuffled_and_lose_a_share_of_whole_attributes() -> None:
    names = ["brand", "colour", "size", "title"]
    item = Item(item_id="1", attributes={name: f"{name} of it" for name in names})
    random = np.random.default_rng(0)

    copies = [shuffle(item, TEMPLATE, 0.4, random) for _ in range(200)]

    orders = {tuple(name for name, _ in copy.ends) for copy in copies}
    assert {len(order) for order in orders} == {3}  # int(0.4 * 4) = 1 is left out
    assert len(orders) == 4 * 3 * 2
    assert all(copy.instruction == TEMPLATE.instruction for copy in copies)
    assert "colour is colour of it" in copies[0].body + copies[1].body


def test_an_item_of_one_attribute_keeps_it_in_the_papers_copies() -> None:
    item = Item(item_id="1", attributes={"title": "red polish"})

    copy = shuffle(item, TEMPLATE, 0.9, np.random.default_rng(0))

    assert copy.body == "title is red polish"
