"""From a trained run to recommendations over HTTP."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from safetensors.numpy import load_file

from models.bundle import Bundle
from models.item import read_items
from tests.service.running import Client, in_this_process
from training.config import read_config
from training.export import export
from training.interactions import Interactions, leave_one_out
from training.rat import read_trained
from training.recipe import Run


@pytest.fixture(scope="module")
def client(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    bundle = tmp_path_factory.mktemp("copy") / "bundle"
    shutil.copytree(trained / "bundle", bundle)  # nothing but the bundle may be needed
    with in_this_process(bundle, tmp_path_factory.mktemp("catalogue")) as running:
        yield running


def test_a_served_vector_is_the_one_that_training_exported(client: Client, trained: Path) -> None:
    items = list(read_items(trained / "bundle" / "items.jsonl"))[:20]
    views = trained / "bundle" / "views"
    exported = {
        view: load_file(views / f"{view}.safetensors")["items"]
        for view in ("text", "content")
        if (views / f"{view}.safetensors").exists()
    }
    assert exported  # new items need one view that comes from their words

    answer = client.embed(*[item.model_dump() for item in items])

    for view, vectors in exported.items():
        served = np.array([each["vectors"][view] for each in answer["results"]])
        np.testing.assert_allclose(served, vectors[:20], atol=1e-4)


def test_the_service_ranks_as_evaluate_does(client: Client, trained: Path) -> None:
    run = Run(read_config(trained.parent / "run.toml", []))
    prepared = run.finished("prepare")
    items = [item.item_id for item in read_items(prepared.folder / "items.jsonl")]
    split = leave_one_out(Interactions.load(prepared.folder), len(items))
    evaluated = read_trained(run).ours.ranks(split.test_histories, split.test)

    for user in range(25):
        history = [items[row - 1] for row in split.test_histories[user]]
        served = [item for item, _ in client.recommended(history, k=500)]
        assert len(served) == len(items) - len(set(history))
        assert served.index(items[split.test[user] - 1]) + 1 == evaluated[user]


def test_what_comes_next_is_recommended_first(client: Client) -> None:
    hits = 0
    for start in range(20):
        history = [f"i/{start + step}" for step in range(6)]
        top = [item for item, _ in client.recommended(history, k=3)]
        hits += f"i/{start + 6}" in top
    assert hits >= 16


def test_an_item_added_a_moment_ago_is_recommended_at_once(client: Client) -> None:
    # A twin of item 6 by its attributes, with an id that training never saw.
    known = client.get("/items/" + quote("i/6", safe="")).json()["attributes"]
    history = [f"i/{number}" for number in range(6)]
    before = [item for item, _ in client.recommended(history, k=500)]

    added = client.put("/items/twin", json={"attributes": known})

    after = [item for item, _ in client.recommended(history, k=500)]
    assert added.status_code == 201
    assert "twin" not in before
    assert after.index("twin") < len(after) / 2
    assert [item for item in after if item != "twin"] == before  # nobody else's place changed


def test_what_the_bundle_says_of_itself_is_what_evaluate_measured(trained: Path) -> None:
    measured = json.loads((trained / "evaluate" / "metrics.json").read_text())

    assert Bundle.open(trained / "bundle").manifest.metrics == measured


def test_a_bundle_counts_the_interactions_that_trained(client: Client, trained: Path) -> None:
    told: dict[str, int] = {}
    histories: dict[str, list[tuple[int, str]]] = {}
    for line in (trained.parent / "data" / "interactions.csv").read_text().splitlines()[1:]:
        user, item_id, timestamp = line.split(",")
        histories.setdefault(user, []).append((int(timestamp), item_id))
    for history in histories.values():
        for _, item_id in sorted(history)[:-2]:  # the last two validate and test
            told[item_id] = told.get(item_id, 0) + 1

    bundle = Bundle.open(trained / "bundle", dtype="float32")

    counts = dict(zip(bundle.catalogue.ids, bundle.interactions.tolist(), strict=True))
    assert {item_id: count for item_id, count in counts.items() if count} == told
    head = [counts[bundle.catalogue.ids[row]] for row in np.flatnonzero(bundle.head)]
    tail = [counts[bundle.catalogue.ids[row]] for row in np.flatnonzero(~bundle.head)]
    assert len(head) <= len(counts) / 5
    assert min(head) > max(tail)
    popular = client.recommended([], strategy="popular", k=3)
    assert [score for _, score in popular] == sorted(counts.values(), reverse=True)[:3]


def test_a_bundle_of_an_older_format_is_exported_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.parent, tmp_path / "old", dirs_exist_ok=True)
    config = read_config(trained.parent / "run.toml", [f"folder={tmp_path / 'old' / 'run'}"])
    before = (tmp_path / "old" / "run" / "export" / "made.json").read_text()

    monkeypatch.setattr("training.export.FORMAT", 99)
    step = export(Run(config))

    assert json.loads((step.folder / "made.json").read_text())["facts"] == {"format": 99}
    assert (step.folder / "made.json").read_text() != before
    assert step.done
