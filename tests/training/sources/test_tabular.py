"""Tables as people have them, and the mistakes that are in them."""

import gzip
import logging
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from tests.training.sources.samples import attributes, interactions, seconds
from training import JobError
from training.config import Data
from training.sources import Source
from training.sources.tables import read_table
from training.sources.tabular import Columns, load

ITEMS = "item_id,title,price\na,Anise,1\nb,Basil,2\n"
EVENTS = "user_id,item_id,timestamp\nu,a,1\nu,b,2\n"


def write(folder: Path, items: str | bytes = ITEMS, events: str | bytes = EVENTS) -> Path:
    for name, text in (("items.csv", items), ("events.csv", events)):
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def read(folder: Path, columns: dict[str, Any] | None = None, **options: str) -> Source:
    return load(folder, "items.csv", "events.csv", Columns(**columns or {}), **options)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_delimiter_and_byte_order_mark_do_not_matter(
    tmp_path: Path, delimiter: str, encoding: str
) -> None:
    rows = [
        ["item_id", "title", "tags"],
        ["a", f'"Ä{delimiter} ""B"""', "x/y"],
        ["ß 1", "漢字", ""],
    ]
    items = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n\r\n"

    folder = write(tmp_path, items.encode(encoding), EVENTS.replace(",", delimiter))

    assert attributes(read(folder, {"lists": {"tags": "/"}})) == {
        "a": {"title": f'Ä{delimiter} "B"', "tags": ["x", "y"]},
        "ß 1": {"title": "漢字"},
    }
    assert interactions(read(folder)) == [("u", "a", 1.0), ("u", "b", 2.0)]


def test_columns_may_have_any_names_and_say_when_in_any_form(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        'sep=;\nArtikel;Name;Preis;Arten\n 7 ; "Tee; grün" ;3.50; Tee |  |grün\n'.replace(' "', '"')
        .replace('" ', '"'),
        "Kunde;Artikel;Datum\nk1; 7;09.03.2024 18:30\n",
    )  # fmt: skip
    columns = {
        **{"id": "Artikel", "user": "Kunde", "item": "Artikel", "time": "Datum"},
        **{"time_format": "%d.%m.%Y %H:%M", "lists": {"Arten": "|"}, "numbers": ["Preis"]},
    }

    source = read(folder, columns)

    assert attributes(source) == {
        "7": {"Name": "Tee; grün", "Preis": 3.5, "Arten": ["Tee", "grün"]}
    }
    assert interactions(source) == [("k1", "7", seconds(2024, 3, 9, 18, 30))]


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("2024-03-09", seconds(2024, 3, 9)),
        ("2024-03-09 18:30:00", seconds(2024, 3, 9, 18, 30)),
        ("2024-03-09T18:30:00Z", seconds(2024, 3, 9, 18, 30)),
        ("2024-03-09T18:30:00+02:00", seconds(2024, 3, 9, 16, 30)),
        ("1710009000", 1710009000.0),
        ("1710009000123.5", 1710009000123.5),
    ],
)
def test_times_are_seconds_or_iso_dates(tmp_path: Path, told: str, meant: float) -> None:
    folder = write(tmp_path, events=f"user_id,item_id,timestamp\nu,a,{told}\n")

    assert interactions(read(folder)) == [("u", "a", meant)]


def test_a_value_may_span_lines_and_the_lines_after_it_keep_their_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path, 'item_id,title\na,"two\nlines"\n\nb,B\n,none\n')

    with pytest.raises(JobError, match=r"^items\.csv:6: item_id is empty"):
        read(folder)


def test_without_times_the_order_counts_and_a_column_that_may_tell_them_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        plain = read(write(tmp_path, events="user_id,item_id\nu,b\nu,a\n"))
        assert not caplog.messages
        dated = read(write(tmp_path, events="user_id,item_id,date\nu,b,2024-01-01\n"))

    assert plain.events.times is None
    assert plain.events.items == ["b", "a"]
    assert dated.events.times is None
    (told,) = caplog.messages
    assert "if one of date tells the time, name it in data.columns.time" in told


def test_items_that_say_nothing_are_counted_and_empty_cells_are_no_attributes(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path, "item_id,tags,price\na,Anise|,\nb,,\nc, ,2\nd,|,\n")

    source = read(folder, {"lists": {"tags": "|"}, "numbers": ["price"]})

    assert attributes(source) == {"a": {"tags": ["Anise"]}, "c": {"price": 2.0}}
    assert source.blank == 2
    with pytest.raises(JobError, match=r"items\.csv holds no item that says anything"):
        read(write(tmp_path, "item_id,title\na,\n"))


