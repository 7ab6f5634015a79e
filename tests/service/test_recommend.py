from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from models.bundle import Bundle
from models.item import Item
from models.scorer import Scorer
from service import index
from service.recommender import Recommender
from tests.service.conftest import Serve
from tests.service.running import Client
from tests.tiny import films

HISTORY = ["3", "11", "7", "0"]  # film 11 has no `id` view


def followed(bundle: Bundle, history: list[str]) -> dict[str, float]:
    rows, scores = bundle.following(history)
    ids = [bundle.catalogue.ids[row - 1] for row in rows.tolist()]
    return dict(zip(ids, scores.tolist(), strict=True))


def exhaustive(
    bundle: Bundle,
    history: list[str],
    new: list[Item] | None = None,
    scorer: Scorer | None = None,
) -> list[tuple[str, float]]:
    """What models.scorer says about the whole catalogue and some new items, best first."""
    items = [*bundle.catalogue, *(new or [])]
    vectors = bundle.encode([bundle.prompt(item) for item in items]).vectors
    views = dict(
        zip(
            [i.item_id for i in items],
            bundle.item_views([i.item_id for i in items], vectors),
            strict=True,
        )
    )
    tables = {
        name: np.stack(
            [views[i.item_id].get(name, np.zeros(view.width, np.float32)) for i in items]
        )
        for name, view in bundle.views.items()
    }
    present = {name: np.array([name in views[i.item_id] for i in items]) for name in bundle.views}
    read = {
        name: np.array([views[each][name] for each in history if name in views[each]]).reshape(
            -1, view.width
        )
        for name, view in bundle.views.items()
    }
    follow = followed(bundle, history)
    following = np.array([[follow.get(item.item_id, 0.0) for item in items]], np.float32)
    scorer = scorer or bundle.scorer
    queries = scorer.queries(bundle.states([read]))
    scores = scorer.score(queries, tables, present, following)[0]
    ranked = sorted(
        zip((i.item_id for i in items), scores.tolist(), strict=True),
        key=lambda pair: (-pair[1], pair[0]),
    )
    return [pair for pair in ranked if pair[0] not in history]


