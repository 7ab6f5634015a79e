"""What every format reads with: files, lines, texts and prices."""

import gzip
from pathlib import Path

import pytest

from tests.training.sources.samples import lines
from training import JobError
from training.sources import codes_of
from training.sources.reading import read_objects
from training.sources.values import clean_text, price_of


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Soap &amp;amp; Co", "Soap & Co"),
        ("&lt;p&gt;one&lt;/p&gt;two", "one two"),
        ("a<br/>b <!-- c --> d", "a b d"),
        ("<style>p { color: red }</style>red", "red"),
        ("Soap <span class='x'", "Soap"),
        ("5 < 6 and 7 > 6, I <3 it", "5 < 6 and 7 > 6, I <3 it"),
        ("\xa0 line\nbreak\t ", "line break"),
        ("half an emoji \ud83d", "half an emoji"),
        (None, ""),
        (5, ""),
    ],
)
def test_texts_lose_markup_and_nothing_else(raw: object, clean: str) -> None:
    assert clean_text(raw) == clean


@pytest.mark.parametrize(
    ("raw", "price"),
    [
        (4.99, 4.99),
        (0, 0.0),
        ("$12.99", 12.99),
        ("12", 12.0),
        ("$1,234,567.50", 1234567.5),
        ("$12.99 - $15.99", None),
        ("from 12.99", None),
        ("Free To Play", None),
        (".a-box-inner{}", None),
        ("", None),
        (None, None),
        (True, None),
        (-1, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_a_price_is_a_number_or_none(raw: object, price: float | None) -> None:
    assert price_of(raw) == price


def test_lines_are_read_whatever_their_name_says_of_gzip(tmp_path: Path) -> None:
    lines(tmp_path / "packed.gz", '{"a": 1}', "", "{'b': None}")
    (tmp_path / "packed.gz").rename(tmp_path / "plain.json")
    (tmp_path / "mark.json").write_bytes(b'\xef\xbb\xbf{"a": "\xe2\x80\xa8"}\r\n')

    assert list(read_objects(tmp_path / "plain.json")) == [
        ("plain.json:1", {"a": 1}),
        ("plain.json:3", {"b": None}),
    ]
    assert list(read_objects(tmp_path / "mark.json")) == [("mark.json:1", {"a": "\u2028"})]


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress("".join('{"a": 1}\n' for _ in range(9)).encode())
    broken = {
        "cut.json.gz": (whole[:-10], r"cut\.json\.gz:\d+: not a whole gzip file"),
        "tail.json.gz": (whole + b"junk", r"tail\.json\.gz:10: not a whole gzip file"),
        "head.json.gz": (whole[:10] + b"\xff" * 20, r"head\.json\.gz:1: not a whole gzip file"),
        "latin.json": (b'{"a": 1}\n{"a": "\xe9"}\n', r"latin\.json:2: 'utf-8' codec can't decode"),
    }
    for name, (content, message) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(JobError, match=message):
            list(read_objects(tmp_path / name))
    with pytest.raises(JobError, match=r"there is no file .*missing\.json"):
        list(read_objects(tmp_path / "missing.json"))


def test_codes_count_from_0_in_the_order_of_first_appearance() -> None:
    assert codes_of(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
