"""Hypothesis strategies of small markets."""

import numpy as np
from hypothesis import strategies as st

from tests.property.mechanism.brute_force import Market


@st.composite
def markets(draw: st.DrawFn, *, max_tasks: int = 5, max_providers: int = 4) -> Market:
    n_tasks = draw(st.integers(0, max_tasks))
    n_providers = draw(st.integers(0, max_providers))
    # Few distinct values make ties, a wide range makes none.
    top = draw(st.sampled_from([1, 3, 50, 10**9]))
    entries = st.integers(-top // 2, top)
    rows = st.lists(entries, min_size=n_providers, max_size=n_providers)
    values = draw(st.lists(rows, min_size=n_tasks, max_size=n_tasks))
    slots = draw(st.lists(st.integers(0, 2), min_size=n_providers, max_size=n_providers))
    welfare = np.array(values, dtype=np.int64).reshape(n_tasks, n_providers)
    return welfare, np.array(slots, dtype=np.int64)
