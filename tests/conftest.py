"""Settings of all tests: a busy machine is no reason to fail, and CI tries the same cases every time."""

import os
import tempfile

from hypothesis import settings

# What is measured of a machine that runs tests says nothing of it, and is not to be remembered.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="loomsight-cache-")

settings.register_profile("loomsight", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
settings.load_profile("loomsight")
