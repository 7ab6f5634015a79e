import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from models.bundle import Bundle, BundleError
from models.item import Item
from models.manifest import read_manifest
from tests.tiny import films, write_llm, write_tiny_bundle


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def edit_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_a_served_vector_is_the_exported_one(bundle: Bundle) -> None:
    items = list(bundle.catalogue)

    encoded = bundle.encode([bundle.prompt(item) for item in items])

    np.testing.assert_allclose(encoded.vectors, bundle.llm_vectors, atol=1e-5)
    exported, present = bundle.training_views()["text"]
    assert present.all()
    np.testing.assert_allclose(bundle.project(encoded.vectors)["text"], exported, atol=1e-5)


def test_a_new_item_has_the_text_view_alone(bundle: Bundle) -> None:
    new = Item(item_id="new", attributes={"title": "Unheard of"})
    vectors = bundle.encode([bundle.prompt(new), bundle.prompt(films(1)[0])]).vectors

    new_views, known_views = bundle.item_views(["new", "0"], vectors)

    assert set(new_views) == {"text"}
    assert set(known_views) == {"text", "id"}


def test_what_follows_a_history_comes_by_id(bundle: Bundle) -> None:
    # Film 4 follows 3, film 6 follows 5; the age of 3 is one, so it counts half.
    rows, scores = bundle.following(["3", "unheard of", "5"])

    following = {
        bundle.catalogue.ids[row - 1]: score for row, score in zip(rows, scores, strict=True)
    }
    assert set(following) == {"4", "6"}
    assert following["6"] == pytest.approx(2 * following["4"])
    assert len(bundle.following(["unheard of"])[0]) == 0


def test_a_history_without_a_view_has_a_state_of_zeros_in_it(bundle: Bundle) -> None:
    text = bundle.training_views()["text"][0][:3]

    states = bundle.states([{"text": text, "id": np.zeros((0, 4), np.float32)}])

    assert (states["id"] == 0).all()
    assert np.abs(states["text"]).sum() > 0


def test_states_of_a_batch_equal_those_of_its_singles(bundle: Bundle) -> None:
    text, ids = (bundle.training_views()[view][0] for view in ("text", "id"))
    histories = [{"text": text[:n], "id": ids[:n]} for n in (1, 5, 12)]

    together = bundle.states(histories)

    for place, history in enumerate(histories):
        alone = bundle.states([history])
        for view in together:
            np.testing.assert_allclose(together[view][place], alone[view][0], atol=1e-5)


def test_exporting_the_same_twice_gives_the_same_hashes(
    tiny_bundle: Path, tiny_llm: Path, tmp_path: Path
) -> None:
    again = write_tiny_bundle(tmp_path / "again", tiny_llm)

    assert read_manifest(again).bundle_hash == read_manifest(tiny_bundle).bundle_hash


def test_every_file_may_be_read_by_whom_the_umask_lets(tiny_bundle: Path) -> None:
    plain = (tiny_bundle / "items.jsonl").stat().st_mode

    modes = {str(path): path.stat().st_mode for path in tiny_bundle.rglob("*") if path.is_file()}

    assert modes == dict.fromkeys(modes, plain)


def test_a_bundle_reads_items_with_the_attention_that_it_was_exported_with(
    tiny_llm: Path, bundle: Bundle, tmp_path: Path
) -> None:
    both = Bundle.open(
        write_tiny_bundle(tmp_path / "both", tiny_llm, attention="bidirectional"), dtype="float32"
    )

    encoded = both.encode([both.prompt(item) for item in both.catalogue])

    np.testing.assert_allclose(encoded.vectors, both.llm_vectors, atol=1e-5)
    assert np.abs(both.llm_vectors - bundle.llm_vectors).max() > 0.01
    assert both.encoder_hash != bundle.encoder_hash


def test_a_bundle_pools_the_lower_layer_that_it_was_exported_with(
    tiny_llm: Path, bundle: Bundle, tmp_path: Path
) -> None:
    both = Bundle.open(
        write_tiny_bundle(tmp_path / "both", tiny_llm, lower_layer=1), dtype="float32"
    )

    encoded = both.encode([both.prompt(item) for item in both.catalogue])

    np.testing.assert_allclose(encoded.vectors, both.llm_vectors, atol=1e-5)
    assert both.manifest.llm_dim == 2 * bundle.manifest.llm_dim
    assert both.encoder_hash != bundle.encoder_hash


