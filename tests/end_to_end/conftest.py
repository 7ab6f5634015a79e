"""A run on synthetic histories with a tiny LLM: seconds, but every real part."""

import json
from pathlib import Path

import numpy as np
import pytest

ITEMS, USERS, LENGTH = 60, 120, 9


def write_data(folder: Path, predictable: bool) -> Path:
    """Items whose titles tell their number; histories that count upwards, or random ones."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"{a}{b}" for a in "abcdefgh" for b in "pqrstuvw"]
    with (folder / "items.jsonl").open("w") as lines:
        for number in range(ITEMS):
            attributes = {"title": names[number], "kind": names[number][0]}
            lines.write(json.dumps({"item_id": f"i/{number}", "attributes": attributes}) + "\n")
    with (folder / "interactions.csv").open("w") as lines:
        lines.write("user_id,item_id,timestamp\n")
        for user in range(USERS):
            if predictable:
                history = (random.integers(ITEMS) + np.arange(LENGTH)) % ITEMS
            else:
                history = random.permutation(ITEMS)[:LENGTH]
            times = 1000 * np.arange(LENGTH) + user % 7
            lines.writelines(f"u{user},i/{i},{t}\n" for t, i in zip(times, history, strict=True))
    return folder


def write_config(folder: Path, data: Path, llm: Path) -> Path:
    path = folder / "run.toml"
    path.write_text(
        f"""
name = "tiny"
folder = "{folder}/run"
cache = "{folder}/cache"
[data]
source = "tabular"
path = "{data}"
[template]
noun = "thing"
[llm]
path = "{llm}"
dtype = "float32"
[scft]
steps = 6
batch_items = 8
checkpoint_steps = 1
learning_rate = 1e-3
[encode]
shard_items = 16
[rat.sequence]
options = {{ layers = 1, heads = 2, dropout = 0.1 }}
dim = 32
max_history = 8
learning_rate = 1e-2
batch_tokens = 256
negatives = 32
max_epochs = 15
[rat.text]
principal = 16
batch_tokens = 256
[evaluate]
negatives = 30
bootstrap = 200
"""
    )
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Path:
    """The run folder of a run on predictable histories, exported."""
    from training.__main__ import main

    folder = tmp_path_factory.mktemp("predictable")
    config = write_config(folder, write_data(folder / "data", predictable=True), tiny_llm)
    assert main(["run", "--config", str(config)]) == 0
    return folder / "run"
