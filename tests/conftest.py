"""Settings of all tests.

Hypothesis draws the same examples in every run, so that a red run means a change and can be run
again; ``pytest --hypothesis-profile=explore`` draws new ones and tries more of them.
"""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=1_000, print_blob=True)
settings.load_profile("reproducible")

# What clients keep between runs (the last verified header of a chain) stays out of the user's.
_state_home = tempfile.TemporaryDirectory(prefix="iemas-tests-")
os.environ["XDG_STATE_HOME"] = _state_home.name
