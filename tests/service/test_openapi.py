"""The API only grows. After a wanted change: `python -m tests.service.test_openapi`."""

import json
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import read_settings

GOLDEN = Path(__file__).with_name("openapi.json")


def current() -> dict[str, Any]:
    app = create_app(read_settings(bundle=Path(__file__).parent))
    schema: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    schema["info"].pop("version")
    return schema


def test_the_api_is_the_one_that_was_agreed() -> None:
    assert current() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(current(), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
