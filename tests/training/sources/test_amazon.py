import json
from pathlib import Path

import pytest

from tests.training.sources.samples import attributes, interactions, lines, objects, review
from training import JobError
from training.sources import amazon


def test_amazon_2014_has_literals_for_metadata_and_several_category_paths(tmp_path: Path) -> None:
    objects(tmp_path / "reviews_Beauty_5.json.gz", review("u", "B1", 10), review("v", "B1", 20))
    lines(
        tmp_path / "meta_Beauty.json.gz",
        "{'asin': 'B1', 'title': \"L&amp;#39;Or&eacute;al  Men's <b>Gel</b>\", 'price': 12.5, "
        "'brand': 'L&#39;Oreal', 'description': 'Soft &lt;br /&gt; hold', "
        "'categories': [['Beauty', 'Hair Care'], ['Men', 'Hair &amp; Skin']], "
        "'salesRank': {'Beauty': 3}, 'related': {'also_bought': ['B2']}, 'imUrl': 'http://x'}",
        "{'asin': 'B2', 'title': 'Nobody reviewed this'}",
    )

    source = amazon.load(tmp_path)

    assert amazon.files(tmp_path) == ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz")
    assert attributes(source) == {
        "B1": {
            "title": "L'Oréal Men's Gel",
            "price": 12.5,
            "brand": "L'Oreal",
            "description": "Soft hold",
            "categories": [["Beauty", "Hair Care"], ["Men", "Hair & Skin"]],
        }
    }
    assert interactions(source) == [("u", "B1", 10.0), ("v", "B1", 20.0)]


def test_amazon_2018_has_one_path_lists_of_text_and_remains_of_pages(tmp_path: Path) -> None:
    objects(
        tmp_path / "All_Beauty.json",
        *(review("u", f"B{number}", number) for number in range(1, 6)),
    )
    objects(
        tmp_path / "meta_All_Beauty.json",
        {
            "asin": "B1",
            "title": '<span class="a-size-large">Soap',
            "brand": "by\n    \n    Dove",
            "category": ["Clothing", "Women", "</span></span></span>", "Imported"],
            "description": ["Mild.", "", "<p>Smells &amp; foams.</p>"],
            "feature": ["100 % soap", "<script>var a = 1 < 2;</script>"],
            "price": "$1,299.00",
            "also_buy": ["B2"],
            "rank": "3 in Beauty",
        },
        {"asin": "B2", "title": "var t0 = (new Date()).getTime();", "brand": "B", "price": ".a{}"},
        {"asin": "B3", "title": "", "brand": "", "category": [], "price": "", "also_buy": ["B1"]},
        {"asin": "B4", "title": "", "brand": "first"},
        {"asin": "B4", "title": "With a title", "brand": "second"},
        {"asin": "B4", "title": "Another", "brand": "third"},
        {"asin": "B5", "title": "A novel", "brand": "Visit Amazon's Jane Doe Page"},
    )

    source = amazon.load(tmp_path)

    assert attributes(source) == {
        "B1": {
            "title": "Soap",
            "brand": "Dove",
            "categories": [["Clothing", "Women"]],
            "description": "Mild. Smells & foams.",
            "features": ["100 % soap"],
            "price": 1299.0,
        },
        "B2": {"brand": "B"},
        "B4": {"title": "With a title", "brand": "second"},
        "B5": {"title": "A novel", "brand": "Jane Doe"},
    }
    assert "B3" in source.events.items


def test_amazon_2023_counts_in_milliseconds_and_by_parent(tmp_path: Path) -> None:
    objects(
        tmp_path / "All_Beauty.jsonl.gz",
        {"user_id": "u", "asin": "C1", "parent_asin": "P1", "timestamp": 1588615855070},
    )
    objects(
        tmp_path / "meta_All_Beauty.jsonl.gz",
        {
            "parent_asin": "P1",
            "main_category": "All Beauty",
            "title": "Gel",
            "store": "Dove",
            "categories": ["Beauty", "Hair"],
            "features": ["Soft", ""],
            "description": [],
            "price": None,
            "details": {"UPC": "1"},
            "average_rating": 4.8,
            "rating_number": 10,
            "images": [],
        },
    )

    source = amazon.load(tmp_path)

    assert attributes(source) == {
        "P1": {
            "title": "Gel",
            "brand": "Dove",
            "categories": [["Beauty", "Hair"]],
            "features": ["Soft"],
        }
    }
    assert interactions(source) == [("u", "P1", 1588615855.07)]


