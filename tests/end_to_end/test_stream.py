"""Catalogues that need not fit in memory: every item once, whatever happened meanwhile."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.encoder import Encoded, Encoder
from models.int8 import why_not_int8
from models.item import Item
from tests.end_to_end.conftest import write_config
from tests.tiny import films
from training.__main__ import main
from training.config import read_config
from training.stream import Chunk, ReadChunk, Shards, chunks_of, read_chunk

SHARD = 16  # of write_config


@pytest.fixture
def config(tmp_path: Path, tiny_llm: Path) -> Path:
    path = write_config(tmp_path, tmp_path / "nothing", tiny_llm)
    path.write_text(path.read_text().replace("steps = 6", "steps = 0"))
    return path


def write_lines(path: Path, items: list[Item]) -> Path:
    path.write_text("".join(item.model_dump_json() + "\n" for item in items))
    return path


def many(count: int) -> list[Item]:
    return [
        Item(item_id=f"{number}", attributes={"title": f"film {number % 37}", "year": number % 11})
        for number in range(count)
    ]


def command(config: Path, items: object, output: object, *more: str) -> list[str]:
    return [
        "encode",
        "--config",
        str(config),
        "--items",
        str(items),
        "--output",
        str(output),
        *more,
    ]


def read(folder: Path) -> dict[str, list[float]]:
    """Vectors by id; an id that stands twice fails."""
    found: dict[str, list[float]] = {}
    for shard in sorted(folder.glob("*.parquet")):
        table = pq.read_table(shard)
        for item_id, vector in zip(
            table["item_id"].to_pylist(), table["llm"].to_pylist(), strict=True
        ):
            assert item_id not in found
            found[item_id] = vector
    return found


def test_every_item_has_the_vector_of_its_prompt(config: Path, tmp_path: Path) -> None:
    items = many(50)
    lines = write_lines(tmp_path / "items.jsonl", items)

    assert main(command(config, lines, tmp_path / "out")) == 0

    found = read(tmp_path / "out")
    assert list(found) == [item.item_id for item in items]
    template, llm = read_config(config, [], None).template, read_config(config, [], None).llm
    encoder = Encoder.load(Path(llm.path), dtype="float32", max_tokens=llm.max_tokens)
    wanted = encoder.encode([template.render(item) for item in items])
    np.testing.assert_allclose(np.array([*found.values()]), wanted.vectors, atol=1e-5)
    done = json.loads((tmp_path / "out" / "done.json").read_text())
    tokens = int(wanted.tokens.sum())
    assert done == {"shards": 4, "items": 50, "tokens": tokens, "cut": 0, "rejected": 0}


def test_parquet_and_a_folder_of_files_are_read_alike(config: Path, tmp_path: Path) -> None:
    items = many(45)
    folder = tmp_path / "items"
    folder.mkdir()
    write_lines(folder / "a.jsonl", items[:20])
    columns = {"item_id": [item.item_id for item in items[20:]]}
    for name in ("title", "year"):
        columns[name] = [item.attributes[name] for item in items[20:]]  # type: ignore[misc]
    pq.write_table(pa.table(columns), folder / "b.parquet", row_group_size=7)

    assert main(command(config, folder, tmp_path / "out")) == 0
    assert main(command(config, write_lines(tmp_path / "all.jsonl", items), tmp_path / "one")) == 0

    both, one = read(tmp_path / "out"), read(tmp_path / "one")
    assert list(both) == list(one)
    np.testing.assert_allclose(np.array([*both.values()]), np.array([*one.values()]), atol=1e-5)


def test_items_and_vectors_may_lie_at_a_url(config: Path, tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "items.jsonl", many(20))
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/catalogue/items.jsonl", lines.read_bytes())

    assert main(command(config, "memory://catalogue/items.jsonl", "memory://vectors")) == 0

    names = [path.rsplit("/", 1)[-1] for path in memory.ls("/vectors", detail=False)]
    assert sorted(names) == ["00000000.parquet", "00000001.parquet", "done.json", "encode.json"]


def test_an_encoding_that_is_killed_goes_on_and_repeats_nothing(
    config: Path, tmp_path: Path
) -> None:
    lines, output = write_lines(tmp_path / "items.jsonl", many(4000)), tmp_path / "out"
    arguments = command(config, lines, output)
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    while not len([*output.glob("*.parquet")]) > 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert len(before) < 4000 / SHARD
    assert not (output / "done.json").exists()

    assert main(arguments) == 0

    assert len(read(output)) == 4000
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before


@pytest.mark.cluster
def test_a_cluster_that_loses_a_node_loses_no_item(config: Path, tmp_path: Path) -> None:
    items = many(3000)
    lines, output = write_lines(tmp_path / "items.jsonl", items), tmp_path / "out"
    script = [sys.executable, "-m", "tests.end_to_end.cluster"]
    arguments = ["encode", "--config", str(config), "--items", str(lines), "--engine", "ray"]

    told = subprocess.run(
        [*script, *arguments, "--output", str(output)],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode == 0, told.stderr[-3000:]
    found = re.search(r"lost a node with (\d+) shards there", told.stdout)
    assert found, told.stdout
    assert int(found[1]) < len(items) / SHARD  # in the middle
    vectors = read(output)
    assert vectors.keys() == {item.item_id for item in items}
    assert json.loads((output / "done.json").read_text())["items"] == len(items)
    assert main(command(config, lines, tmp_path / "local")) == 0
    local = read(tmp_path / "local")
    for item in items[::97]:
        np.testing.assert_allclose(vectors[item.item_id], local[item.item_id], atol=1e-5)


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"{", b'{"item_id": "9"}', b'{"item_id": "9", "attributes": {"title": ""}}'],
)
def test_a_line_that_is_no_item_ends_the_run_or_is_listed(
    config: Path, tmp_path: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_lines(tmp_path / "items.jsonl", many(40))
    good = lines.read_bytes().splitlines()
    lines.write_bytes(b"\n".join([*good[:20], line, b"", *good[20:]]))

    assert main(command(config, lines, tmp_path / "out")) == 1
    told = capsys.readouterr().err
    assert "items.jsonl:21: " in told
    assert "--skip-unusable" in told
    assert len(read(tmp_path / "out")) == 16  # the shard before it stays

    assert main(command(config, lines, tmp_path / "all", "--skip-unusable")) == 0
    assert len(read(tmp_path / "all")) == 40
    rejected = (tmp_path / "all" / "00000001.rejected.jsonl").read_text()
    assert "items.jsonl:21: " in json.loads(rejected)["error"]
    assert json.loads((tmp_path / "all" / "done.json").read_text())["rejected"] == 1


@pytest.mark.parametrize("line", [b'{"item_id": "9", "attributes": {"title": "caf\xe9"}}'])
def test_a_text_that_is_no_utf_8_is_told_with_its_line(
    config: Path, tmp_path: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "items.jsonl"
    lines.write_bytes(line + b"\n")

    assert main(command(config, lines, tmp_path / "out")) == 1

    told = capsys.readouterr().err
    assert "items.jsonl:1: " in told
    assert "utf-8" in told


def test_a_row_of_parquet_that_is_no_utf_8_ends_the_run_or_is_listed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"film {number}".encode() for number in range(20)]
    texts[17] = b"caf\xe9"
    columns = {
        "item_id": pa.array([str(number) for number in range(20)]),
        "title": pa.array(texts, pa.binary()).view(pa.string()),  # Arrow does not look
    }
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")

    assert main(command(config, tmp_path / "items.parquet", tmp_path / "out")) == 1
    told = capsys.readouterr().err
    assert "items.parquet:row 18: title: not UTF-8" in told
    assert "--skip-unusable" in told
    assert len(read(tmp_path / "out")) == 16  # the shard before it stays

    again = command(config, tmp_path / "items.parquet", tmp_path / "all", "--skip-unusable")
    assert main(again) == 0
    assert read(tmp_path / "all").keys() == {str(number) for number in range(20)} - {"17"}
    rejected = (tmp_path / "all" / "00000001.rejected.jsonl").read_text()
    assert "row 18: title: not UTF-8" in json.loads(rejected)["error"]


def test_a_prompt_beyond_the_limit_is_cut_from_its_end_and_the_item_says_so(
    config: Path, tmp_path: Path
) -> None:
    title, plot = "t" * 20, "p" * 100
    items = [
        Item(item_id="long", attributes={"plot": plot, "title": title}),
        Item(item_id="short", attributes={"title": title}),
        Item(item_id="title too long", attributes={"plot": plot, "title": "t" * 100}),
    ]
    lines = write_lines(tmp_path / "items.jsonl", items)
    limits = ["--set", "llm.max_tokens=40", "--set", 'template.priority=["title"]']

    assert main(command(config, lines, tmp_path / "out", *limits)) == 0

    (shard,) = (tmp_path / "out").glob("*.parquet")
    table = pq.read_table(shard).to_pydict()
    assert dict(zip(table["item_id"], table["cut"], strict=True)) == {
        "long": ["plot"],
        "short": [],
        "title too long": ["title", "plot"],
    }
    assert max(table["tokens"]) == 40
    assert json.loads((tmp_path / "out" / "done.json").read_text())["cut"] == 2


def test_a_folder_of_other_vectors_is_left_alone(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_lines(tmp_path / "items.jsonl", many(20))
    assert main(command(config, lines, tmp_path / "out")) == 0
    before = read(tmp_path / "out")

    assert main(command(config, lines, tmp_path / "out", "--set", "template.noun=film")) == 1
    assert "holds vectors of another template" in capsys.readouterr().err
    assert read(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert main(command(config, lines, tmp_path / "mine")) == 1
    assert "no encode wrote it" in capsys.readouterr().err


@pytest.mark.skipif(why_not_int8() is not None, reason="no VNNI")
def test_vectors_in_int8_are_not_mixed_with_others(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_lines(tmp_path / "items.jsonl", many(20))
    assert main(command(config, lines, tmp_path / "out", "--set", "llm.dtype=int8")) == 0
    assert json.loads((tmp_path / "out" / "encode.json").read_text())["dtype"] == "int8"

    assert main(command(config, lines, tmp_path / "out")) == 1
    assert "holds vectors of another dtype" in capsys.readouterr().err

    assert main(command(config, lines, tmp_path / "exact")) == 0
    exact, found = (np.array([*read(tmp_path / name).values()]) for name in ("exact", "out"))
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(found, axis=1)
    assert 0.998 < ((exact * found).sum(axis=1) / lengths).min() < 0.9999999


def test_items_that_changed_are_not_taken_for_those_before(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_lines(tmp_path / "items.jsonl", many(20))
    link = tmp_path / "link.jsonl"
    link.symlink_to(lines)
    assert main(command(config, lines, tmp_path / "out")) == 0
    assert main(command(config, link, tmp_path / "linked")) == 0

    content = lines.read_text()
    lines.write_text(content.replace("film 1", "film 2"))

    assert lines.stat().st_size == len(content)
    assert main(command(config, lines, tmp_path / "out")) == 1
    assert "holds vectors of another catalogue" in capsys.readouterr().err
    assert main(command(config, link, tmp_path / "linked")) == 1


def test_objects_that_changed_are_not_taken_for_those_before(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = write_lines(tmp_path / "items.jsonl", many(20)).read_bytes()
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/changing/items.jsonl", content)
    arguments = command(config, "memory://changing/items.jsonl", tmp_path / "out")
    assert main(arguments) == 0
    assert main(arguments) == 0

    memory.pipe_file("/changing/items.jsonl", content.replace(b"film 1", b"film 2"))

    assert main(arguments) == 1
    assert "holds vectors of another catalogue" in capsys.readouterr().err


def test_a_kill_at_the_first_file_leaves_a_folder_that_can_be_gone_on_with(
    config: Path, tmp_path: Path
) -> None:
    lines, output = write_lines(tmp_path / "items.jsonl", many(20)), tmp_path / "out"
    dies = "import os, signal; os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)"
    runs = "import sys; from training.__main__ import main; main(sys.argv[1:])"
    arguments = command(config, lines, output)
    process = [sys.executable, "-c", f"{dies}\n{runs}", *arguments]
    assert subprocess.run(process, check=False).returncode == -signal.SIGKILL
    (left,) = output.iterdir()
    assert left.name != "encode.json"

    assert main(arguments) == 0

    assert len(read(output)) == 20
    assert not left.exists()


def test_two_writers_of_one_shard_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = Chunk(0, "items.jsonl", 0, 1, 1)
    vector = Encoded(np.ones((1, 4), np.float32), np.ones(1, np.int32), [()])
    held = ReadChunk(["1"], [], [])
    fsync, calls = os.fsync, []

    def while_another_writes(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            Shards(str(tmp_path)).write(chunk, held, vector)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", while_another_writes)
    Shards(str(tmp_path)).write(chunk, held, vector)

    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["00000000.parquet"]
    assert len(read(tmp_path)) == 1


def test_a_full_disk_is_told_and_what_is_there_stays(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = write_lines(tmp_path / "items.jsonl", many(40))
    fsync, written = os.fsync, []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 2:  # encode.json and a shard
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert main(command(config, lines, tmp_path / "out")) == 1
    told = capsys.readouterr().err
    assert "00000001.parquet cannot be written" in told
    assert "No space left on device" in told
    assert len(read(tmp_path / "out")) == 16

    assert main(command(config, lines, tmp_path / "out")) == 0
    assert len(read(tmp_path / "out")) == 40


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that holds 256 KiB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_keeps_whole_shards_and_is_gone_on_with(
    config: Path, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_lines(tmp_path / "items.jsonl", many(2000))
    other = small_disk / "other"
    other.write_bytes(bytes(160 << 10))

    assert main(command(config, lines, small_disk / "out")) == 1

    told = capsys.readouterr().err
    assert re.search(r"000000\d\d.parquet cannot be written .*No space left on device", told)
    assert "run the same command again" in told
    before = read(small_disk / "out")
    assert 0 < len(before) < 2000
    assert not (small_disk / "out" / "done.json").exists()

    other.unlink()
    grown = subprocess.run(
        ["mount", "-o", "remount,size=8m", str(small_disk)], capture_output=True, check=False
    )
    assert grown.returncode == 0
    assert main(command(config, lines, small_disk / "out")) == 0
    after = read(small_disk / "out")
    assert len(after) == 2000
    assert before.items() <= after.items()


@pytest.mark.parametrize("left", [b"", b"PAR1 half of it"])
def test_a_damaged_shard_is_named_and_made_anew(
    config: Path, tmp_path: Path, left: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(config, write_lines(tmp_path / "items.jsonl", many(40)), tmp_path / "out")
    assert main(arguments) == 0
    shard = tmp_path / "out" / "00000001.parquet"
    shard.write_bytes(left)

    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "00000001.parquet" in told
    assert "delete it and run the same command again" in told

    shard.unlink()
    assert main(arguments) == 0
    assert len(read(tmp_path / "out")) == 40


@pytest.mark.parametrize(
    ("items", "told"),
    [("none.jsonl", "none.jsonl"), ("items.csv", "neither .jsonl nor .parquet")],
)
def test_what_cannot_be_read_is_told(
    config: Path, tmp_path: Path, items: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "items.csv").touch()

    assert main(command(config, tmp_path / items, tmp_path / "out")) == 1

    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("ending", ["\n", ""])
def test_chunks_hold_every_line_once(tmp_path: Path, size: int, ending: str) -> None:
    items = [*films(7)]
    path = write_lines(tmp_path / "items.jsonl", items)
    path.write_text(path.read_text().removesuffix("\n") + ending)

    chunks: list[Chunk] = [*chunks_of([str(path)], size)]

    assert [item for chunk in chunks for item in read_chunk(chunk)] == items
    assert [chunk.number for chunk in chunks] == [*range(-(-7 // size))]
    assert [chunk.first for chunk in chunks] == [*range(1, 8, size)]