def agree(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [item_id for item_id, _ in found] == [item_id for item_id, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-4)


@pytest.mark.parametrize("history", [HISTORY, ["11"], ["5"], ["1", "2"] * 30])
def test_the_service_ranks_as_the_scorer_does(
    shared: Client, bundle: Bundle, history: list[str]
) -> None:
    agree(shared.recommended(history, k=500), exhaustive(bundle, history))


def test_new_items_are_ranked_as_the_scorer_does(serve: Serve, bundle: Bundle) -> None:
    client = serve()
    new = [Item(item_id=f"n{n}", attributes={"title": f"New {n}"}) for n in range(20)]
    client.embed(*(item.model_dump() for item in new), index=True)

    found = client.recommended([*HISTORY, "n3"], k=500)

    agree(found, exhaustive(bundle, [*HISTORY, "n3"], new))


def test_what_followed_the_latest_item_in_training_is_lifted(
    shared: Client, bundle: Bundle
) -> None:
    history = ["3", "11", "7", "0"]  # nothing follows film 11; the latest three known are read

    lifted = {item_id for item_id, score in followed(bundle, history).items() if score > 0}

    assert lifted == {"1", "8"}
    found = dict(shared.recommended(history, k=500))
    plain = Scorer(bundle.scorer.statistics, bundle.scorer.weights, bundle.scorer.partial_factors)
    for item_id, score in exhaustive(bundle, history, scorer=plain):
        more = bundle.scorer.neighbours_weight * followed(bundle, history).get(item_id, 0.0)
        assert found[item_id] == pytest.approx(score + more, abs=1e-4)


def test_candidates_of_a_large_catalogue_give_the_same_ranking(
    serve: Serve, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if 72 items were many: of each view the best 24 are candidates, no more.
    monkeypatch.setattr("service.recommender.CANDIDATES", 24)
    monkeypatch.setattr("service.recommender.CANDIDATES_PER_K", 1)
    client = serve()
    new = [Item(item_id=f"n{n}", attributes={"title": f"New {n}"}) for n in range(60)]
    client.embed(*(item.model_dump() for item in new), index=True)
    recommender: Recommender = client.parts.recommender
    recommender._score_all = 0

    found = client.recommended(HISTORY, k=5)

    agree(found, exhaustive(bundle, HISTORY, new)[:5])
    monkeypatch.setattr("service.recommender.CANDIDATES", 1)
    assert len(client.recommended(HISTORY, k=500)) == 68  # never fewer than k, where there are k
    monkeypatch.setattr("service.recommender.CANDIDATES_PER_K", 0)
    assert 1 <= len(client.recommended(HISTORY, k=500)) < 68  # candidates alone are ranked


def test_excluded_items_are_left_out_and_k_still_come(shared: Client) -> None:
    everything = shared.recommended(["1"], k=500)
    best = [item_id for item_id, _ in everything[:4]]

    found = shared.recommended(["1"], k=5, exclude=[*best, "unknown"])

    assert found == everything[4:9]


def test_the_history_may_come_back_when_asked_for(shared: Client) -> None:
    without = dict(shared.recommended(["1"], k=500))
    with_it = dict(shared.recommended(["1"], k=500, exclude_history=False))

    assert "1" not in without
    assert set(with_it) == {*without, "1"}


def test_unknown_ids_are_skipped_and_listed(shared: Client) -> None:
    answer = shared.post("/recommend", json={"history": ["x", "1", "y", "x"], "k": 3}).json()

    assert answer["unknown_history"] == ["x", "y"]
    assert [(e["item_id"], e["score"]) for e in answer["items"]] == shared.recommended(["1"], k=3)
    assert answer["degraded"] == []


def test_a_history_of_nothing_but_unknown_ids_is_a_404(shared: Client) -> None:
    answer = shared.post("/recommend", json={"history": ["x", "y"]})

    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:llmemb:unknown-item"


def test_fewer_than_k_are_said(shared: Client) -> None:
    answer = shared.post("/recommend", json={"history": ["1"], "k": 100}).json()

    assert len(answer["items"]) == 11
    assert answer["degraded"] == ["fewer_than_k"]


def test_everything_may_be_excluded(shared: Client) -> None:
    every = [str(number) for number in range(12)]

    assert shared.recommended(["1"], exclude=every) == []
    vector = [1.0] * 8
    answer = shared.post("/search", json={"view": "text", "vector": vector, "exclude": every})
    assert answer.json()["items"] == []


def test_answers_tell_themselves_apart(shared: Client) -> None:
    answers = [shared.post("/recommend", json={"history": ["1"]}).json() for _ in range(2)]

    assert answers[0]["recommendation_id"] != answers[1]["recommendation_id"]
    assert answers[0]["items"] == answers[1]["items"]
    assert answers[0]["took_ms"] > 0


def test_histories_that_come_at_once_are_ranked_as_alone(serve: Serve) -> None:
    client = serve()
    histories = [[str(number), str((5 * number) % 12)] for number in range(12)]
    alone = [client.recommended(history, k=500) for history in histories]

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda each: client.recommended(each, k=500), histories * 4))

    for found, expected in zip(together, alone * 4, strict=True):
        agree(found, expected)
    assert client.metric("llmemb_index_search_seconds_count") < 60  # rounds, of 60 questions


def test_an_item_that_was_changed_keeps_what_follows_it(serve: Serve) -> None:
    client = serve()
    before = dict(client.recommended(["3"], k=500))
    item = client.get("/items/4").json()["attributes"]

    client.put("/items/4", json={"attributes": {**item, "title": "Another"}})
    client.put("/items/4", json={"attributes": item})
    client.delete("/items/5")

    after = dict(client.recommended(["3"], k=500))
    assert after == pytest.approx({each: s for each, s in before.items() if each != "5"}, abs=1e-4)


