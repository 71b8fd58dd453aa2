"""Fixtures of the tests that run inside network namespaces."""

from tests.support.netns import namespaces

__all__ = ["namespaces"]
