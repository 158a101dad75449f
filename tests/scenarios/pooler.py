"""A PgBouncer in transaction mode between the nodes and the server, if there is one.

``PUPSOURCING_TEST_POOLER`` names it, as ``host:port``. It must serve all databases of the tests' server.
"""

from __future__ import annotations

import os
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import make_url

__all__ = ["OPTIONS", "POOLER", "pooled"]

#: Its host and port, or ``None``.
POOLER: Final = os.environ.get("PUPSOURCING_TEST_POOLER")

#: ``connect_args`` for each driver. A statement prepared in one transaction may be missing in the next one, or be
#: another statement. docs/howto/connections.md has the same settings.
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "psycopg": {"prepare_threshold": None},
    "asyncpg": {
        "statement_cache_size": 0,  # the driver's cache
        "prepared_statement_cache_size": 0,  # SQLAlchemy's cache
        "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__",
    },
}


def pooled(url: str) -> str:
    """Return the URL of the same database behind the pooler."""
    assert POOLER is not None
    host, _, port = POOLER.rpartition(":")
    return make_url(url).set(host=host, port=int(port)).render_as_string(hide_password=False)
