import numpy as np
import pytest

from models.scorer import Scorer, ViewStatistics

RANDOM = np.random.default_rng(0)
TRAINED = RANDOM.normal(3.0, 2.0, size=(500, 4)).astype(np.float32)
ALL = np.ones(500, bool)


def scorer(**weights: float) -> Scorer:
    return Scorer({view: ViewStatistics.of(TRAINED) for view in weights}, weights)


def test_in_one_view_a_score_is_the_standardised_dot_product() -> None:
    state = RANDOM.normal(size=(2, 4)).astype(np.float32)
    one = scorer(text=1.0)

    scores = one.score(one.queries({"text": state}), {"text": TRAINED}, {"text": ALL})

    dots = state @ TRAINED.T
    expected = (dots - dots.mean(axis=1, keepdims=True)) / dots.std(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, expected, atol=1e-3)


def test_the_length_of_a_state_is_irrelevant() -> None:
    state = RANDOM.normal(size=(1, 4)).astype(np.float32)
    one = scorer(text=0.7)

    np.testing.assert_allclose(
        one.queries({"text": state})["text"], one.queries({"text": 9 * state})["text"], rtol=1e-5
    )


def test_adding_an_item_changes_no_other_items_score() -> None:
    state = RANDOM.normal(size=(1, 4)).astype(np.float32)
    both = scorer(text=0.5, id=0.5)
    queries = both.queries({"text": state, "id": state})
    more = np.concatenate([TRAINED, np.full((1, 4), 1e3, np.float32)])
    present = np.append(ALL, True)

    before = both.score(queries, {"text": TRAINED, "id": TRAINED}, {"text": ALL, "id": ALL})
    after = both.score(queries, {"text": more, "id": more}, {"text": present, "id": present})

    np.testing.assert_array_equal(after[:, :-1], before)


def test_an_item_without_a_view_is_scored_by_its_others_times_the_factor() -> None:
    state = RANDOM.normal(size=(1, 4)).astype(np.float32)
    statistics = {view: ViewStatistics.of(TRAINED) for view in ("text", "id")}
    both = Scorer(statistics, {"text": 0.5, "id": 0.5}, partial_factors={"text": 3.0})
    alone = Scorer({"text": statistics["text"]}, {"text": 0.5})
    tables = {"text": TRAINED, "id": np.full_like(TRAINED, 1e6)}
    nobody = np.zeros(500, bool)

    scores = both.score(
        both.queries({"text": state, "id": state}), tables, {"text": ALL, "id": nobody}
    )

    expected = alone.score(alone.queries({"text": state}), {"text": TRAINED}, {"text": ALL})
    np.testing.assert_allclose(scores, 3.0 * expected, rtol=1e-4, atol=1e-6)


def test_a_view_that_no_item_of_the_history_has_says_nothing() -> None:
    state = RANDOM.normal(size=(1, 4)).astype(np.float32)
    both = scorer(text=0.5, id=0.5)

    queries = both.queries({"text": state, "id": np.zeros((1, 4), np.float32)})

    assert (queries["id"] == 0).all()
    assert np.isfinite(queries["text"]).all()


def test_the_factor_is_for_views_that_the_history_has() -> None:
    state = RANDOM.normal(size=(1, 4)).astype(np.float32)
    statistics = {view: ViewStatistics.of(TRAINED) for view in ("text", "id")}
    both = Scorer(statistics, {"text": 0.5, "id": 0.5}, partial_factors={"text": 3.0})
    some = RANDOM.random(500) < 0.5
    tables = {"text": TRAINED, "id": TRAINED}

    scores = both.score(
        both.queries({"text": state, "id": np.zeros_like(state)}), tables, {"text": ALL, "id": some}
    )

    alone = Scorer({"text": statistics["text"]}, {"text": 0.5})
    expected = alone.score(alone.queries({"text": state}), {"text": TRAINED}, {"text": ALL})
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="'text'"):
        scorer(text=weight)


def test_neighbour_scores_are_added_after_the_factor() -> None:
    state = RANDOM.normal(size=(1, 4)).astype(np.float32)
    statistics = {view: ViewStatistics.of(TRAINED) for view in ("text", "id")}
    weights = {"text": 0.5, "id": 0.5}
    tables = {"text": TRAINED, "id": TRAINED}
    some = {"text": ALL, "id": RANDOM.random(500) < 0.5}
    following = np.zeros((1, 500), np.float32)
    following[0, 7] = 2.0
    plain = Scorer(statistics, weights, partial_factors={"text": 3.0})
    both = Scorer(statistics, weights, partial_factors={"text": 3.0}, neighbours_weight=0.25)
    queries = plain.queries({"text": state, "id": state})

    added = both.score(queries, tables, some, following) - plain.score(queries, tables, some)

    np.testing.assert_allclose(added, 0.25 * following, atol=1e-6)


def test_a_negative_weight_of_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="neighbours is -1"):
        Scorer({"text": ViewStatistics.of(TRAINED)}, {"text": 1.0}, neighbours_weight=-1)


def test_equal_candidates_tie_whatever_company_a_history_has() -> None:
    statistics = {view: ViewStatistics.of(TRAINED) for view in ("text", "id")}
    both = Scorer(statistics, {"text": 0.5, "id": 0.5}, partial_factors={"text": 1.7})
    items = np.concatenate([TRAINED, TRAINED])  # each twice, far apart
    has_id = np.tile(np.arange(500) % 2 == 0, 2)
    states = RANDOM.normal(size=(3, 4)).astype(np.float32)

    for some in (states, states[:1]):
        scores = both.score(
            both.queries({"text": some, "id": some}),
            {"text": items, "id": items},
            {"text": np.ones(1000, bool), "id": has_id},
        )
        np.testing.assert_array_equal(scores[:, :500], scores[:, 500:])
