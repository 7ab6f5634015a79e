"""What a filter says, and what is none."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pytest

from service.columns import Columns
from service.errors import Invalid
from service.filters import (
    MAX_BYTES,
    MAX_CONDITIONS,
    MAX_NESTING,
    MAX_VALUES,
    And,
    AnyOf,
    Bound,
    Exists,
    Filter,
    Not,
    Range,
    Value,
    parse,
)

FILMS: dict[str, dict[str, object]] = {
    "ran": {"title": "Ran", "year": 1985, "genres": ["Drama", "War"], "seen": True},
    "alien": {"title": "Alien", "year": 1979, "genres": ["Horror"], "seen": False},
    "airplane": {"title": "Airplane!", "year": 1980.5, "genres": ["Comedy"], "seen": 1},
    "brazil": {"title": "Brazil", "year": "1985", "genres": [["Comedy", "Drama"], ["Sci-Fi"]]},
    "blank": {"title": "Blank", "year": None, "genres": [], "seen": " "},
    "prices": {"title": "Zürich", "prices": [5, 25], "genres": "Drama"},
}
COLUMNS = Columns.of(FILMS.values())


@dataclass
class Given:
    """Attributes that may be filtered by but for some, with values of some kinds."""

    refused: str | None = None
    there: Collection[Any] = ()

    def refusal(self, name: str) -> str | None:
        return "cannot be filtered by" if name == self.refused else None

    def kinds(self, name: str) -> Collection[Any]:
        return self.there


def read(told: object) -> Filter:
    return parse(told, Given())


def matching(told: object) -> set[str]:
    mask = COLUMNS.mask(read(told))
    return {name for name, there in zip(FILMS, mask.tolist(), strict=True) if there}


def on(attribute: str, **operators: object) -> dict[str, object]:
    return {"attribute": attribute, **operators}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (on("title", eq="Ran"), {"ran"}),
        (on("title", eq="ran"), set()),
        (on("year", eq=1985), {"ran"}),
        (on("year", eq=1985.0), {"ran"}),
        (on("year", eq="1985"), {"brazil"}),
        (on("genres", eq="Drama"), {"ran", "brazil", "prices"}),
        (on("genres", **{"in": ["Horror", "Comedy"]}), {"alien", "airplane", "brazil"}),
        (on("year", **{"in": ["1985", 1979]}), {"alien", "brazil"}),
        (on("year", **{"in": []}), set()),
        (on("year", gt=1979), {"ran", "airplane"}),
        (on("year", gte=1979), {"ran", "airplane", "alien"}),
        (on("year", lt=1985), {"alien", "airplane"}),
        (on("year", lte=1985), {"ran", "alien", "airplane"}),
        (on("year", gte=1980, lt=1985), {"airplane"}),
        (on("year", gt=1985, lt=1979), set()),
        (on("year", gte=-1), {"ran", "alien", "airplane"}),
        (on("year", gte=-2, lt=-1), set()),
        (on("year", gte="1900"), {"brazil"}),
        (on("title", gte="B", lt="C"), {"brazil", "blank"}),
        (on("title", gt="Ran"), {"prices"}),
        (on("title", lte="Alien"), {"airplane", "alien"}),
        (on("prices", gte=5), {"prices"}),
        (on("prices", gt=5, lt=25), set()),
        (on("seen", eq=True), {"ran"}),
        (on("seen", eq=1), {"airplane"}),
        (on("seen", eq=0), set()),
        (on("seen", gte=0), {"airplane"}),
        (on("seen", eq=" "), set()),
        (on("year", exists=True), {"ran", "alien", "airplane", "brazil"}),
        (on("year", exists=False), {"blank", "prices"}),
        (on("genres", exists=False), {"blank"}),
        (on("other", exists=True), set()),
        (on("other", eq="x"), set()),
        ({"not": on("seen", eq=True)}, set(FILMS) - {"ran"}),
        ({"and": [on("genres", eq="Drama"), on("genres", eq="War")]}, {"ran"}),
        ({"and": [on("prices", gt=20), on("prices", lt=20)]}, {"prices"}),
        ({"or": [on("title", eq="Ran"), on("year", lt=1980)]}, {"ran", "alien"}),
        (
            {"and": [{"not": {"or": [on("year", lt=1980), on("seen", eq=1)]}}, on("year", gte=0)]},
            {"ran"},
        ),
    ],
)
def test_a_filter_takes_the_items_that_have_such_a_value(told: object, expected: set[str]) -> None:
    assert matching(told) == expected


def test_the_bounds_of_one_condition_are_of_one_value_and_those_of_two_may_be_of_two() -> None:
    assert matching(on("prices", gt=10, lt=20)) == set()  # neither 5 nor 25
    assert matching({"and": [on("prices", gt=10), on("prices", lt=20)]}) == {"prices"}


@pytest.mark.parametrize("name", ["and", "or", "not", "in", "attribute", "", "é", "a\x00b"])
def test_attributes_may_have_any_name(name: str) -> None:
    columns = Columns.of([{name: 1}, {name: 2}, {name + "x": 1}])

    assert columns.mask(read(on(name, eq=1))).tolist() == [True, False, False]


def test_strings_are_ordered_by_code_point() -> None:
    words = ["Z", "a", "é", "日本", "🎬", "a\x00", "ab"]
    columns = Columns.of({"word": word} for word in words)

    for bound in words:
        found = columns.mask(read(on("word", lt=bound))).tolist()
        assert found == [word < bound for word in words]
        found = columns.mask(read(on("word", gt=bound))).tolist()
        assert found == [word > bound for word in words]


def test_numbers_are_ordered_as_64_bit_floats() -> None:
    numbers = [-(10**400), -1e300, -2, -0.0, 5e-324, 0.5, 2, 2**53 + 1, 1e300, 10**400]
    columns = Columns.of({"n": number} for number in numbers)

    for at, bound in enumerate(numbers[1:-1], 1):
        found = columns.mask(read(on("n", lt=bound))).tolist()
        assert found == [True] * at + [False] * (len(numbers) - at)
    assert columns.mask(read(on("n", eq=0))).tolist().index(True) == 3
    assert columns.mask(read(on("n", eq=2**53))).tolist().index(True) == 7  # as JavaScript does


def test_a_long_string_exists_and_is_not_compared() -> None:
    columns = Columns.of([{"plot": "x" * MAX_BYTES}, {"plot": "x" * (MAX_BYTES + 1)}, {}])

    assert columns.mask(read(on("plot", exists=True))).tolist() == [True, True, False]
    assert columns.mask(read(on("plot", gte=""))).tolist() == [True, False, False]
    assert columns.mask(read(on("plot", eq="x" * MAX_BYTES))).tolist() == [True, False, False]


def test_the_same_filter_in_another_order_is_equal_and_another_is_not() -> None:
    first, second = on("a", **{"in": [1, "x", 1.0]}), on("b", eq=True)

    assert read({"and": [first, second]}) == read(
        {"and": [second, on("a", **{"in": ["x", 1]}), second]}
    )
    assert len({read(each) for each in ({"and": [first]}, {"or": [first]}, first)}) == 3
    assert read(on("a", eq=True)) != read(on("a", eq=1))
    assert read(on("a", eq=0)) == read(on("a", eq=-0.0))
    assert read(on("a", gt=1)) != read(on("a", gte=1))
    assert read(on("a", gt=1)) != read(on("a", lt=1))


def test_a_filter_is_a_tree_of_conditions() -> None:
    told = {"and": [{"not": on("a", exists=True)}, on("b", gte=1, lt=2.5), on("c", eq="x")]}

    assert read(told) == And(
        frozenset(
            [
                Not(Exists("a")),
                Range(
                    "b",
                    "number",
                    Bound(Value("number", 1.0), True),
                    Bound(Value("number", 2.5), False),
                ),
                AnyOf("c", frozenset([Value("string", "x")])),
            ]
        )
    )
    assert read(on("a", exists=False)) == Not(Exists("a"))


def nested(depth: int) -> object:
    told: object = on("a", eq=1)
    for _ in range(depth):
        told = {"not": told}
    return told


@pytest.mark.parametrize(
    ("told", "field", "message"),
    [
        (7, "filter", "must be an object"),
        ([], "filter", "must be an object"),
        ({}, "filter", "is empty"),
        ({"genres": {"in": ["x"]}}, "filter", r'write {"attribute": "genres", "eq": …}'),
        ({"eq": 1}, "filter", "has no `attribute`"),
        ({"and": [], "or": []}, "filter", "has and and or; each needs an object"),
        ({"and": []}, "filter.and", "a list of one filter or more"),
        ({"or": {"attribute": "a"}}, "filter.or", "a list of one filter or more"),
        ({"not": [on("a", eq=1)]}, "filter.not", "must be an object"),
        ({"and": [on("a", eq=1), 3]}, "filter.and[1]", "must be an object"),
        ({"attribute": 3, "eq": 1}, "filter.attribute", "must be an attribute's name"),
        (on("a"), "filter", "has no operator; there are eq, in, gt"),
        (on("a", like="x"), "filter", '"like" is no operator; there are eq'),
        (on("a", eq=None), "filter.eq", '"exists": false'),
        (on("a", eq=[1]), "filter.eq", "`in` takes a list"),
        (on("a", eq={}), "filter.eq", "a string, a number or a boolean"),
        (on("a", eq="é" * 129), "filter.eq", "longer than 256 bytes"),
        (on("a", eq=10**400), "filter.eq", "too large"),
        (on("a", **{"in": "x"}), "filter.in", "must be a list"),
        (on("a", **{"in": ["x", None]}), "filter.in[1]", "is null"),
        (on("a", **{"in": [0] * (MAX_VALUES + 1)}), "filter.in", "1000 together"),
        (on("a", exists=1), "filter.exists", "true or false"),
        (on("a", eq=1, gte=1), "filter.eq", "stands alone"),
        (on("a", gte=1, exists=True), "filter.exists", "stands alone"),
        (on("a", gt=1, gte=1), "filter.gte", "stands beside gt"),
        (on("a", gt=True), "filter.gt", "no order"),
        (on("a", gt=1, lt="x"), "filter", "a number and a string"),
        (on("a", lt=None), "filter.lt", "is null"),
        ({"or": [{"and": [on("a", eq=1), on("year", gte=[])]}]}, "filter.or[0].and[1].gte", "must"),
        (nested(MAX_NESTING + 1), "filter" + ".not" * MAX_NESTING, "nested deeper than 8"),
        (
            {"or": [on("a", eq=1)] * (MAX_CONDITIONS + 1)},
            f"filter.or[{MAX_CONDITIONS}]",
            "more than the 64",
        ),
    ],
)
def test_what_is_no_filter_is_refused_with_the_path_of_the_error(
    told: object, field: str, message: str
) -> None:
    with pytest.raises(Invalid) as refused:
        read(told)

    (error,) = refused.value.errors
    assert error.field == field
    assert message in error.message
    assert error.value is not None or field.endswith(("eq", "lt", "in[1]"))  # a null


def test_a_filter_may_be_as_large_as_is_allowed() -> None:
    read(nested(MAX_NESTING))
    read({"or": [on("a", eq=1)] * MAX_CONDITIONS})
    read(on("a", **{"in": list(range(MAX_VALUES))}))


def test_lists_are_counted_together() -> None:
    half = [0] * (MAX_VALUES // 2 + 1)

    with pytest.raises(Invalid, match=r"filter\.and\[1\]\.in: has 501 values"):
        read({"and": [on("a", **{"in": half}), on("b", **{"in": half})]})


def test_an_attribute_that_is_not_filterable_is_refused_where_it_stands() -> None:
    told = {"and": [on("a", eq=1), {"not": on("b", eq=1)}]}

    with pytest.raises(Invalid) as refused:
        parse(told, Given(refused="b"))

    assert refused.value.errors[0].field == "filter.and[1].not.attribute"


@pytest.mark.parametrize(
    ("there", "told", "field", "message"),
    [
        ({"string"}, on("a", gte=1), "filter.gte", "asks for numbers, and items have strings"),
        ({"number"}, on("a", eq=True), "filter.eq", "asks for booleans, and items have numbers"),
        ({"text"}, on("a", **{"in": ["x"]}), "filter.in", "more than 256 bytes, which are not"),
        ({"number", "text"}, on("a", lt="x"), "filter.lt", "have numbers and strings of more"),
    ],
)
def test_values_of_a_kind_that_no_item_has_while_they_have_others_are_refused(
    there: set[str], told: object, field: str, message: str
) -> None:
    with pytest.raises(Invalid) as refused:
        parse(told, Given(there=there))

    (error,) = refused.value.errors
    assert error.field == field
    assert message in error.message


@pytest.mark.parametrize(
    ("there", "told", "instead"),
    [
        ({"string"}, on("a", gte=1990), '; send "1990"'),
        ({"string"}, on("a", lt=-0.5), '; send "-0.5"'),
        ({"string"}, on("a", **{"in": [1990, 1991]}), '; send "1990" and the like'),
        ({"number"}, on("a", eq="1990"), "; send 1990"),
        ({"number"}, on("a", **{"in": ["9.5"]}), "; send 9.5 and the like"),
        ({"number"}, on("a", eq="new"), "there"),
        ({"number"}, on("a", eq="٣"), "there"),
        ({"boolean"}, on("a", eq=1), "there"),
        ({"string"}, on("a", eq=True), "there"),
    ],
)
def test_a_number_for_a_string_and_the_other_way_round_are_told_what_to_send(
    there: set[str], told: object, instead: str
) -> None:
    with pytest.raises(Invalid) as refused:
        parse(told, Given(there=there))

    assert refused.value.errors[0].message.endswith(instead)


def test_one_kind_that_items_have_is_enough_and_where_nobody_has_any_all_may_be_asked_for() -> None:
    for told in (on("a", **{"in": [1, "x"]}), on("a", **{"in": []}), on("a", exists=True)):
        parse(told, Given(there={"string"}))
    for told in (on("a", gt=1), on("a", eq="x")):
        parse(told, Given(there=()))
