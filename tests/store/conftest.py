from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine


@pytest.fixture
def make_engine(engine: Engine) -> Iterator[Any]:
    """Makes engines that connect to the test's schema, with options of their own and settings of the server."""
    made: list[Engine] = []

    def make(*settings: str, **options: Any) -> Engine:
        given = " ".join([str(engine.url.query["options"]), *(f"-c{setting}" for setting in settings)])
        made.append(create_engine(engine.url.update_query_dict({"options": given}), **options))
        return made[-1]

    yield make
    for each in made:
        each.dispose()
