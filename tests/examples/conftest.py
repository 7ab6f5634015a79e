"""Fixtures of the examples' tests."""

from tests.end_to_end.conftest import trained
from tests.service.conftest import shared

__all__ = ["shared", "trained"]
