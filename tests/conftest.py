"""Settings of all tests: a busy machine is no reason to fail, and CI tries the same cases every time."""

import os
import tempfile

import pytest
from hypothesis import settings

# What is measured of a machine that runs tests says nothing of it, and is not to be remembered.
_cache = tempfile.TemporaryDirectory(prefix="loomsight-cache-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = _cache.name

settings.register_profile("loomsight", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
settings.load_profile("loomsight")

LONGEST = ("detector_stability", "export", "learn", "loom", "throughput", "base", "anomaly", "rtdetr")
"""Files that take minutes. They come first: one that started last would keep the other worker waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all else in its order (the sort is stable)."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
