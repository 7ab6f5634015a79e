"""MODEL_CARD.md as a bundle has it."""

import json
import re
from pathlib import Path

import pytest

from models.bundle import Bundle
from models.llm import licence_of
from models.manifest import Manifest, read_manifest
from tests.end_to_end.conftest import ITEMS, USERS
from tests.tiny import write_tiny_bundle
from training.card import model_card
from training.config import RunConfig
from training.recipe import Run


@pytest.fixture
def card(trained: Path) -> str:
    return (trained / "bundle" / "MODEL_CARD.md").read_text()


def section(card: str, title: str) -> str:
    return re.split(r"^## ", card, flags=re.M)[titles(card).index(title) + 1]


def titles(card: str) -> list[str]:
    return re.findall(r"^## (.*)$", card, re.M)


def test_a_card_says_what_a_stranger_has_to_know(card: str) -> None:
    assert card.startswith("# Model card of `tiny`\n")
    assert titles(card) == [
        "What it is",
        "Intended use",
        "Data",
        "How good it is",
        "Limits",
        "How it was made",
        "Hashes",
    ]


def test_its_figures_are_those_of_evaluate_with_intervals_by_popularity(
    card: str, trained: Path
) -> None:
    figures = json.loads((trained / "evaluate" / "metrics.json").read_text())
    report = json.loads((trained / "report.json").read_text())
    told = section(card, "How good it is")

    hr = figures["full"]["ours"]["tail"]["hr"]
    row = rf"\| tail \| {figures['targets']['tail']} \| ours \| {hr['mean']:.4f} \["
    assert re.search(rf"{row}{hr['low']:.4f}, {hr['high']:.4f}\]", told)
    assert figures["protocol"] in told
    for bucket in report["quality"]["buckets"]:
        hr = bucket["ours"]["hr"]
        assert f"| {bucket['targets']} | ours | {hr['mean']:.4f} [{hr['low']:.4f}" in told


def test_it_tells_data_limits_commands_settings_and_hashes(card: str, trained: Path) -> None:
    manifest = read_manifest(trained / "bundle")

    data = section(card, "Data")
    assert f"- items: {ITEMS}, 0 without interactions in training" in data
    assert f"- users: {USERS}; their ids are not in the bundle" in data
    assert "kind (100 %)" in data
    assert "title (100 %)" in data
    assert f"Only {USERS} users test, so intervals are wide" in section(card, "Limits")
    assert "`evaluate --cold` does that" in section(card, "Limits")
    made = section(card, "How it was made")
    assert f"\npython -m training run --config {trained.parent}/run.toml\n" in made
    assert "- licence of the base LLM: not known" in made
    assert "- tuned: 6 steps of SCFT (copies) with LoRA" in made
    settings = json.loads(made.partition("```json\n")[2].partition("```")[0])
    assert settings["scft"]["steps"] == 6
    assert "evaluate" in settings
    assert "k" not in settings["evaluate"]  # that is the default
    for known in (manifest.bundle_hash, manifest.llm.sha256, manifest.data):
        assert f"`{known}`" in section(card, "Hashes")


def test_passwords_in_addresses_are_not_told(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.model_validate_json((trained / "config.json").read_text())
    hidden = config.model_copy(
        update={"data": config.data.model_copy(update={"items": "https://me:secret@shop/i.csv"})}
    )
    run = Run(hidden)
    # The steps stand as they were made, with the data elsewhere.
    monkeypatch.setattr(run, "finished", Run(config).finished)

    card = model_card(run, read_manifest(trained / "bundle"))

    assert "secret" not in card
    assert "https://…@shop/i.csv" in card


def test_a_card_changes_no_hash_and_a_bundle_with_the_older_card_is_read(
    tmp_path: Path, tiny_llm: Path
) -> None:
    folder = write_tiny_bundle(tmp_path / "older", tiny_llm)
    (folder / "MODEL_CARD.md").rename(folder / "README.md")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["README.md"] = manifest["files"].pop("MODEL_CARD.md")
    (folder / "manifest.json").write_text(json.dumps(manifest))

    assert Bundle.open(folder, dtype="float32").bundle_hash == manifest["bundle_hash"]
    del manifest["files"]["README.md"]
    assert Manifest.model_validate(manifest).hash() == manifest["bundle_hash"]


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlanguage: en\nlicense: mit\n---\n# A model\n", "mit"),
        ('---\nlicense: "apache-2.0"\n---\n', "apache-2.0"),
        ("---\nlicense: mit # see LICENSE\n---\n", "mit"),
        ("---\nlicense:\n- mit\n- gpl-3.0\n---\n", "mit, gpl-3.0"),
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("---\nlicense:\nlanguage: en\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("# A model\n\nlicense: mit\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        (None, None),
    ],
)
def test_a_licence_is_what_the_llms_readme_opens_with(
    tmp_path: Path, text: str | None, licence: str | None
) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)

    assert licence_of(tmp_path) == licence
