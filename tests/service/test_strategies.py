"""What /recommend answers by other strategies than the best, and to somebody who is not known.

Films 0 to 11 have 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1 and 0 interactions; film 11 has no `id` view.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle
from models.scorer import Scorer
from service.recommender import FALLBACK_DIVERSITY, Recommender
from tests.service.conftest import Serve
from tests.service.running import Client, in_this_process
from tests.service.test_recommend import agree
from tests.tiny import write_tiny_bundle

HISTORY = ["3", "11", "7", "0"]


def asked(client: Client, history: list[Any], **fields: object) -> dict[str, Any]:
    answer = client.post("/recommend", json={"history": history, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def ids(answer: dict[str, Any]) -> list[str]:
    return [each["item_id"] for each in answer["items"]]


def by_views(bundle: Bundle, history: list[str], names: list[str]) -> list[tuple[str, float]]:
    """What a Scorer of these views alone says of the items that have one of them, best first."""
    tables = {name: bundle.training_views()[name] for name in names}
    scorer = Scorer(
        {name: bundle.scorer.statistics[name] for name in names},
        {name: bundle.scorer.weights[name] for name in names},
    )
    rows = [bundle.catalogue.rows[item_id] - 1 for item_id in history]
    read = {
        name: tables[name][0][[row for row in rows if tables[name][1][row]]]
        if name in names
        else np.empty((0, view.width), np.float32)
        for name, view in bundle.views.items()
    }
    states = {name: state for name, state in bundle.states([read]).items() if name in names}
    scores = scorer.score(
        scorer.queries(states),
        {name: table for name, (table, _) in tables.items()},
        {name: present for name, (_, present) in tables.items()},
    )[0]
    has = np.any([present for _, present in tables.values()], axis=0)
    found = [
        (item_id, float(scores[row]))
        for row, item_id in enumerate(bundle.catalogue.ids)
        if has[row] and item_id not in history
    ]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def test_popular_is_by_interactions_in_training_and_ties_go_by_id(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={"attributes": {"title": "New"}})
    client.put("/items/1", json={"attributes": {"title": "Changed"}})  # still who it was

    answer = asked(client, ["3"], strategy="popular")

    told = [(each["item_id"], each["score"]) for each in answer["items"]]
    assert told == [
        *(("0", 6.0), ("1", 5.0), ("2", 5.0), ("4", 4.0), ("5", 3.0), ("6", 3.0), ("7", 2.0)),
        *(("8", 2.0), ("10", 1.0), ("9", 1.0), ("11", 0.0), ("new", 0.0)),
    ]
    assert answer["strategy"] == "popular"


def test_popular_leaves_out_what_any_answer_does(serve: Serve) -> None:
    client = serve()
    client.patch("/items/0", json={"hidden": True})
    client.delete("/items/1")

    assert ids(asked(client, ["2"], strategy="popular", exclude=["3"], k=2)) == ["4", "5"]


def test_text_only_is_the_scorer_over_the_open_views(shared: Client, bundle: Bundle) -> None:
    found = shared.recommended(HISTORY, k=500, strategy="text_only")

    agree(found, by_views(bundle, HISTORY, ["text"]))
    assert "11" in ids(asked(shared, ["3"], strategy="text_only"))


def test_id_only_is_the_scorer_over_the_tables_and_knows_no_other_items(
    shared: Client, bundle: Bundle
) -> None:
    history = ["3", "7", "0"]
    found = shared.recommended(history, k=500, strategy="id_only")

    agree(found, by_views(bundle, history, ["id"]))
    assert "11" not in dict(found)


def test_strategies_rank_a_large_catalogue_as_a_small_one(serve: Serve) -> None:
    client = serve()
    recommender: Recommender = client.parts.recommender
    for strategy in ("text_only", "id_only", "popular"):
        recommender._score_all = 20_000
        everything = client.recommended(HISTORY, strategy=strategy)
        recommender._score_all = 0
        agree(client.recommended(HISTORY, strategy=strategy), everything)


def test_histories_that_come_at_once_may_have_different_strategies(serve: Serve) -> None:
    from concurrent.futures import ThreadPoolExecutor

    client = serve()
    strategies = ["best", "text_only", "id_only", "popular"]
    alone = [client.recommended(HISTORY, strategy=each) for each in strategies]

    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda each: client.recommended(HISTORY, strategy=each), strategies * 6)
        )

    for found, expected in zip(together, alone * 6, strict=True):
        agree(found, expected)


@pytest.mark.parametrize(("views", "missing"), [(("text",), "id_only"), (("id",), "text_only")])
def test_a_bundle_without_the_views_refuses_the_strategy(
    tiny_llm: Path, tmp_path: Path, views: tuple[str, ...], missing: str
) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle", tiny_llm, views=views)

    with in_this_process(folder, tmp_path / "catalogue") as client:
        refused = client.post("/recommend", json={"history": ["1"], "strategy": missing})
        strategies = client.get("/info").json()["strategies"]
        assert asked(client, ["1"])["strategy"] == "best"

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "strategy"
    assert "no view for it" in refused.json()["detail"]
    assert missing not in strategies
    assert {"best", "popular"} < set(strategies)


def test_info_has_the_strategies(shared: Client) -> None:
    assert set(shared.get("/info").json()["strategies"]) == {
        *("best", "popular", "id_only", "text_only")
    }


def test_every_item_says_how_popular_it_was(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={"attributes": {"title": "New"}})

    told = {each["item_id"]: each["popularity"] for each in asked(client, ["5"])["items"]}

    assert {each for each, popularity in told.items() if popularity == "head"} == {"0"}
    assert {each for each, popularity in told.items() if popularity == "cold"} == {"11", "new"}
    assert told["1"] == told["10"] == "tail"


# --- somebody who is not known ----------------------------------------------------------------


def test_an_empty_history_is_answered_with_what_is_popular_and_says_so(serve: Serve) -> None:
    client = serve()

    answer = asked(client, [], k=5)

    assert (answer["strategy"], answer["degraded"]) == ("fallback", ["no_history"])
    assert answer["unknown_history"] == []
    assert ids(answer)[0] == "0"
    assert client.metric('llmemb_recommend_fallback_total{reason="no_history"}') == 1
    diverse = asked(client, [], k=5, strategy="popular", diversity=FALLBACK_DIVERSITY)
    assert answer["items"] == diverse["items"]
    assert (diverse["strategy"], diverse["degraded"]) == ("popular", [])
    assert client.metric('llmemb_recommend_fallback_total{reason="no_history"}') == 1


def test_an_empty_history_may_ask_for_what_is_popular_as_it_is(shared: Client) -> None:
    assert ids(asked(shared, [], k=3, strategy="popular")) == ["0", "1", "2"]


def test_a_history_that_a_strategy_cannot_read_is_answered_as_an_empty_one(
    shared: Client,
) -> None:
    answer = asked(shared, ["11"], strategy="id_only")  # which has no `id` view

    assert (answer["strategy"], answer["degraded"]) == ("fallback", ["no_history", "fewer_than_k"])
    assert "11" not in ids(answer)


def test_an_empty_history_that_asks_for_no_diversity_has_none(shared: Client) -> None:
    plain = asked(shared, [], k=5, strategy="popular")

    for none in (0, 0.0):
        answer = asked(shared, [], k=5, diversity=none)
        assert (answer["strategy"], answer["items"]) == ("fallback", plain["items"])
    # Film 1, which is next, is too much like film 0.
    assert asked(shared, [], k=5, diversity=None)["items"] != plain["items"]


def test_an_unknown_history_is_not_an_empty_one(shared: Client) -> None:
    for strategy in ("best", "id_only", "text_only"):
        answer = shared.post("/recommend", json={"history": ["x"], "strategy": strategy})
        assert answer.status_code == 404


def test_popular_answers_whatever_the_history(shared: Client) -> None:
    answer = asked(shared, ["x", "y", "x"], k=3, strategy="popular")

    assert (answer["strategy"], answer["degraded"]) == ("popular", [])
    assert answer["unknown_history"] == ["x", "y"]
    assert ids(answer) == ["0", "1", "2"]


@pytest.mark.parametrize("explain", ["history", "attributes"])
def test_what_is_popular_has_no_reasons(shared: Client, explain: str) -> None:
    popular = asked(shared, ["1", "5"], strategy="popular", explain=explain, k=3)
    fallback = asked(shared, ["11"], strategy="id_only", explain=explain, k=3)
    empty = asked(shared, [], explain=explain, k=3)

    assert fallback["strategy"] == "fallback"
    for answer in (popular, fallback, empty):
        assert [set(each) for each in answer["items"]] == [{"item_id", "score", "popularity"}] * 3


def test_a_strategy_is_explained_by_its_own_scores(shared: Client) -> None:
    best = asked(shared, ["1", "5"], explain="attributes", k=1, exclude=["2", "6"])
    text = asked(shared, ["1", "5"], explain="attributes", k=1, strategy="text_only")
    ids_alone = asked(shared, ["1", "5"], explain="attributes", k=1, strategy="id_only")

    assert any(best["items"][0]["attributes"].values())
    assert any(text["items"][0]["attributes"].values())
    # Attributes say nothing where only ids are scored.
    assert set(ids_alone["items"][0]["attributes"].values()) == {0.0}


# --- exploring and diversity ------------------------------------------------------------------


def test_nothing_explored_and_nothing_diverse_changes_nothing(shared: Client) -> None:
    plain = asked(shared, HISTORY)

    same = asked(shared, HISTORY, explore=0.0, diversity=0, seed=7)

    assert same["items"] == plain["items"]


def test_exploring_lifts_cold_items_and_marks_them(serve: Serve) -> None:
    client = serve()
    for number in range(4):
        client.put(f"/items/new{number}", json={"attributes": {"title": f"New {number}"}})
    ranked = ids(asked(client, ["5"], k=500))
    cold = [each for each in ranked if each == "11" or each.startswith("new")]
    tail = [each for each in ranked if each not in {*cold, "0"}]

    answer = asked(client, ["5"], k=7, explore=1.0)

    assert ids(answer) == [*cold, *tail[:2]]
    assert all(each["explored"] is True for each in answer["items"])


def test_the_same_seed_explores_the_same_places(serve: Serve) -> None:
    client = serve()
    plain = asked(client, ["5"], k=8)["items"]

    answers = [
        asked(client, ["5"], k=8, explore=0.4, seed=seed)["items"] for seed in (3, 3, 4, 5, 6)
    ]

    assert answers[0] == answers[1]
    assert len({str(each) for each in answers}) > 1
    scores = {each["item_id"]: each["score"] for each in plain}
    for answer in answers:
        assert all(each["score"] == scores.get(each["item_id"], each["score"]) for each in answer)


def test_a_filter_holds_whatever_the_strategy(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={"attributes": {"title": "New", "genres": ["Drama"]}})
    comedy = {"attribute": "genres", "eq": "Comedy"}
    comedies = {"1", "4", "5", "6", "7", "9"}

    for strategy in ("best", "popular", "id_only", "text_only"):
        answer = asked(client, ["3"], strategy=strategy, filter=comedy, explore=0.5, diversity=0.2)
        assert set(ids(answer)) == comedies, strategy
    assert set(ids(asked(client, [], filter=comedy))) == comedies
    assert ids(asked(client, [], filter=comedy, strategy="popular", k=3)) == ["1", "4", "5"]


def test_of_nothing_nothing_is_explored(shared: Client) -> None:
    every = [str(number) for number in range(12)]

    answer = asked(shared, ["1"], exclude=every, explore=0.5, diversity=0.5)

    assert answer["items"] == []
    assert answer["degraded"] == ["fewer_than_k"]


def test_diversity_puts_what_is_alike_later(serve: Serve) -> None:
    client = serve()
    # Two that are the same to the word, but for their ids.
    for twin in ("twin1", "twin2"):
        client.put(f"/items/{twin}", json={"attributes": {"title": "Film number 3"}})
    plain = ids(asked(client, ["5"], k=500))

    diverse = ids(asked(client, ["5"], k=500, diversity=0.9))

    assert set(diverse) == set(plain)
    assert diverse[0] == plain[0]
    assert abs(plain.index("twin1") - plain.index("twin2")) == 1
    assert abs(diverse.index("twin1") - diverse.index("twin2")) > 1
