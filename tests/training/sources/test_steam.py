from pathlib import Path

from tests.training.sources.samples import attributes, interactions, lines, seconds
from training.sources import steam


def test_steam_lines_are_literals_of_python_2(tmp_path: Path) -> None:
    lines(
        tmp_path / "steam_reviews.json.gz",
        "{u'username': u'Chaos', u'product_id': u'725280', u'date': u'2017-12-17', "
        "u'text': u\"it's \\xe9\", u'early_access': False, u'hours': 0.1}",
        "{u'username': u'Chaos', u'product_id': u'725280', u'date': u'2017-12-18'}",
    )
    lines(
        tmp_path / "steam_games.json.gz",
        "{u'id': u'725280', u'app_name': u'Psi', u'genres': [u'Action', u'Indie'], "
        "u'tags': [u'Loved'], u'specs': [u'Single-player'], u'price': 4.99, "
        "u'developer': u'Kot\\xf3', u'publisher': u'K', u'release_date': u'2017-12-01', "
        "u'sentiment': u'Mixed', u'metascore': 80}",
        "{u'id': u'5', u'app_name': u'Old', u'title': u'New', u'price': u'Free To Play'}",
        "{u'app_name': u'A game without an id'}",
    )

    source = steam.FORMAT.load(tmp_path)

    assert attributes(source) == {
        "725280": {
            "title": "Psi",
            "genres": ["Action", "Indie"],
            "specs": ["Single-player"],
            "price": 4.99,
            "developer": "Kotó",
            "publisher": "K",
            "release_date": "2017-12-01",
        },
        "5": {"title": "New"},
    }
    assert interactions(source) == [("Chaos", "725280", seconds(2017, 12, 17))]
    assert source.repeats == 1