def test_a_bundle_from_before_a_lower_layer_could_be_named_opens(copy: Path) -> None:
    fields = json.loads((copy / "manifest.json").read_text())
    del fields["lower_layer"]
    (copy / "manifest.json").write_text(json.dumps(fields))

    assert Bundle.open(copy).bundle_hash == fields["bundle_hash"]


def test_the_encoder_hash_depends_on_the_runtime_dtype(bundle: Bundle, tiny_bundle: Path) -> None:
    half = Bundle.open(tiny_bundle, dtype="bfloat16")

    assert half.encoder_hash != bundle.encoder_hash
    assert half.bundle_hash == bundle.bundle_hash


@pytest.mark.parametrize("name", ["views/text.safetensors", "items.jsonl", "llm/config.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()

    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["llm/model.safetensors", "views/id.safetensors", "MODEL_CARD.md"])
def test_a_truncated_or_edited_file_is_named(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1])

    with pytest.raises(BundleError, match=f"{name} is not what was exported"):
        Bundle.open(copy)


def test_a_file_that_does_not_belong_is_named(copy: Path) -> None:
    (copy / "notes.txt").write_text("hello")

    with pytest.raises(BundleError, match="notes.txt is not in the manifest"):
        Bundle.open(copy)


def test_a_bundle_knows_what_training_knew_of_an_item(bundle: Bundle) -> None:
    ids = bundle.catalogue.ids
    counts = {item_id: bundle.interactions[row] for row, item_id in enumerate(ids)}

    assert [counts[str(film)] for film in range(12)] == [6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0]
    # A fifth of 12 is 2; the second and the third tie, and ties go to the tail.
    assert [ids[row] for row in np.flatnonzero(bundle.head)] == ["0"]
    assert [bundle.popularity(each) for each in ("0", "1", "10", "11", "new")] == [
        *("head", "tail", "tail", "cold", "cold")
    ]


def test_the_map_is_of_the_view_in_which_items_are_alike(bundle: Bundle) -> None:
    assert bundle.alike == "text"
    table, _ = bundle.training_views()["text"]

    places = bundle.plane.places(table)

    known = [row for row, item_id in enumerate(bundle.catalogue.ids) if item_id != "11"]
    assert np.abs(places[known]).max() == pytest.approx(1)  # film 11 did not train


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    edit_manifest(copy, lambda fields: fields["views"][0].update(weight=0.9))

    with pytest.raises(BundleError, match="was edited"):
        Bundle.open(copy)


def test_a_truncated_manifest_is_refused(copy: Path) -> None:
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text[: len(text) // 2])

    with pytest.raises(BundleError, match="not whole JSON"):
        Bundle.open(copy)


def test_a_bundle_of_another_format_is_refused(copy: Path) -> None:
    edit_manifest(copy, lambda fields: fields.update(format=99))

    with pytest.raises(
        BundleError, match="format 99; this version reads format 4: export the bundle again"
    ):
        Bundle.open(copy)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle.open(tmp_path)


def test_metrics_are_in_neither_hash(copy: Path, bundle: Bundle) -> None:
    edit_manifest(copy, lambda fields: fields.update(metrics={"ndcg": 1}))

    assert Bundle.open(copy, dtype="float32").bundle_hash == bundle.bundle_hash


def test_a_bundle_without_its_llm_asks_for_it_and_refuses_another(
    tiny_llm: Path, tmp_path: Path
) -> None:
    folder = write_tiny_bundle(tmp_path / "slim", tiny_llm, include_llm=False)

    assert Bundle.open(folder, llm=tiny_llm).manifest.llm.name == "tiny-llama"
    with pytest.raises(BundleError, match="name the folder of tiny-llama"):
        Bundle.open(folder)
    with pytest.raises(BundleError, match="another LLM than tiny-llama"):
        Bundle.open(folder, llm=write_llm(tmp_path / "other", seed=5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_llm_runs_in_what_the_items_were_encoded_in(
    tiny_llm: Path, tmp_path: Path, dtype: Literal["float32", "bfloat16"]
) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle", tiny_llm, dtype=dtype)

    assert Bundle.open(folder).dtype == dtype
    assert Bundle.open(folder, dtype="float32").dtype == "float32"
