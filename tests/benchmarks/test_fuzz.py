"""What counts as a failure of the service, and that damage is the same every time."""

import itertools
from pathlib import Path

import pytest

from benchmarks.serving.films import Films
from benchmarks.serving.fuzz import PROBLEM, complaint, damage

PROBLEM_BODY = b'{"type": "about:blank", "title": "x", "status": 422, "detail": "y"}'
OPENAI_BODY = b'{"error": {"message": "x", "type": "invalid_request_error"}}'


@pytest.mark.parametrize(
    ("status", "kind", "path", "body", "fine"),
    [
        (200, "application/json", "/embed", b"{}", True),
        (422, PROBLEM, "/embed", PROBLEM_BODY, True),
        (422, "application/json", "/embed", PROBLEM_BODY, False),
        (422, PROBLEM, "/embed", b'{"title": "x"}', False),
        (404, "text/html", "/nowhere", b"<h1>", False),
        (500, PROBLEM, "/embed", PROBLEM_BODY, False),
        (503, PROBLEM, "/embed", PROBLEM_BODY, True),
        (422, "application/json", "/v1/embeddings", OPENAI_BODY, True),
        (422, PROBLEM, "/v1/embeddings", PROBLEM_BODY, False),
    ],
)
def test_an_error_has_the_shape_of_its_route_and_a_defect_is_none(
    status: int, kind: str, path: str, body: bytes, fine: bool
) -> None:
    assert (complaint(status, kind, path, body) is None) == fine


def test_damage_is_the_same_every_time(tiny_bundle: Path) -> None:
    first, again = (list(damage(Films(tiny_bundle), 200, lambda *_: True)) for _ in range(2))

    assert first == again
    assert len({each.body for each in first}) > 150


def test_fresh_films_come_once_and_are_none_of_the_bundles(tiny_bundle: Path) -> None:
    films = Films(tiny_bundle)

    texts = [films.text(film) for film in itertools.chain(films.fresh(60), films.fresh(60))]

    assert len(set(texts)) == 120
    assert not set(texts) & {films.text(film) for film in films.known}
