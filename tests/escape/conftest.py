"""Fixtures of the tests that attack from inside a real sandbox."""

from tests.kernel.conftest import node

__all__ = ["node"]
