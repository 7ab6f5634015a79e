from pathlib import Path

import numpy as np
import pytest
import torch

from models.projection import Projection
from training.config import SequenceSpec
from training.interactions import Interactions, Split, leave_one_out
from training.metrics import hit_rate
from training.ranking import Ranker
from training.recipe import Step
from training.views import (
    HybridTable,
    IdTable,
    Table,
    TextTable,
    ThawedTable,
    read_view,
    train_view,
)

ITEMS, USERS, LENGTH = 60, 120, 9
MODELS = ["sasrec", "gru4rec", "bert4rec"]


def split_of(predictable: bool) -> Split:
    random = np.random.default_rng(0)
    histories = [
        (random.integers(ITEMS) + np.arange(LENGTH)) % ITEMS + 1
        if predictable
        else random.permutation(ITEMS)[:LENGTH] + 1
        for _ in range(USERS)
    ]
    return leave_one_out(Interactions.of([history.tolist() for history in histories]), ITEMS)


def spec(model: str, **changes: object) -> SequenceSpec:
    return SequenceSpec(
        **{  # type: ignore[arg-type]
            "model": model,
            "options": {"dropout": 0.1},
            "dim": 32,
            "max_history": 8,
            "learning_rate": 1e-2,
            "batch_tokens": 256,
            "negatives": 32,
            "max_epochs": 20,
            **changes,
        }
    )


def hits(split: Split, given: SequenceSpec, folder: Path, table: Table | None = None) -> float:
    """HR@10 of the id-only test items, the history excluded."""
    table = table or IdTable(ITEMS, given.dim, unit=given.temperature > 0)
    view = train_view("id", table, given, split, Step(folder, {}), 0)
    ranks = Ranker.of([view], {"id": 1.0}).ranks(split.test_histories, split.test)
    return float(hit_rate(ranks, 10).mean())


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_predictable_histories(model: str, tmp_path: Path) -> None:
    # Half of what BERT4Rec reads is masked, so it needs more of it.
    given = spec(model, max_epochs=100 if model == "bert4rec" else 20, patience=20)

    assert hits(split_of(predictable=True), given, tmp_path / "view") > 0.9


@pytest.mark.parametrize("model", MODELS)
def test_no_model_learns_random_histories(model: str, tmp_path: Path) -> None:
    chance = 10 / (ITEMS - LENGTH + 1)

    found = hits(split_of(predictable=False), spec(model), tmp_path / "view")

    assert found < chance + 0.12  # three standard deviations of 120 users


@pytest.mark.parametrize("loss", ["softmax", "gbce", "bce"])
def test_every_loss_trains(loss: str, tmp_path: Path) -> None:
    given = spec("sasrec", loss=loss, temperature=0.1, max_epochs=60, patience=60)

    assert hits(split_of(predictable=True), given, tmp_path / "view") > 0.6


def test_what_was_trained_is_read_back_as_it_was(tmp_path: Path) -> None:
    split, given = split_of(predictable=True), spec("gru4rec", max_epochs=1)
    step = Step(tmp_path / "view", {})

    trained = train_view("id", IdTable(ITEMS, 32, unit=True), given, split, step, 0)
    again = read_view("id", given, split, step.folder)

    np.testing.assert_array_equal(again.items, trained.items)
    one, two = (Ranker.of([view], {"id": 1.0}).scores(split.train[:9]) for view in (trained, again))
    np.testing.assert_array_equal(one, two)


def test_an_item_that_training_never_met_has_no_id_vector(tmp_path: Path) -> None:
    histories = [[1, 2, 3, 4, 5], [2, 3, 4, 5, 6], [3, 4, 5, 1, 2]]
    split = leave_one_out(Interactions.of(histories), 7)

    view = train_view(
        "id",
        IdTable(7, 32, unit=True),
        spec("sasrec", max_epochs=1),
        split,
        Step(tmp_path / "view", {}),
        0,
    )

    # Trained on 1 2 3, 2 3 4 and 3 4 5.
    assert view.present.tolist() == [True, True, True, True, True, False, False]


def test_hybrid_vectors_for_cosines_have_length_one() -> None:
    projection = Projection(6, (4, 3), unit=False)
    projection.fit(np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32))
    text = TextTable(projection, np.ones((5, 6), np.float32))

    vectors = HybridTable(text, 5, 0.0, unit=True)(torch.arange(1, 6))

    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))


def test_a_hybrid_vector_is_the_projection_and_what_is_learnt_on_top() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(5, 6).numpy()
    text = TextTable(Projection(6, (6, 4), "centre", unit=False), vectors)
    hybrid = HybridTable(text, 5, dropout=0.5, unit=False).eval()
    rows = torch.tensor([2, 5])

    torch.testing.assert_close(
        hybrid(rows),
        0.25 * text.projection(torch.from_numpy(vectors[[1, 4]])) + hybrid.learnt(rows),
    )
    # While it trains, an item is now and then read by its words alone.
    hybrid.train()
    drawn = torch.stack([hybrid(torch.tensor([3]))[0] for _ in range(50)])
    alone = (drawn == 0.25 * text(torch.tensor([3]))[0]).all(dim=1)
    assert 5 < int(alone.sum()) < 45


def test_thawed_vectors_start_as_the_llms_and_then_leave_them(tmp_path: Path) -> None:
    given = np.random.default_rng(0).normal(size=(ITEMS, 6)).astype(np.float32)
    projection = Projection(6, (4, 32), "pca")
    projection.fit(given)
    table = ThawedTable(projection, given)
    table.reset_parameters()
    rows = torch.arange(1, ITEMS + 1)
    torch.testing.assert_close(table(rows), projection(torch.from_numpy(given)))

    split = split_of(predictable=True)
    step = Step(tmp_path / "view", {})
    view = train_view("text", table, spec("sasrec", max_epochs=2), split, step, 0)

    assert view.source == "table"  # a new item has none
    assert read_view("text", spec("sasrec"), split, step.folder).source == "table"
    frozen = projection(torch.from_numpy(given)).detach().numpy()
    assert np.abs(view.items - frozen).max() > 0.01
