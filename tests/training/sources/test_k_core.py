from hypothesis import given
from hypothesis import strategies as st

from training.sources import Events, first_of_each
from training.sources.k_core import k_core


def events_of_pairs(pairs: list[tuple[str, str]]) -> Events:
    users, items = [user for user, _ in pairs], [item for _, item in pairs]
    return Events(users, items, [float(n) for n in range(len(pairs))], [f"x:{n}" for n, _ in pairs])


def pairs_of(events: Events) -> list[tuple[str, str]]:
    return list(zip(events.users, events.items, strict=True))


def slow_core(pairs: list[tuple[str, str]], users: int, items: int) -> list[tuple[str, str]]:
    """Takes away one interaction at a time."""
    left = list(pairs)
    while True:
        for place, (user, item) in enumerate(left):
            of_user = sum(other == user for other, _ in left)
            of_item = sum(other == item for _, other in left)
            if of_user < users or of_item < items:
                del left[place]
                break
        else:
            return left


def test_the_core_goes_on_until_nothing_changes() -> None:
    # c is used once and goes; that leaves w with b alone, so w goes; that leaves b with v alone.
    square = [(user, item) for user in ("u", "v") for item in ("a", "d")]
    events = events_of_pairs([*square, ("v", "b"), ("w", "b"), ("w", "c")])

    left = k_core(events, 2, 2)

    assert pairs_of(left) == square
    assert left.times == [0.0, 1.0, 2.0, 3.0]
    assert left.where == ["x:u", "x:u", "x:v", "x:v"]


def test_a_core_may_be_empty_and_users_and_items_have_bounds_of_their_own() -> None:
    chain = events_of_pairs([("u", "a"), ("v", "a"), ("v", "b"), ("w", "b")])

    assert pairs_of(k_core(chain, 2, 2)) == []
    assert pairs_of(k_core(chain, 1, 2)) == pairs_of(chain)
    assert pairs_of(k_core(chain, 2, 1)) == [("v", "a"), ("v", "b")]
    assert pairs_of(k_core(chain, 0, 0)) == pairs_of(chain)
    assert pairs_of(k_core(events_of_pairs([]), 5, 5)) == []


PAIRS = st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdef")), max_size=40)


@given(PAIRS, st.integers(0, 4), st.integers(0, 4))
def test_the_core_is_the_largest_part_in_which_all_have_enough(
    pairs: list[tuple[str, str]], users: int, items: int
) -> None:
    left = k_core(events_of_pairs(pairs), users, items)

    assert all(left.users.count(user) >= users for user in left.users)
    assert all(left.items.count(item) >= items for item in left.items)
    assert k_core(left, users, items) == left
    assert pairs_of(left) == slow_core(pairs, users, items)


@given(PAIRS)
def test_the_first_of_each_pair_stays_in_its_place(pairs: list[tuple[str, str]]) -> None:
    left, dropped = first_of_each(events_of_pairs(pairs))

    assert pairs_of(left) == list(dict.fromkeys(pairs))
    assert dropped == len(pairs) - len(set(pairs))
