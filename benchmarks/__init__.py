"""Measurements that documents quote. Never run by the tests."""
