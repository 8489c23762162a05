"""Settings of all tests: a busy machine is no reason to fail, and CI tries the same cases every time."""

import os

from hypothesis import settings

settings.register_profile("loomsight", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
settings.load_profile("loomsight")
