"""Fixtures of the examples' tests."""

from tests.service.conftest import shared

__all__ = ["shared"]
