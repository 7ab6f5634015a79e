"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import pytest

from models.bundle import Bundle
from tests.tiny import write_llm, write_tiny_bundle


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", tiny_llm)


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, dtype="float32")