def test_of_several_reviews_of_an_item_by_a_user_the_first_in_time_counts(tmp_path: Path) -> None:
    objects(
        tmp_path / "X.json",
        review("u", "B1", 30),
        review("u", "B2", 20),
        review("u", "B1", 10),
        review("v", "B1", 10),
        review("u", "B1", 10),
    )
    objects(tmp_path / "meta_X.json", {"asin": "B1", "title": "1"}, {"asin": "B2", "title": "2"})

    source = amazon.load(tmp_path)

    assert interactions(source) == [("u", "B2", 20.0), ("u", "B1", 10.0), ("v", "B1", 10.0)]
    assert source.events.where == ["X.json:2", "X.json:3", "X.json:4"]
    assert source.repeats == 2


def test_an_amazon_folder_holds_the_reviews_and_metadata_of_one_category(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no meta_CATEGORY with one of \.json\.gz, \.json"):
        amazon.files(tmp_path)

    lines(tmp_path / "meta_Baby.json")
    with pytest.raises(JobError, match=r"meta_Baby\.json but no reviews: none of reviews_Baby_5"):
        amazon.files(tmp_path)

    lines(tmp_path / "reviews_Baby.json.gz")
    assert amazon.files(tmp_path) == ("reviews_Baby.json.gz", "meta_Baby.json")
    lines(tmp_path / "Baby_5.json")
    assert amazon.files(tmp_path) == ("Baby_5.json", "meta_Baby.json")

    lines(tmp_path / "meta_Toys.jsonl.gz")
    with pytest.raises(JobError, match=r"several categories \(Baby, Toys\)"):
        amazon.files(tmp_path)


GOOD_REVIEW = json.dumps(review("u", "B1", 10))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'asin': __import__('os').getcwd()}", r"X\.json:2: neither a JSON object nor"),
        ('{"asin": "B1", ', r"X\.json:2: neither a JSON object nor a Python dict: '\{\"asin\""),
        ("[" * 100_000, r"X\.json:2: neither"),
        ("[1]", r"X\.json:2: neither"),
        ('{"reviewerID": "u"}', r"X\.json:2: there is no field asin; found reviewerID"),
        ('{"reviewerID": "u", "asin": ""}', r"X\.json:2: asin: '' is no id"),
        ('{"reviewerID": null, "asin": "B"}', r"X\.json:2: reviewerID: None is no id"),
        ('{"reviewerID": "a\\nb", "asin": "B"}', r"X\.json:2: reviewerID: 'a\\nb' holds a line"),
        ('{"reviewerID": "\\ud800", "asin": "B"}', r"X\.json:2: reviewerID: .* half a surrogate"),
        ('{"reviewerID": "u", "asin": "B"}', r"X\.json:2: there is no field unixReviewTime"),
        (
            '{"reviewerID": "u", "asin": "B", "unixReviewTime": "soon"}',
            r"X\.json:2: unixReviewTime: 'soon' is not a finite number",
        ),
        (
            '{"user_id": "u", "parent_asin": "B", "timestamp": NaN}',
            r"X\.json:2: timestamp: 'nan' is not a finite number",
        ),
    ],
)
def test_a_wrong_line_is_named_by_file_line_and_field(
    tmp_path: Path, line: str, message: str
) -> None:
    lines(tmp_path / "X.json", GOOD_REVIEW, line)
    lines(tmp_path / "meta_X.json", "{'asin': 'B1', 'title': 'T'}")

    with pytest.raises(JobError, match=message):
        amazon.load(tmp_path)


def test_an_item_of_a_source_must_be_an_item(tmp_path: Path) -> None:
    long = "B" * 600
    objects(tmp_path / "X.json", review("u", long, 1))
    objects(tmp_path / "meta_X.json", {"asin": long, "title": "T"})

    with pytest.raises(JobError, match=r"meta_X\.json:1: item_id: item_id is longer than 512"):
        amazon.load(tmp_path)
