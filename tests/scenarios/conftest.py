"""Fixtures of the scenarios. They are not in a ``fix_*.py``, because other tests have another ``fleet``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.fleet import Fleet
from tests.scenarios.pooler import POOLER, pooled
from tests.scenarios.scene import Scene


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    """A database for the test, with the tables."""
    scene = Scene(database_url, pooled(database_url) if POOLER else None)
    yield scene
    scene.close()


@pytest.fixture
def fleet(scene: Scene, database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Nodes on that database. They end before it is dropped."""
    url = pooled(database_url) if POOLER else database_url
    fleet = Fleet(url, tmp_path, is_pooled=POOLER is not None)
    yield fleet
    fleet.close()
    fleet.show_logs()
