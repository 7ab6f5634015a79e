"""What a worker of the cluster does with a chunk; no cluster is needed for that."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models import OutOfMemory
from models.encoder import Encoded, settled_dtype
from models.prompt import PromptTemplate
from training import on_ray
from training.config import LLM
from training.on_ray import Worker
from training.run_llm import RunLLM
from training.stream import Chunk, Shards, chunks_of


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Three chunks of one line each; the second is no item."""
    path = tmp_path / "items.jsonl"
    lines = [f'{{"item_id": "{n}", "attributes": {{"title": "film {n}"}}}}\n' for n in range(3)]
    path.write_text(lines[0] + "{\n" + lines[2])
    return path


@pytest.fixture
def worker(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of a process of its own
    llm = RunLLM(tiny_llm, None, LLM(path=str(tiny_llm), dtype="float32"))
    return Worker(llm, PromptTemplate(noun="film"), str(tmp_path / "out"), skip=False)


def batch(*chunks: Chunk) -> dict[str, Any]:
    """As Ray Data hands rows to a worker."""
    return {name: np.array([getattr(chunk, name) for chunk in chunks]) for name in Chunk._fields}


def test_a_chunk_that_cannot_be_encoded_is_told_beside_those_that_can(
    worker: Worker, items: Path
) -> None:
    told = worker(batch(*chunks_of([str(items)], 1)))

    assert told["items"] == [1, 0, 1]
    first, second, third = told["error"]
    assert (first, third) == ("", "")
    assert second.startswith("encode: items.jsonl:2: ")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (FloatingPointError("no finite vector"), "encode: no finite vector"),
        (OutOfMemory("2 prompts do not fit"), "encode: out of memory: 2 prompts do not fit"),
    ],
)
def test_what_an_llm_cannot_do_is_told_once(
    worker: Worker, items: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, told: str
) -> None:
    def fails(*_: object) -> Encoded:
        raise raised

    monkeypatch.setattr(worker.encoder, "encode_tokens", fails)

    assert worker(batch(next(chunks_of([str(items)], 1))))["error"] == [told]


def test_a_file_that_is_gone_or_broken_is_told(worker: Worker, items: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    pq.write_table(pa.table({"item_id": ["1"], "title": ["film"]}), broken)
    broken.write_bytes(broken.read_bytes()[:-8])
    chunks = [next(chunks_of([str(items)], 1)), Chunk(1, str(broken), 0, 1, 1)]
    items.unlink()

    errors = worker(batch(*chunks))["error"]

    assert ["cannot be read" in error for error in errors] == [True, True]
    assert "items.jsonl" in errors[0]
    assert "broken.parquet" in errors[1]


def test_a_shard_that_is_there_is_not_made_again(
    worker: Worker, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = next(chunks_of([str(items)], 1))
    worker(batch(chunk))
    read: list[object] = []
    monkeypatch.setattr(on_ray, "tokenise_chunk", lambda *told: read.append(told))

    assert worker(batch(chunk)) == {"items": [1], "error": [""]}

    assert not read


def test_what_workers_are_told_is_the_same_in_every_folder_and_on_every_node(
    tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_llm.parent)

    llm = RunLLM(Path(tiny_llm.name), None, LLM(path=tiny_llm.name)).settled()

    assert llm.folder == tiny_llm
    assert llm.spec.dtype == settled_dtype()
    monkeypatch.chdir(tmp_path)
    assert Shards("out").url == f"file://{tmp_path}/out"
    assert Shards("memory://out").url == "memory://out"
