"""Conditional writes: what a condition lets through, and what a header says."""

import pytest

from service.errors import Malformed
from service.versions import ALWAYS, ANY, Condition, conditions_in, etag, exactly


def condition(**headers: str) -> Condition:
    given = {name.replace("_", "-"): [each] for name, each in headers.items()}
    return conditions_in(lambda name: given.get(name, []))


@pytest.mark.parametrize(
    ("wanted", "may"),
    [  # of no item, of version 3, of version 4
        (condition(), (True, True, True)),
        (condition(if_match='"3"'), (False, True, False)),
        (condition(if_match='"2", "3"'), (False, True, False)),
        (condition(if_match="*"), (False, True, True)),
        (condition(if_match='W/"3"'), (False, False, False)),  # weak tags never match here
        (condition(if_match='"not ours", "33333333333333333333"'), (False, False, False)),
        (condition(if_none_match="*"), (True, False, False)),
        (condition(if_none_match='W/"3"'), (True, False, True)),
        (condition(if_match="*", if_none_match='"3"'), (False, False, True)),
        (exactly(3), (False, True, False)),
        (exactly(0), (True, False, False)),
        (ALWAYS, (True, True, True)),
    ],
)
def test_a_condition_lets_through_what_it_says(wanted: Condition, may: tuple[bool, ...]) -> None:
    assert tuple(wanted.refusal(version) is None for version in (None, 3, 4)) == may


@pytest.mark.parametrize("value", ["3", "", '"3', '3"', '"3",', '*, "3"', 'w/"3"', "x" * 500])
def test_a_header_that_holds_no_tag_is_refused_and_shown(value: str) -> None:
    with pytest.raises(Malformed, match="If-Match is .*send .* the ETag") as error:
        condition(if_match=value)

    assert len(str(error.value)) < 150


def test_a_header_that_comes_twice_is_one_list() -> None:
    twice = conditions_in(lambda name: ['"3"', '"5"'] if name == "if-match" else [])

    assert [twice.refusal(version) is None for version in (3, 4, 5)] == [True, False, True]


def test_a_version_comes_back_from_its_tag() -> None:
    assert condition(if_match=etag(12345)) == exactly(12345)
    assert condition(if_none_match=ANY) == exactly(0)
