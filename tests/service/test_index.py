"""Exact search agrees with plain numpy, whatever came and went."""

import numpy as np
import pytest

from service import index as module
from service.index import Snapshot, Views

WIDTHS = {"text": 6, "id": 3}
NOBODY = np.empty(0, np.int64)


def some_item(random: np.random.Generator) -> Views:
    views = {"text": random.normal(size=6).astype(np.float32)}
    if random.random() < 0.7:
        views["id"] = random.normal(size=3).astype(np.float32)
    return views


@pytest.fixture(params=["all compared", "faiss"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "faiss":
        monkeypatch.setattr(module, "COMPARE_ALL", 0)


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
        before = snapshot.main
        snapshot = snapshot.with_changes(upserts, deletes, WIDTHS)
        merged += snapshot.main is not before
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


def test_an_old_snapshot_never_changes() -> None:
    random = np.random.default_rng(1)
    items = {f"i{n}": some_item(random) for n in range(5)}
    old = Snapshot.of(items, WIDTHS)

    new = old.with_changes({"i1": some_item(random), "x": some_item(random)}, ["i2"], WIDTHS)

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
    snapshot = snapshot.with_changes({"i0": same, "i4": same}, (), WIDTHS)

    places, _ = search(snapshot, "text", np.ones(6, np.float32), 4)

    assert [snapshot.item_id(place) for place in places.tolist()] == ["i0", "i1", "i3", "i4"]


def test_an_empty_catalogue_can_be_searched() -> None:
    snapshot = Snapshot.of({}, WIDTHS)

    places, scores = search(snapshot, "id", np.ones(3, np.float32), 5)

    assert (len(places), len(scores), len(snapshot)) == (0, 0, 0)
