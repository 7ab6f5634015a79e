"""The examples as a user runs them, against the real service."""

import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.service.running import ROOT, Client, in_this_process


def run(
    name: str, *arguments: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, f"examples/{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )


def url(client: Client) -> str:
    return f"--url=http://127.0.0.1:{client.port}"


def write_csv(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_every_example_says_how_to_run_it() -> None:
    examples = {path.name for path in (ROOT / "examples").glob("*.py")}

    assert examples == {"client.py", "embed_csv.py", "openai_client.py", "rectools_sasrec.py"}
    for name in examples:
        assert f"python examples/{name}" in (ROOT / "examples" / name).read_text()


def test_the_client_recommends_for_a_history(shared: Client) -> None:
    done = run("client.py", url(shared), "1", "2")

    first, *items = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert first.startswith("tiny has 12 items")
    assert len(items) == 10
    assert all(line.split("<-")[1].strip() in {"1", "2"} for line in items)


def test_the_client_says_of_an_empty_catalogue_that_it_is_empty(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with in_this_process(tiny_bundle, tmp_path / "catalogue") as client:
        for number in range(12):
            assert client.delete(f"/items/{number}").status_code == 204

        done = run("client.py", url(client))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("the catalogue is empty; put an item into it first")


def test_a_mistake_is_one_sentence(shared: Client) -> None:
    unknown = run("client.py", url(shared), "no such film")
    nobody = run("embed_csv.py", "no-such-file.csv")

    for done in (unknown, nobody):
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
    assert "404" in unknown.stderr
    assert "no-such-file.csv" in nobody.stderr


def test_rows_of_a_csv_become_the_vectors_that_the_service_gives(
    shared: Client, tmp_path: Path
) -> None:
    rows = [(f"sku{n}", f"Film {n}", "1999" if n % 2 else "", "A|B | C") for n in range(70)]
    file = write_csv(tmp_path / "films.csv", ("sku", "title", "year", "genres"), *rows)

    done = run(
        "embed_csv.py",
        *(str(file), "--id=sku", "--list=genres=|", f"--output={tmp_path}/out", url(shared)),
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"{n} of 70" for n in (16, 32, 48, 64, 70)]
    vectors = np.load(tmp_path / "out" / "vectors.npy")
    assert (vectors.shape, vectors.dtype) == ((70, 8), np.float32)
    ids = json.loads((tmp_path / "out" / "item_ids.json").read_text())
    assert ids == [row[0] for row in rows]
    for place, year in [(0, {}), (69, {"year": "1999"})]:
        attributes = {"title": f"Film {place}", "genres": ["A", "B", "C"], **year}
        item = {"item_id": "x", "attributes": attributes}
        (answer,) = shared.embed(item, view="text")["results"]
        np.testing.assert_allclose(vectors[place], answer["vectors"]["text"], atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ([("id", "title"), ("1", "A")], [], "no column 'item_id'; it has id, title"),
        (
            [("item_id", "title"), ("1", "A"), ("1", "B")],
            [],
            "line 3: the item_id '1' stands twice",
        ),
        ([("item_id", "title"), ("", "A")], [], "line 2: the item_id is empty"),
        ([("item_id", "title"), ("1", "A")], ["--list=tags=|"], "no column 'tags'"),
        ([("item_id", "title"), ("1", "A")], ["--list=title"], "COLUMN=SEPARATOR"),
        ([("item_id", "title"), ("1", "")], [], "items[0].attributes"),
        ([("item_id", "title"), ("1", "A")], ["--view=id"], "must be one of text, llm"),
        ([("item_id", "title")], [], "has no rows"),
    ],
)
def test_a_csv_that_cannot_be_used_is_said_in_a_sentence(
    shared: Client,
    tmp_path: Path,
    rows: list[tuple[str, ...]],
    options: list[str],
    complaint: str,
) -> None:
    file = write_csv(tmp_path / "films.csv", *rows)

    done = run("embed_csv.py", str(file), f"--output={tmp_path}/out", url(shared), *options)

    assert done.returncode != 0
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_openais_client_says_how_alike_texts_are(shared: Client) -> None:
    done = run("openai_client.py", url(shared), "title is A", "title is A", "title is other")

    first, *lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert first.startswith("tiny: 3 vectors of 8 numbers")
    assert [line.split()[0] for line in lines[:2]] == ["1.000", "1.000"]
    assert run("openai_client.py", url(shared), "--model=none").stderr.count("Traceback") == 0


def test_rectools_trains_on_exported_vectors(tmp_path: Path) -> None:
    # RecTools wants numpy 1 and so an environment of its own.
    python = os.environ.get("RECTOOLS_PYTHON")
    if python is None and find_spec("rectools") is None:
        pytest.skip(
            "no rectools; RECTOOLS_PYTHON may name the Python of an environment that has it"
        )
    items, users = 30, 40
    random = np.random.default_rng(0)
    (tmp_path / "item_ids.json").write_text(json.dumps([f"i{n}" for n in range(items)]))
    np.save(tmp_path / "text.npy", random.normal(size=(items, 8)).astype(np.float32))
    rows = [
        (f"u{user}", f"i{(user + step) % items}", str(1000 * step))
        for user in range(users)
        for step in range(6)
    ]
    file = write_csv(tmp_path / "events.csv", ("user_id", "item_id", "timestamp"), *rows)

    done = run(
        "rectools_sasrec.py",
        *(f"--vectors={tmp_path}", f"--interactions={file}", "--epochs=1"),
        python=python or sys.executable,
    )

    assert done.returncode == 0, done.stderr
    assert f"{items} items, {users} users, 1 epochs" in done.stdout
