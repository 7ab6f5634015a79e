"""Columns agree with plain Python over the attributes, whatever was taken and joined."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from service.columns import KEPT, Columns, appended
from service.filters import And, AnyOf, Exists, Filter, Not, Or, Range, parse
from tests.service.test_filters import Given

NAMES = ["a", "b", "and", "ab"]
# Few, so that filters meet them, and alike, so that kinds are told apart.
SCALARS = [True, False, 0, 1, 1.0, -0.0, -1, 2.5, "", " ", "0", "1", "a", "ab", "é", "x" * 300]
values = some.recursive(
    some.one_of(some.sampled_from(SCALARS), some.none()),
    lambda inner: some.lists(inner, max_size=3),
    max_leaves=4,
)
attributes = some.dictionaries(some.sampled_from(NAMES), values, max_size=3)
plain = [each for each in SCALARS if each != "x" * 300]
numbers = some.sampled_from([each for each in plain if type(each) in {int, float}])
strings = some.sampled_from([each for each in plain if isinstance(each, str)])


@some.composite
def conditions(draw: some.DrawFn) -> dict[str, Any]:
    told: dict[str, Any] = {"attribute": draw(some.sampled_from(NAMES))}
    kind = draw(some.sampled_from(["eq", "in", "exists", "range"]))
    if kind == "eq":
        told["eq"] = draw(some.sampled_from(plain))
    elif kind == "in":
        told["in"] = draw(some.lists(some.sampled_from(plain), max_size=4))
    elif kind == "exists":
        told["exists"] = draw(some.booleans())
    else:
        ends = draw(some.sampled_from([numbers, strings]))
        lower, upper = (
            draw(some.sampled_from(["gt", "gte"])),
            draw(some.sampled_from(["lt", "lte"])),
        )
        both = draw(some.sampled_from([{lower}, {upper}, {lower, upper}]))
        told |= {name: draw(ends) for name in sorted(both)}
    return told


filters = some.recursive(
    conditions(),
    lambda inner: some.one_of(
        inner.map(lambda each: {"not": each}),
        some.lists(inner, min_size=1, max_size=3).map(lambda each: {"and": each}),
        some.lists(inner, min_size=1, max_size=3).map(lambda each: {"or": each}),
    ),
    max_leaves=5,
)


def members(value: object) -> list[Any]:
    if isinstance(value, list):
        return [member for part in value for member in members(part)]
    return [] if value is None or (isinstance(value, str) and not value.strip()) else [value]


def kind(value: object) -> str:
    return (
        "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
    )


def holds(value: Any, told: dict[str, Any]) -> bool:  # noqa: ANN401
    """Whether one value meets all operators of a condition."""

    def alike(other: object) -> bool:
        return kind(other) == kind(value) and (kind(value) != "string" or len(value) <= 256)

    tests = {
        "eq": lambda asked: alike(asked) and value == asked,
        "in": lambda asked: any(alike(each) and value == each for each in asked),
        "gt": lambda asked: alike(asked) and value > asked,
        "gte": lambda asked: alike(asked) and value >= asked,
        "lt": lambda asked: alike(asked) and value < asked,
        "lte": lambda asked: alike(asked) and value <= asked,
    }
    return all(tests[name](asked) for name, asked in told.items() if name != "attribute")


def matches(item: dict[str, Any], told: dict[str, Any]) -> bool:
    """What the documents say, in plain Python."""
    if "attribute" in told:
        found = members(item.get(told["attribute"]))
        if "exists" in told:
            return bool(found) == told["exists"]
        return any(holds(value, told) for value in found)
    ((name, inner),) = told.items()
    if name == "not":
        return not matches(item, inner)
    return (all if name == "and" else any)(matches(item, each) for each in inner)


def read(told: object) -> Filter:
    return parse(told, Given())


def agree(columns: Columns, items: list[dict[str, Any]], told: dict[str, Any]) -> None:
    assert columns.mask(read(told)).tolist() == [matches(item, told) for item in items]


@given(some.lists(attributes, max_size=8), some.lists(filters, min_size=1, max_size=4))
def test_a_mask_is_what_plain_python_says(
    items: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> None:
    columns = Columns.of(items)

    for told in asked:
        agree(columns, items, told)


@settings(max_examples=200)
@given(some.data(), some.lists(attributes, max_size=6), filters)
def test_what_was_taken_and_joined_is_as_made_at_once(
    data: some.DataObject, items: list[dict[str, Any]], told: dict[str, Any]
) -> None:
    columns = Columns.of(items)
    for more in data.draw(some.lists(some.lists(attributes, max_size=6), max_size=4)):
        order = data.draw(some.permutations(range(len(items))))
        rows = order[: data.draw(some.integers(0, len(items)))]
        items = [items[row] for row in rows] + more

        columns = columns.take(np.array(rows, np.int64)).joined(Columns.of(more))

        agree(columns, items, told)
        assert len(columns) == len(items)
    once = Columns.of(items)
    assert list(columns._keys) == list(once._keys)  # values that nobody has any more are gone
    assert columns.nbytes == once.nbytes


def test_only_the_names_that_are_asked_for_are_kept() -> None:
    items = [{"a": 1, "b": 2}, {"b": 3}]
    columns = Columns.of(items, frozenset({"b", "later"}))

    assert [columns.kinds(name) for name in ("a", "b", "later")] == [set(), {"number"}, set()]
    joined = columns.joined(Columns.of([{"later": True}], frozenset({"b", "later"})))
    assert joined.mask(read({"attribute": "later", "eq": True})).tolist() == [False, False, True]


def test_pieces_stay_few_and_are_the_same_items() -> None:
    pieces: tuple[Columns, ...] = ()
    for number in range(100):
        pieces = appended(pieces, Columns.of([{"n": number}] if number % 3 else []))

    assert [len(piece) for piece in pieces] == [64, 2]
    told = read({"attribute": "n", "gt": 50})
    expected = [number > 50 for number in range(100) if number % 3]
    assert np.concatenate([piece.mask(told) for piece in pieces]).tolist() == expected
    assert Columns.joining(pieces).mask(told).tolist() == expected
    assert len(Columns.joining(())) == 0


def test_columns_can_be_kept_as_arrays() -> None:
    items: list[dict[str, Any]] = [{"a": ["x", 1, True]}, {}, {"é": -2.5}]
    arrays = {name: each.copy() for name, each in Columns.of(items).arrays.items()}

    read_again = Columns.of_arrays(3, arrays)

    for told in ({"attribute": "a", "eq": "x"}, {"attribute": "é", "lt": 0}):
        agree(read_again, items, told)


def test_a_name_that_is_too_long_is_left_out() -> None:
    assert not Columns.of([{"a" * 257: 1}]).kinds("a" * 257)


def test_columns_tell_the_kinds_of_an_attributes_values() -> None:
    columns = Columns.of(
        [{"a": [1, "x"], "b": True}, {"a": "x" * 257, "b": [], "ab": None}, {"a": 2.5}]
    )

    assert columns.kinds("a") == {"number", "string", "text"}
    assert columns.kinds("b") == {"boolean"}
    assert columns.kinds("ab") == columns.kinds("") == set()


def test_a_mask_is_kept_and_cannot_be_written() -> None:
    columns = Columns.of([{"a": 1}, {"a": 2}])
    asked = read({"attribute": "a", "eq": 2})

    mask = columns.mask(asked)

    assert columns.mask(read({"attribute": "a", "in": [2]})) is mask
    assert not mask.flags.writeable
    for number in range(KEPT):
        columns.mask(read({"attribute": "a", "gt": number}))
    assert columns.mask(asked) is not mask  # the oldest goes
    assert len(columns._masks) == KEPT


def test_a_value_that_many_items_share_costs_four_bytes_an_item() -> None:
    genres = [["Comedy", "Drama"], ["Horror"]]
    columns = Columns.of({"genres": genres[number % 2], "sale": True} for number in range(10_000))

    rows = 10_000 * (2 + 1) // 2 + 10_000
    assert columns.nbytes < 4 * rows + 200


def test_a_condition_looks_at_no_other_rows_than_those_of_its_values() -> None:
    """A selective filter on a large catalogue is answered from its rows alone."""
    columns = Columns.of({"id": number, "even": number % 2 == 0} for number in range(1000))
    seen: list[int] = []

    class Watched(np.ndarray[Any, Any]):
        def __getitem__(self, key: Any) -> Any:  # noqa: ANN401
            rows = np.asarray(self)[key]
            seen.append(rows.size)
            return rows

    columns._rows = columns._rows.view(Watched)

    columns.mask(read({"attribute": "id", "in": [7, 400, 5000]}))
    columns.mask(read({"attribute": "id", "gte": 10, "lt": 15}))

    assert sorted(seen) == [0, 1, 1, 5]


def test_every_kind_of_filter_is_evaluated() -> None:
    assert {And, AnyOf, Exists, Not, Or, Range} == set(Filter.__args__)