def test_an_explanation_names_the_nearest_item_of_the_history(shared: Client) -> None:
    answer = shared.post("/recommend", json={"history": ["1", "5"], "explain": "history"}).json()
    plain = shared.post("/recommend", json={"history": ["1", "5"]}).json()

    text = {
        each["item_id"]: np.array(each["vectors"]["text"])
        for each in shared.embed(*(film.model_dump() for film in films(12)))["results"]
    }
    for item in answer["items"]:
        one, five = (text[item["item_id"]] @ text[each] for each in ("1", "5"))
        assert item["because"] == ("1" if one > five else "5")
        assert item["because_at"] == (0 if one > five else 1)
        assert "attributes" not in item
    assert set(plain["items"][0]) == {"item_id", "score", "popularity"}


def test_an_attributes_share_is_what_the_score_loses_without_it(serve: Serve) -> None:
    client = serve()
    body = {"history": ["1", "5"], "k": 3, "explain": "attributes"}
    explained = client.post("/recommend", json=body).json()["items"]

    best = explained[0]
    assert set(best["attributes"]) == {"title", "release_year", "genres"}
    attributes = client.get(f"/items/{best['item_id']}").json()["attributes"]
    for name, share in best["attributes"].items():
        rest = {each: value for each, value in attributes.items() if each != name}
        client.put(f"/items/{best['item_id']}", json={"attributes": rest})
        without = dict(client.recommended(["1", "5"], k=500))[best["item_id"]]
        assert share == pytest.approx(best["score"] - without, abs=1e-3)


def test_an_item_with_one_attribute_has_no_shares(serve: Serve) -> None:
    client = serve()
    client.put("/items/one", json={"attributes": {"title": "One"}})
    everyone = [str(number) for number in range(12)]

    body = {"history": ["1"], "k": 1, "explain": "attributes", "exclude": everyone}
    (item,) = client.post("/recommend", json=body).json()["items"]

    assert (item["item_id"], item["attributes"]) == ("one", {})


def test_too_many_items_to_explain_are_refused(shared: Client) -> None:
    answer = shared.post("/recommend", json={"history": ["1"], "k": 26, "explain": "attributes"})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "k"


def test_what_is_less_than_asked_for_is_counted(serve: Serve) -> None:
    client = serve()
    client.recommended(["1", "unknown"], k=100)

    for reason in ("unknown_history", "fewer_than_k"):
        assert client.metric(f'llmemb_recommend_fallback_total{{reason="{reason}"}}') == 1


@pytest.mark.parametrize("view", ["text", "id"])
def test_search_orders_by_inner_product(shared: Client, bundle: Bundle, view: str) -> None:
    table, present = bundle.training_views()[view]
    vector = table[0] + 0.1

    answer = shared.post("/search", json={"view": view, "vector": vector.tolist(), "k": 500})

    scores = dict(zip(bundle.catalogue.ids, (table @ vector).tolist(), strict=True))
    known = [i for i, there in zip(bundle.catalogue.ids, present, strict=True) if there]
    found = [(each["item_id"], each["score"]) for each in answer.json()["items"]]
    agree(found, sorted(((i, scores[i]) for i in known), key=lambda pair: -pair[1]))
    assert answer.json()["view"] == view


def test_recommending_while_items_come_and_go_is_safe(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MERGE_AT", 5)
    client = serve()
    client.parts.recommender._score_all = 0  # search FAISS, too

    def change(worker: int) -> set[int]:
        statuses = set()
        for number in range(12):
            path = f"/items/w{worker}-{number}"
            body = {"attributes": {"title": f"{worker} {number}"}}
            statuses.add(client.put(path, json=body).status_code)
            if number % 2:
                statuses.add(client.delete(path).status_code)
        return statuses

    def read(_: int) -> set[int]:
        body = {"history": ["1", "2"], "k": 50}
        return {client.post("/recommend", json=body).status_code for _ in range(30)}

    with ThreadPoolExecutor(5) as pool:
        writers = [pool.submit(change, worker) for worker in range(3)]
        readers = [pool.submit(read, reader) for reader in range(2)]
        written = set().union(*(each.result() for each in writers))
        answered = set().union(*(each.result() for each in readers))

    assert written == {201, 204}
    assert answered == {200}
    left = {item_id for item_id, _ in client.recommended(["1"], k=500) if item_id[0] == "w"}
    assert left == {f"w{worker}-{number}" for worker in range(3) for number in range(0, 12, 2)}
