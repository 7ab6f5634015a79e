"""A catalogue in Milvus: several processes, a Milvus that goes and comes back, its limits."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle
from models.item import Item
from service.catalogue import Wanted
from service.errors import Unreachable
from service.filters import And, AnyOf, Bound, Exists, Not, Or, Range, Value
from service.milvus.address import Address, read
from service.milvus.collection import alias_of
from service.milvus.connection import Connection
from service.milvus.expressions import described, expression, mark, without
from service.milvus.store import MilvusStore
from service.rows import Entry
from service.schema import CatalogueError
from service.settings import BadSettings, read_catalogue_dir, read_settings
from tests.service.conftest import Serve
from tests.service.contract import FILM, at, found, put, put_vectors
from tests.service.milvus_server import MilvusServer
from tests.service.running import Client, free_port, in_a_process, in_this_process

NOBODY_THERE = "milvus+http://127.0.0.1:9"


# --- several processes ---


@pytest.fixture
def three(tiny_bundle: Path, tmp_path: Path, milvus: MilvusServer) -> Iterator[list[Client]]:
    """Three processes that serve one catalogue."""
    with ExitStack() as stack:
        clients = []
        for _ in range(3):
            port = free_port()
            stack.enter_context(
                in_a_process(tiny_bundle, tmp_path / "unused", port, LLMEMB_STORE=milvus.url)
            )
            clients.append(stack.enter_context(Client(port)))
        for client in clients:
            client.wait_until_ready(longest_s=200)
        yield clients


def test_two_processes_that_read_see_what_a_third_has_written_once_it_is_answered(
    three: list[Client], milvus: MilvusServer, tmp_path: Path
) -> None:
    writer, *readers = three
    assert len(milvus.collections()) == 2  # of items and of imports: who came second has none
    for number in range(5):
        new = f"new {number}"
        version = put(writer, new)["version"]
        for reader in readers:
            assert reader.get(f"/items/{new}").json()["version"] == version
            assert new in [item_id for item_id, _ in reader.recommended(["1"], k=50)]
        writer.patch(f"/items/{new}", json={"hidden": True})
        for reader in readers:
            assert reader.get(f"/items/{new}").json()["hidden"] is True
            assert new not in [item_id for item_id, _ in reader.recommended(["1"], k=50)]
        writer.delete(f"/items/{new}")
        for reader in readers:
            assert reader.get(f"/items/{new}").status_code == 404
    put_vectors(writer, {"far": {"vectors": {"text": at(100)}, "attributes": {"kind": "odd"}}})
    for reader in readers:
        assert found(reader, k=1, filter={"attribute": "kind", "eq": "odd"}) == [("far", 100)]
        assert reader.get("/info").json()["items"] == 13
    assert not (tmp_path / "unused").exists()


def test_of_stores_that_are_opened_at_once_one_seeds_and_the_others_find_it(
    bundle: Bundle, milvus: MilvusServer
) -> None:
    with ThreadPoolExecutor(3) as threads:
        stores = list(threads.map(lambda _: MilvusStore.open(read(milvus.url), bundle), range(3)))

    assert [store.stats.items for store in stores] == [12, 12, 12]
    assert len(milvus.collections()) == 2
    stores[0].delete("3")
    assert [store.stats.items for store in stores] == [11, 11, 11]
    again = MilvusStore.open(read(milvus.url), bundle)
    assert again.stats.items == 11  # what was taken out does not come back
    for store in (*stores, again):
        store.close()


def test_who_hides_an_item_that_another_process_changes_meanwhile_mixes_no_two_states(
    bundle: Bundle, milvus: MilvusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, others = (MilvusStore.open(read(milvus.url), bundle) for _ in range(2))
    film = Item(item_id="new", attributes=FILM)
    mine.put([Entry(film, None, {"text": np.array(at(1), np.float32)})])
    held = mine._held

    def meanwhile(change: Callable[[], object]) -> None:
        """Have something done between what a write reads and what it writes."""

        def read_first(item_ids: Sequence[str]) -> dict[str, Any]:
            found = held(item_ids)
            change()
            return found

        monkeypatch.setattr(mine, "_held", read_first)

    other = Item(item_id="new", attributes={"title": "Kagemusha"})
    vector = np.array(at(2), np.float32)
    meanwhile(lambda: others.put([Entry(other, None, {"text": vector})]))
    mine.hide("new", True)
    stored = mine.items.get("new")
    views = mine.holding(["new"]).views("new")

    assert stored and views
    assert (stored.item.attributes, stored.hidden) == (other.attributes, True)
    assert views["text"].tolist() == vector.tolist()
    meanwhile(lambda: others.delete("new"))
    mine.hide("new", False)
    assert mine.items.get("new") is None
    for store in (mine, others):
        store.close()


def test_two_bundles_have_a_collection_each(
    serve: Serve, bundles: Path, milvus: MilvusServer, tmp_path: Path
) -> None:
    first = serve(store=milvus.url)
    put(first, "new")

    with in_this_process(bundles / "same", tmp_path / "unused", store=milvus.url) as second:
        assert second.get("/info").json()["bundle"] != first.get("/info").json()["bundle"]
        assert second.get("/items/new").status_code == 404
        assert first.get("/items/new").status_code == 200
        moved = second.post(
            "/items:import",
            params={"import_id": "move"},
            content=first.get("/items:export").content,
            headers={"content-type": "application/x-ndjson"},
        )
        assert moved.json()["state"] == "finished"
        assert second.get("/items/new").json()["attributes"] == FILM


# --- a Milvus that is not there ---


def test_without_milvus_a_process_ends_with_one_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    with in_a_process(tiny_bundle, tmp_path, free_port(), LLMEMB_STORE=NOBODY_THERE) as process:
        output, _ = process.communicate(timeout=200)

    assert process.returncode == 1
    (sentence,) = output.strip().splitlines()
    assert sentence.startswith("Milvus at http://127.0.0.1:9 cannot be used: ")
    assert sentence.endswith("; LLMEMB_STORE says where it is")


def test_while_milvus_is_down_requests_get_503_and_then_all_is_there_again(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("milvus_lite")
    with MilvusServer(tmp_path / "milvus") as server:
        client = serve(store=server.url)
        put(client, "new")
        server.stop()

        answers = [
            client.get("/items/new"),
            client.put("/items/other", json={"attributes": FILM}),
            client.post("/recommend", json={"history": ["1"]}),
            client.get("/items"),
            client.get("/info"),
            client.get("/health/ready"),
        ]
        alive = client.get("/health/live")
        metrics = client.get("/metrics")
        server.start()
        deadline = time.monotonic() + 60
        while client.get("/health/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)

        for answer in answers:
            assert answer.status_code == 503, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"] == "urn:llmemb:not-ready"
            assert "Milvus cannot be reached" in answer.json()["detail"]
            assert "retry-after" in answer.headers
        assert (alive.status_code, metrics.status_code) == (200, 200)
        assert client.get("/items/new").json()["attributes"] == FILM
        assert client.put("/items/other", json={"attributes": FILM}).status_code == 201
        assert client.recommended(["1"])
    assert not [record for record in caplog.records if record.exc_info]


def test_what_milvus_refuses_is_503_and_told_by_the_log(
    bundle: Bundle, milvus: MilvusServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = MilvusStore.open(read(milvus.url), bundle)
    milvus.clear()

    with pytest.raises(Unreachable, match="the log says more"):
        store.items.get("1")

    assert "query" in caplog.text
    store.close()


# --- what it is asked ---


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sequence[str]]]:
    """What is asked of Milvus by expressions, and for which fields."""
    told = []
    rows = Connection.rows

    def noted(
        connection: Connection, name: str, matching: str, fields: Sequence[str], limit: int = 99
    ) -> list[dict[str, Any]]:
        told.append((matching, fields))
        return rows(connection, name, matching, fields, limit)

    monkeypatch.setattr(Connection, "rows", noted)
    return told


def test_who_is_not_known_costs_few_calls_where_little_of_what_was_popular_matches(
    bundle: Bundle,
    milvus: MilvusServer,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[str, Sequence[str]]],
) -> None:
    monkeypatch.setattr("service.milvus.store.CANDIDATES", 1)
    store = MilvusStore.open(read(milvus.url), bundle)

    exclude = [str(number) for number in range(10)]
    found = store.widened(store.holding(()), [Wanted({}, 1, exclude, None)])

    # Training saw 11 films: the first 2 are asked for, 8 more, the last one, and the rest; then
    # come the rows of what was found.
    assert len(asked) == 5
    assert found.place("10") is not None
    assert found.place("9") is None
    store.close()


def test_attributes_of_candidates_come_only_where_they_are_filtered(
    bundle: Bundle, milvus: MilvusServer, asked: list[tuple[str, Sequence[str]]]
) -> None:
    store = MilvusStore.open(read(milvus.url), bundle)
    horror = store.filter_of({"attribute": "genres", "eq": "Horror"})
    queries = {"text": np.array(at(1), np.float32)}

    for matching, come in ((None, False), (horror, True)):
        asked.clear()
        found = store.widened(store.holding(()), [Wanted(queries, 3, (), matching)])

        assert len(found) == (3 if matching else 12)
        assert ["attributes" in fields for _, fields in asked] == [come]
    store.close()


# --- its limits ---


def test_an_item_that_is_larger_than_milvus_has_them_is_refused(
    serve: Serve, milvus: MilvusServer
) -> None:
    client = serve(store=milvus.url)

    large = client.put("/items/a", json={"attributes": {"title": "x", "text": "é" * 33_000}})
    many = client.put("/items/a", json={"attributes": {"tags": [str(n) for n in range(4_100)]}})

    assert (large.status_code, many.status_code) == (422, 422)
    # {"text": "…", "title": "x"} has 26 bytes beside the 33,000 letters of two bytes each.
    assert "take 66026 bytes" in large.json()["detail"]
    assert "4096" in many.json()["detail"]
    assert client.get("/items/a").status_code == 404


def test_a_collection_with_other_vectors_is_refused_at_start(
    bundle: Bundle, milvus: MilvusServer
) -> None:
    from pymilvus import DataType

    client = milvus.client()
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=32)
    schema.add_field("vector_text", DataType.FLOAT_VECTOR, dim=3)
    client.create_collection(collection_name="strange", schema=schema)
    client.create_alias(collection_name="strange", alias=alias_of(bundle.bundle_hash))

    with pytest.raises(CatalogueError, match=r"strange .* has other vectors \({'vector_text': 3}"):
        MilvusStore.open(read(milvus.url), bundle)
    client.close()


# --- addresses ---


def test_an_address_names_host_port_database_and_who_asks() -> None:
    assert read("milvus+http://milvus:19530") == Address("http://milvus:19530", "", "")
    assert read("milvus+https://me:p%40ss@[::1]:1/shop") == Address(
        "https://[::1]:1", "me:p@ss", "shop"
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://milvus:19530", "must be embedded, or begin with"),
        ("milvus+http://milvus", "must name a host and a port"),
        ("milvus+http://:19530", "must name a host and a port"),
        ("milvus+http://milvus:many", "must name a host and a port"),
        ("milvus+http://milvus:1/a/b", "the database 'a/b' must be"),
        ("milvus+http://milvus:1/?a=b", "must end with the port or the database"),
    ],
)
def test_what_is_no_address_is_refused_with_the_variable(
    tiny_bundle: Path, url: str, reason: str
) -> None:
    with pytest.raises(BadSettings, match=f"^LLMEMB_STORE is .*: {reason}"):
        read_settings(bundle=tiny_bundle, store=url)


def test_a_password_is_not_repeated(tiny_bundle: Path) -> None:
    with pytest.raises(BadSettings) as error:
        read_settings(bundle=tiny_bundle, store="milvus+http://me:secret@milvus")

    assert "secret" not in str(error.value)


def test_a_backup_of_a_catalogue_in_milvus_is_left_to_milvus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMEMB_STORE", NOBODY_THERE)

    with pytest.raises(BadSettings, match="Milvus' own tools"):
        read_catalogue_dir(None)
    assert read_catalogue_dir("here") == Path("here")


# --- expressions ---


def number(value: float) -> Value:
    return Value("number", float(value))


def test_what_stands_with_an_item_is_a_mark_of_each_value_and_kind_and_the_ends_of_its_values() -> (
    None
):
    marks, bounds = described({"year": [1990, 1980, "old"], "ok": True, "none": " "})

    # Three values and two kinds of `year`, one of each of `ok`.
    assert len(marks) == 7
    # Of numbers and strings the least and the greatest; booleans have no order.
    assert len(bounds) == 4
    year = mark("year", b"\x02")
    assert bounds[f"l{year}"] < bounds[f"m{year}"]


def test_expressions_hold_nothing_that_a_user_has_written() -> None:
    quoted = 'x"] or true or ["'
    matching = And(
        frozenset(
            {
                AnyOf(quoted, frozenset({Value("string", quoted)})),
                Range(quoted, "string", Bound(Value("string", quoted), True), None),
                Not(Exists(quoted)),
            }
        )
    )

    assert quoted not in expression(matching)
    assert "or true" not in expression(matching)


def test_a_not_goes_to_the_conditions_so_that_nothing_is_lost_where_there_is_no_value() -> None:
    low = Range("year", "number", Bound(number(1990), True), None)
    one = Exists("year")

    text = expression(Not(And(frozenset({low, one}))))

    year = mark("year", b"\x02")
    assert f'not array_contains_any(marks, ["{year}"]) or bounds["m{year}"] < ' in text
    assert expression(Not(Or(frozenset({low, one})))).count(" and ") == 1
    assert expression(Not(Not(low))) == expression(low)
    assert without([], []) == "version >= 0"
