from pathlib import Path

import pytest

from tests.training.sources.samples import attributes, interactions, lines, objects, seconds
from training import JobError
from training.sources import yelp


def test_yelp_keeps_what_is_plainly_true_of_a_business(tmp_path: Path) -> None:
    objects(
        tmp_path / yelp.REVIEWS,
        {"user_id": "u", "business_id": "b", "stars": 1, "date": "2018-07-07 22:09:11"},
        {"user_id": "u", "business_id": "b", "stars": 5, "date": "2019-01-01 00:00:00"},
        {"user_id": "v", "business_id": "b", "stars": 5, "date": "2018-07-08"},
    )
    objects(
        tmp_path / f"{yelp.BUSINESSES}.gz",
        {
            "business_id": "b",
            "name": "Joe&#39;s",
            "address": "1 Road",
            "city": "Reno",
            "state": "NV",
            "stars": 4.5,
            "review_count": 3,
            "categories": "Bars, Arts & Entertainment , Nightlife",
            "attributes": {
                "OutdoorSeating": "True",
                "HasTV": "False",
                "WiFi": "u'free'",
                "BusinessParking": "{'street': True, 'valet': False, 'lot': None}",
                "Ambience": "{'background_music': True",
                "RestaurantsPriceRange2": "1",
            },
        },
        {"business_id": "c", "name": "Bare", "categories": None, "attributes": None},
    )

    source = yelp.FORMAT.load(tmp_path)

    assert attributes(source) == {
        "b": {
            "name": "Joe's",
            "city": "Reno",
            "state": "NV",
            "categories": ["Bars", "Arts & Entertainment", "Nightlife"],
            "features": ["Outdoor Seating", "Business Parking: street"],
        },
        "c": {"name": "Bare"},
    }
    assert interactions(source) == [
        ("u", "b", seconds(2018, 7, 7, 22, 9, 11)),
        ("v", "b", seconds(2018, 7, 8)),
    ]
    assert source.repeats == 1


@pytest.mark.parametrize("date", ['"2018-13-07"', '"yesterday"', "5", "null"])
def test_a_wrong_date_is_named(tmp_path: Path, date: str) -> None:
    lines(tmp_path / yelp.BUSINESSES)
    lines(tmp_path / yelp.REVIEWS, f'{{"user_id": "u", "business_id": "b", "date": {date}}}')

    with pytest.raises(JobError, match=r"review\.json:1: date: .* is no date like 2019-11-05"):
        yelp.FORMAT.load(tmp_path)