def test_parquet_says_what_it_says_and_nothing_of_what_is_missing(tmp_path: Path) -> None:
    rows = {"item_id": ["a", "b"], "price": [1.5, float("nan")], "tags": [["x"], None]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "items.parquet")
    times = pyarrow.array([1710009000, 1710009001], pyarrow.timestamp("s"))
    events = {"user_id": [1, 1], "item_id": ["a", "a"], "timestamp": times}
    pyarrow.parquet.write_table(pyarrow.table(events), tmp_path / "events.parquet")

    source = load(tmp_path, "items.parquet", "events.parquet", Columns())

    assert attributes(source) == {"a": {"price": 1.5, "tags": ["x"]}}
    assert source.blank == 1
    assert interactions(source)[1] == ("1", "a", 1710009001.0)


@pytest.mark.parametrize(
    ("items", "events", "columns", "told"),
    [
        ("", EVENTS, {}, "items.csv is empty; its first line names the columns"),
        ("item_id,title,title\n", EVENTS, {}, "items.csv:1: two columns are called title; rename"),
        ("item_id,,b\n", EVENTS, {}, "items.csv:1: column 2 of 3 has no name; give it one"),
        (
            "sku,title\na,A\n", EVENTS, {},
            'items.csv has no column item_id; it has sku, title: name the right one, as in '
            'data.columns.id = "sku"',
        ),
        (
            ITEMS, "who,item_id\nu,a\n", {},
            'events.csv has no column user_id; it has who, item_id: name the right one, as in '
            'data.columns.user = "who"',
        ),
        (
            "item_id#title\na#A\n",
            EVENTS,
            {},
            "items.csv has no column item_id, only item_id#title: if these are several, tell in "
            "data.delimiter",
        ),
        (ITEMS, EVENTS, {"time": "when"}, "events.csv has no column when; it has user_id"),
        (
            ITEMS, EVENTS, {"numbers": ["cost"]},
            "data.columns.numbers names cost, but items.csv has only item_id, title, price",
        ),
        (ITEMS, EVENTS, {"lists": {"tags": "|"}}, "data.columns.lists names tags, but items.csv"),
        (
            f"{ITEMS}a,Again,3\n", EVENTS, {},
            "items.csv:4: item_id: 'a' stands twice, first at items.csv:2; an item is one line",
        ),
        (
            f"{ITEMS}c,Chili,\"3,50\"\n", EVENTS, {"numbers": ["price"]},
            "items.csv:4: price: '3,50' is no number like 12.9; mend it, or take price out of",
        ),
        (
            f"{ITEMS}c,Chili, hot,3\n", EVENTS, {},
            "items.csv:4: 4 columns, not 3 (item_id, title, price); a value that holds the",
        ),
        (f'{ITEMS}c,"Chili,3\nd,D,4\n', EVENTS, {}, "items.csv:4: unexpected end of data; a quote"),
        (f'{ITEMS}c,"5" nail",3\n', EVENTS, {}, 'items.csv:4: \',\' expected after \'"\'; a quote'),
        (
            ITEMS.encode() + b"c,Caf\xe9,3\n", EVENTS, {},
            'items.csv, line 4: byte 0xe9 is not in utf-8; save the file as UTF-8, or tell its '
            'encoding, as in data.encoding = "cp1252"',
        ),
        (ITEMS.encode("utf-16"), EVENTS, {}, "items.csv, line 1: byte 0xff is not in utf-8"),
        (
            gzip.compress(ITEMS.encode(), mtime=0), EVENTS, {},
            "items.csv is no text but a gzip file: unpack it",
        ),
        (
            b"PK\x03\x04\x14", EVENTS, {},
            "items.csv is no text but a zip or Excel file: save it as CSV",
        ),
        (ITEMS, f"{EVENTS}u,,3\n", {}, "events.csv:4: item_id is empty; fill it in, or take the"),
        (
            ITEMS, f'{EVENTS}"u\nv",a,3\n', {},
            "events.csv:4: user_id: 'u\\nv' holds a line break",
        ),
        (ITEMS, f"{EVENTS}u,a,\n", {}, "events.csv:4: timestamp is empty; fill it in, or take"),
        (
            ITEMS, f"{EVENTS}u,a,soon\n", {},
            "events.csv:4: timestamp: 'soon' is not a finite number of seconds, as the first one "
            "is; mend it",
        ),
        (
            ITEMS, "user_id,item_id,timestamp\nu,a,1710009000123456789\n", {},
            "events.csv:2: timestamp: '1710009000123456789' is too large for a number of seconds; "
            "mend it",
        ),
        (
            ITEMS, "user_id,item_id,timestamp\nu,a,09.03.2024\n", {},
            "events.csv:2: timestamp: '09.03.2024' is no date like 2024-03-09 or 2024-03-09 "
            '18:30:00; mend it, or tell the form of all, as in data.columns.time_format',
        ),
        (
            ITEMS, EVENTS, {"time_format": "%d.%m.%Y"},
            "events.csv:2: timestamp: '1' is no date like %d.%m.%Y; mend it",
        ),
        (ITEMS, "user_id,item_id\n", {}, "events.csv holds no interaction"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_by_file_line_column_and_value_and_what_to_do(
    tmp_path: Path, items: str | bytes, events: str, columns: dict[str, Any], told: str
) -> None:
    with pytest.raises(JobError) as caught:
        read(write(tmp_path, items, events), columns)

    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_an_encoding_that_is_told_is_used(tmp_path: Path) -> None:
    for encoding in ("cp1252", "utf-16"):
        folder = write(tmp_path, ITEMS.replace("Anise", "Anisé").encode(encoding))
        write_events = EVENTS.encode(encoding)
        (folder / "events.csv").write_bytes(write_events)

        assert attributes(read(folder, encoding=encoding))["a"]["title"] == "Anisé"


def test_bytes_of_another_encoding_are_told_by_their_line_and_other_encodings_are_named(
    tmp_path: Path,
) -> None:
    def told(items: bytes, encoding: str) -> str:
        with pytest.raises(JobError) as caught:
            read(write(tmp_path, items), encoding=encoding)
        return str(caught.value)

    half = (ITEMS.encode("utf-16") + b"\x00\xd8x\x00", "utf-16")  # of a surrogate pair

    assert told(*half).startswith("items.csv, line 4: byte 0x00 is not in utf-16; save the file")
    assert told(ITEMS.encode(), "utf-16") == (
        "items.csv is not in utf-16; save the file as UTF-8, or tell its encoding, as in "
        'data.encoding = "utf-8" or "cp1252" (Excel in Western Europe)'
    )
    assert told(ITEMS.encode() + b"c,\x81,3\n", "cp1252") == (
        "items.csv, line 4: byte 0x81 is not in cp1252; save the file as UTF-8, or tell its "
        'encoding, as in data.encoding = "utf-8" or "utf-16"'
    )


def test_an_ending_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "ITEMS.CSV").write_text(ITEMS)

    assert read_table(tmp_path / "ITEMS.CSV").columns == ["item_id", "title", "price"]


def test_columns_of_parquet_need_names_of_their_own_too(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    for names, told in (
        (["t", "t"], "items.parquet: two columns are called t; rename one"),
        (["t", ""], "items.parquet: column 2 of 2 has no name; give it one"),
        ([], "items.parquet has no columns"),
    ):
        columns = [pyarrow.array(["x"])] * len(names)
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names), path)

        with pytest.raises(JobError) as caught:
            read_table(path)
        assert str(caught.value) == told


def test_a_file_of_another_kind_or_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.xlsx").touch()

    with pytest.raises(JobError, match=r"items\.xlsx: \.xlsx is none of .*; save it as CSV"):
        read_table(tmp_path / "items.xlsx")
    with pytest.raises(JobError, match=r"there is no file .*none\.csv"):
        read_table(tmp_path / "none.csv")
    for folder in ("folder.csv", "folder.jsonl"):
        (tmp_path / folder).mkdir()
        with pytest.raises(JobError, match=f"there is no file .*{folder}"):
            load(tmp_path, folder, "events.csv")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"delimiter": ";;"}, "delimiter"),
        ({"encoding": "utf-9"}, "'utf-9' is no encoding that Python knows"),
        ({"encoding": "base64"}, "'base64' is no encoding that Python knows"),
        ({"columns": {"lists": {"tags": ""}}}, "tags needs what separates its parts"),
        ({"columns": {"user": "item_id"}}, "user and item are both item_id; name a column for"),
        ({"columns": {"user": "timestamp"}}, "user and time are both timestamp"),
        ({"columns": {"item": "when", "time": "when"}}, "item and time are both when"),
        ({"columns": {"numbers": ["item_id"]}}, "item_id is the id, which is neither in lists"),
        ({"columns": {"lists": {"a": "|"}, "numbers": ["a"]}}, "a is in lists and in numbers"),
        ({"columns": {"time_format": "%d.%m.%d"}}, r"'%d\.%m\.%d' is no form of dates \("),
        ({"columns": {"time_format": "%Q"}}, "'%Q' is no form of dates"),
    ],
)
def test_settings_that_no_table_can_have_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Data(source="tabular", path="x", **settings)
