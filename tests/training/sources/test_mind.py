from pathlib import Path

import pytest

from tests.training.sources.samples import attributes, interactions, lines, seconds
from training import JobError
from training.sources import mind


def test_mind_puts_the_history_before_the_clicks(tmp_path: Path) -> None:
    lines(
        tmp_path / mind.BEHAVIORS,
        "1\tU1\t11/11/2019 9:05:58 PM\tN9 N9\tN3-0 N4-1",
        "2\tU1\t11/11/2019 9:05:58 AM\tN1 N2 N1\tN3-1 N2-1 N4-0",
        "3\tU2\t11/12/2019 12:00:00 AM\t\tN1-1",
    )
    lines(
        tmp_path / mind.NEWS,
        'N1\tsports\tsoccer\tA "quoted title\tAn abstract\thttps://x\t[]\t[]',
        "N2\tnews\tworld\tNo abstract\t\thttps://x\t\t",
    )

    source = mind.FORMAT.load(tmp_path)

    morning, evening = seconds(2019, 11, 11, 9, 5, 58), seconds(2019, 11, 11, 21, 5, 58)
    assert interactions(source) == [
        ("U1", "N1", morning - 3),
        ("U1", "N2", morning - 2),
        ("U1", "N4", evening),
        ("U1", "N3", morning),
        ("U2", "N1", seconds(2019, 11, 12)),
    ]
    assert source.repeats == 2  # N1 again in the history, N2 clicked again
    assert attributes(source) == {
        "N1": {
            "title": 'A "quoted title',
            "abstract": "An abstract",
            "category": "sports",
            "subcategory": "soccer",
        },
        "N2": {"title": "No abstract", "category": "news", "subcategory": "world"},
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1\tU\t2019-11-11\t\tN1-1", r"behaviors\.tsv:1: time: '2019-11-11' is no time like"),
        ("1\tU\t11/11/2019 9:05:58 AM\t\tN1", r"behaviors\.tsv:1: impressions: 'N1' .* test set"),
        ("1\tU\t11/11/2019 9:05:58 AM\tN1", r"behaviors\.tsv:1: 4 columns, not 5"),
        ("1\t\t11/11/2019 9:05:58 AM\t\tN1-1", r"behaviors\.tsv:1: user_id: '' is no id"),
    ],
)
def test_wrong_behaviour_is_named(tmp_path: Path, row: str, message: str) -> None:
    lines(tmp_path / mind.NEWS)
    lines(tmp_path / mind.BEHAVIORS, row)

    with pytest.raises(JobError, match=message):
        mind.FORMAT.load(tmp_path)
