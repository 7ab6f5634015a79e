import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.item import InvalidItem, Item
from models.prompt import PromptTemplate


def item(**attributes: object) -> Item:
    return Item.model_validate({"item_id": "1", "attributes": attributes})


def test_a_prompt_reads_like_a_sentence() -> None:
    template = PromptTemplate(noun="film", priority=("title", "release_year"))

    prompt = template.render(item(genres=["Comedy", "Drama"], release_year="1995", title="Heat"))

    assert prompt.text == (
        "The film has the following attributes:\n"
        "title is Heat; release year is 1995; genres is Comedy, Drama"
    )


def test_nested_lists_are_paths_and_missing_values_are_skipped() -> None:
    prompt = PromptTemplate().render(
        item(
            categories=[["Beauty", "Nails"], ["Gifts", None]],
            price=3.0,
            vegan=True,
            brand=None,
            note="",
        )
    )

    assert prompt.body == "categories is Beauty > Nails, Gifts; price is 3; vegan is yes"


@given(st.permutations(["title", "brand", "price", "genres", "year"]))
def test_the_same_item_gives_the_same_prompt_whatever_the_order_of_its_keys(
    names: list[str],
) -> None:
    template = PromptTemplate()
    values = {"title": "A", "brand": "B", "price": 2, "genres": ["x"], "year": 1999}

    assert template.render(item(**{name: values[name] for name in names})) == template.render(
        item(**values)
    )


def test_ends_say_where_each_attribute_ends_in_the_body() -> None:
    prompt = PromptTemplate(priority=("title",)).render(item(brand="Bee", title="Sea"))

    assert [(name, prompt.body[:end]) for name, end in prompt.ends] == [
        ("title", "title is Sea"),
        ("brand", "title is Sea; brand is Bee"),
    ]


def test_an_item_whose_every_attribute_is_excluded_is_refused() -> None:
    with pytest.raises(InvalidItem, match="nothing|excludes price"):
        PromptTemplate(exclude=("price",)).render(item(price=3))
