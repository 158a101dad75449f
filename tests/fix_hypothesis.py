"""Few examples of each property every day, and many in `make test-all`."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("daily", max_examples=50, deadline=None)  # no deadline: the machine may be busy
settings.register_profile("exhaustive", max_examples=1000, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    """Load the profile before any test module is imported."""
    settings.load_profile("daily" if config.option.markexpr == "not exhaustive" else "exhaustive")
