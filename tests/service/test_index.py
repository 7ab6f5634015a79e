"""Search agrees with plain numpy, whatever came and went; where it is clustered, nearly."""

import numpy as np
import pytest

from service import index as module
from service import vectors
from service.index import Snapshot, Views
from service.vectors import Clustered, vectors_of

WIDTHS = {"text": 6, "id": 3}
NOBODY = np.empty(0, np.int64)


def some_item(random: np.random.Generator) -> Views:
    views = {"text": random.normal(size=6).astype(np.float32)}
    if random.random() < 0.7:
        views["id"] = random.normal(size=3).astype(np.float32)
    return views


@pytest.fixture(params=["all compared", "faiss", "clustered"], autouse=True)
def _every_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "all compared":
        monkeypatch.setattr(module, "COMPARE_ALL", 0)
        monkeypatch.setattr(vectors, "COMPARE_ONLY", 0)
    if request.param == "clustered":
        monkeypatch.setattr(vectors, "CLUSTER_FROM", 30)
        # Every cluster is looked into, so that what is found is exact here, too.
        monkeypatch.setattr(vectors, "RECALL", {25: 1.1, 1000: 1.1})


def search(
    snapshot: Snapshot, view: str, query: np.ndarray, k: int, excluded: list[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One query, with another beside it that must not matter."""
    other = np.ones_like(query) if query.sum() < 1 else -query
    allowed = [snapshot.allowed(snapshot.places(excluded or [])), snapshot.allowed(NOBODY)]
    return snapshot.search(view, np.stack([query, other]), [k, 3], allowed)[0]


def best(items: dict[str, Views], view: str, query: np.ndarray, k: int) -> list[str]:
    scored = [(-float(v[view] @ query), i) for i, v in items.items() if view in v]
    return [item_id for _, item_id in sorted(scored)[:k]]


def test_search_is_exact_through_upserts_deletes_and_merges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MERGE_AT", 10)
    random = np.random.default_rng(0)
    items = {f"i{n}": some_item(random) for n in range(40)}
    snapshot = Snapshot.of(items, WIDTHS)
    merged = 0

    for step in range(60):
        upserts = {f"i{random.integers(80)}": some_item(random) for _ in range(random.integers(3))}
        deletes = [i for i in (f"i{random.integers(80)}",) if i not in upserts]
        before = snapshot
        snapshot = snapshot.with_changes(upserts, deletes)
        if before.overgrown:  # a new main block is made while changes go on
            snapshot = snapshot.on(before.rebuilt())
            merged += 1
        items.update(upserts)
        for item_id in deletes:
            items.pop(item_id, None)
        excluded = list(items)[: step % 7]
        left = {i: v for i, v in items.items() if i not in excluded}

        assert len(snapshot) == len(items)
        for view, width in WIDTHS.items():
            query = random.normal(size=width).astype(np.float32)
            places, scores = search(snapshot, view, query, 9, excluded)
            found = [snapshot.item_id(place) for place in places.tolist()]
            assert found == best(left, view, query, 9)
            assert (np.diff(scores) <= 0).all()
        for item_id, views in items.items():
            assert item_id in snapshot
            held = snapshot.views(item_id)
            assert held is not None
            assert held.keys() == views.keys()
            np.testing.assert_array_equal(held["text"], views["text"])
    assert merged > 3


def test_places_of_items_that_are_gone_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MERGE_AT", 10)
    random = np.random.default_rng(3)
    items = {f"i{n}": some_item(random) for n in range(100)}
    snapshot = Snapshot.of(items, WIDTHS, hidden={"i98"})
    gone = [f"i{n}" for n in range(0, 60)]

    before = snapshot.with_changes({}, gone)
    changed = {"i99": some_item(random), "new": some_item(random)}
    after = before.with_changes(changed, ["i97"], hidden={"new"}).on(before.rebuilt())

    assert before.overgrown
    assert len(after.main) == 40
    assert (len(after), after.shown) == (40, 38)  # i98 and new are hidden
    assert "i0" not in after
    assert "i97" not in after
    held = after.views("i99")
    assert held is not None
    np.testing.assert_array_equal(held["text"], changed["i99"]["text"])


def test_two_ways_on_from_one_snapshot_know_nothing_of_each_other() -> None:
    random = np.random.default_rng(4)
    start = Snapshot.of({"a": some_item(random)}, WIDTHS)
    left, right = some_item(random), some_item(random)

    one = start.with_changes({"b": left}, ())
    other = start.with_changes({"b": right}, ())

    for snapshot, views in ((one, left), (other, right)):
        held = snapshot.views("b")
        assert held is not None
        np.testing.assert_array_equal(held["text"], views["text"])


def test_an_old_snapshot_never_changes() -> None:
    random = np.random.default_rng(1)
    items = {f"i{n}": some_item(random) for n in range(5)}
    old = Snapshot.of(items, WIDTHS)

    new = old.with_changes({"i1": some_item(random), "x": some_item(random)}, ["i2"])

    assert (len(old), len(new)) == (5, 5)
    assert "i2" in old
    assert "i2" not in new
    held = old.views("i1")
    assert held is not None
    np.testing.assert_array_equal(held["text"], items["i1"]["text"])


def test_k_come_back_however_few_are_allowed() -> None:
    random = np.random.default_rng(2)
    items = {f"i{n}": some_item(random) for n in range(3000)}
    snapshot = Snapshot.of(items, WIDTHS)
    excluded = [item_id for item_id in items if item_id not in {"i5", "i1500", "i2999"}]

    places, _ = search(snapshot, "text", np.ones(6, np.float32), 10, excluded)

    assert {snapshot.item_id(place) for place in places.tolist()} == {"i5", "i1500", "i2999"}


def test_ties_take_the_lower_id_also_across_k() -> None:
    same: Views = {"text": np.ones(6, np.float32)}
    snapshot = Snapshot.of({f"i{n}": same for n in (7, 3, 9, 1, 5)}, WIDTHS)
    snapshot = snapshot.with_changes({"i0": same, "i4": same}, ())

    places, _ = search(snapshot, "text", np.ones(6, np.float32), 4)

    assert [snapshot.item_id(place) for place in places.tolist()] == ["i0", "i1", "i3", "i4"]


def test_an_empty_catalogue_can_be_searched() -> None:
    snapshot = Snapshot.of({}, WIDTHS)

    places, scores = search(snapshot, "id", np.ones(3, np.float32), 5)

    assert (len(places), len(scores), len(snapshot)) == (0, 0, 0)


def a_catalogue(count: int, width: int, seed: int) -> np.ndarray:
    """Vectors in groups, some ten times as long as others."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(50, width))
    vectors = centres[random.integers(50, size=count)] + 0.6 * random.normal(size=(count, width))
    return (vectors * random.lognormal(0, 0.5, size=(count, 1))).astype(np.float32)


@pytest.mark.parametrize("quantised", [False, True])
def test_clusters_miss_few_and_none_of_a_filter_that_few_pass(
    monkeypatch: pytest.MonkeyPatch, quantised: bool
) -> None:
    monkeypatch.setattr(vectors, "CLUSTER_FROM", 1000)
    monkeypatch.setattr(vectors, "RECALL", {25: 0.99, 1000: 0.98})
    table = a_catalogue(6000, 16, seed=0)
    held = vectors_of(table, np.ones(6000, bool), quantised=quantised)
    assert isinstance(held, Clustered)
    assert held.probes[25] < 128  # not all of them
    stored = held.at(np.arange(6000))
    assert np.abs(stored - table).max() <= (0.1 if quantised else 0)
    random = np.random.default_rng(1)
    few = np.zeros(6000, bool)
    few[random.choice(6000, 60, replace=False)] = True
    found = []
    for _ in range(50):
        query = (table[random.choice(6000, 3)].mean(axis=0)).astype(np.float32)
        places, _ = held.search(query, 25, np.ones(6000, bool))
        truth = np.argsort(-(stored @ query))[:25]
        found.append(len(set(places.tolist()) & set(truth.tolist())) / 25)
        allowed = np.flatnonzero(few)
        best = allowed[np.argsort(-(stored[allowed] @ query))[:25]]
        places, _ = held.search(query, 25, few)
        assert set(best.tolist()) <= set(places.tolist())
    assert np.mean(found) > 0.95


def test_who_is_left_out_after_a_search_might_as_well_have_been_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vectors, "CLUSTER_FROM", 1000)
    monkeypatch.setattr(vectors, "COMPARE_ONLY", 0)
    table = a_catalogue(2000, 16, seed=0)
    held = vectors_of(table, np.ones(2000, bool))
    query = table[:3].mean(axis=0)
    for out in (0, 1, 30):
        may = np.ones(2000, bool)
        may[np.argsort(-(table @ query))[:out]] = False  # the best of all

        monkeypatch.setattr(vectors, "FEW_OUT", 100)
        places, scores = held.search(query, 5, may)
        monkeypatch.setattr(vectors, "FEW_OUT", -1)
        before, _ = held.search(query, 5, may)

        best = np.argsort(-scores)[:5]
        assert may[places].all()
        assert set(places[best]) == set(before[:5])


def test_clusters_that_grow_find_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CLUSTER_FROM", 1000)
    table, more = a_catalogue(2000, 16, seed=0), a_catalogue(500, 16, seed=1)
    present = np.arange(500) % 2 == 0
    before = vectors_of(table, np.ones(2000, bool))

    after = before.joined(more, present)

    assert (len(before), len(after)) == (2000, 2500)
    np.testing.assert_array_equal(after.at(np.array([5, 2000])), [table[5], more[0]])
    assert not after.at(np.array([2001])).any()  # it has no vector
    may = np.concatenate([np.ones(2000, bool), present])
    for row in (0, 100, 498):
        places, scores = after.search(100 * more[row], 1, may)
        assert 2000 + row in places[scores == scores.max()] or scores.max() > 100 * float(
            more[row] @ more[row]
        )


def test_a_query_that_ties_all_items_is_answered_in_little_work() -> None:
    same: Views = {"text": np.ones(6, np.float32)}
    snapshot = Snapshot.of({f"i{n:05}": same for n in range(9000)}, WIDTHS)

    places, scores = search(snapshot, "text", np.zeros(6, np.float32), 3)

    assert len(places) == 3
    assert not scores.any()


def test_vectors_in_bytes_stay_as_they_are_however_often_the_index_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vectors, "CLUSTER_FROM", 500)
    monkeypatch.setattr(module, "MERGE_AT", 10)
    table = a_catalogue(1000, 6, seed=0)
    ids = [f"i{n}" for n in range(1000)]
    everyone = np.ones(1000, bool)
    snapshot = Snapshot.of_tables(
        ids, {"text": table}, {"text": everyone}, ~everyone, np.arange(1000), quantised=True
    )
    first = snapshot.vectors("text", snapshot.places(ids[:500]))
    assert 0 < np.abs(first - table[:500]).max() < 0.1

    for turn in range(5):
        gone = [f"i{n}" for n in range(500 + 100 * turn, 600 + 100 * turn)]
        more = {f"n{turn}-{n}": {"text": 3 * table[n]} for n in range(300)}
        snapshot = snapshot.with_changes(more, gone)
        snapshot = snapshot.on(snapshot.rebuilt())
        snapshot = snapshot.with_changes({}, list(more))
        snapshot = snapshot.on(snapshot.rebuilt())  # gives everybody a new place

    assert isinstance(snapshot.main.vectors["text"], Clustered)
    np.testing.assert_array_equal(snapshot.vectors("text", snapshot.places(ids[:500])), first)


def test_who_may_be_answered_is_shared_and_cannot_be_changed() -> None:
    random = np.random.default_rng(0)
    snapshot = Snapshot.of({f"i{n}": some_item(random) for n in range(5)}, WIDTHS, {"i2"})

    for exclude in (NOBODY, np.array([1, -1])):
        with pytest.raises(ValueError, match="read-only"):
            snapshot.allowed(exclude)[:] = True
    assert snapshot.allowed(NOBODY).tolist() == [True, True, False, True, True]
    assert snapshot.allowed(np.array([1, -1])).tolist() == [True, False, False, True, True]


def test_the_best_come_first_and_of_equals_the_lower_id() -> None:
    snapshot = Snapshot.of({name: {} for name in "dbca"}, WIDTHS)
    places = np.arange(4)

    def ranked(scores: list[float], k: int) -> str:
        order = snapshot.ranked(places, np.array(scores, np.float32), k)
        return "".join(snapshot.item_id(place) for place in places[order].tolist())

    assert ranked([1, 4, 3, 2], 4) == "bcad"
    assert ranked([1, 4, 3, 2], 2) == "bc"
    assert ranked([2, 1, 2, 2], 2) == "ac"
    assert ranked([2, 2, 5, 2], 9) == "cabd"
