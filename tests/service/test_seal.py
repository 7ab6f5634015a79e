"""A vector that is not any more what was written is found out."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.schema import FILE, CatalogueError
from service.seal import seal, sealed, unseal, unsealed
from tests.service.catalogues import an_entry, open_store


@given(body=st.binary(max_size=64), at=st.integers(0), bit=st.integers(0, 7))
def test_every_bit_that_is_turned_is_seen(body: bytes, at: int, bit: int) -> None:
    stored = bytearray(seal(body))
    assert unseal(bytes(stored)) == body

    stored[at % len(stored)] ^= 1 << bit

    assert unseal(bytes(stored)) is None


def test_a_vector_comes_back_as_it_was() -> None:
    vector = np.array([0.1, -2.5, 3e38], np.float32)

    back = unsealed(sealed(vector))

    assert back is not None
    np.testing.assert_array_equal(back, vector)
    assert unsealed(sealed(vector)[:-1]) is None
    assert unsealed(b"") is None


def test_a_bit_that_the_disk_has_turned_in_a_vector_stops_the_start(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put([an_entry("a")])
    stored = (store.snapshot.views("a") or {})["text"].astype("<f4").tobytes()
    store.close()
    path = tmp_path / FILE
    content = bytearray(path.read_bytes())
    content[content.index(stored) + 1] ^= 1
    path.write_bytes(content)
    with closing(sqlite3.connect(path)) as database:  # SQLite sees nothing of it
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    with pytest.raises(CatalogueError, match=r"view 'text' that is not what was written.*restore"):
        open_store(tmp_path)


def test_a_catalogue_of_version_3_is_sealed_and_loses_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put([an_entry("a"), an_entry("b", "Ran")])
    before = [store.snapshot.views(each) for each in ("a", "b")]
    store.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        for table in ("item_vectors", "llm_vectors"):
            database.execute(f"UPDATE {table} SET vector = substr(vector, 1, length(vector) - 4)")
        database.execute("PRAGMA user_version=3")
        database.commit()

    store = open_store(tmp_path)

    after = [store.snapshot.views(each) for each in ("a", "b")]
    store.close()
    assert json.dumps(before, default=np.ndarray.tolist) == json.dumps(
        after, default=np.ndarray.tolist
    )
    open_store(tmp_path).close()  # and is not sealed twice
