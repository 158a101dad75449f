"""A PgBouncer in transaction mode between the nodes and the server, if there is one to be had.

It is the one that ``PUPSOURCING_TEST_POOLER`` names, ``host:port``, in front of the tests' server and all databases of
it.
"""

from __future__ import annotations

import os
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import make_url

__all__ = ["OPTIONS", "POOLER", "pooled"]

#: Its host and port; ``None`` if there is none.
POOLER: Final = os.environ.get("PUPSOURCING_TEST_POOLER")

#: What each driver has to be told as ``connect_args``: a statement that is prepared in one transaction is not there in
#: the next one, or is another one. docs/howto/connections.md says the same.
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "psycopg": {"prepare_threshold": None},
    "asyncpg": {
        "statement_cache_size": 0,  # the driver's own, by which it executes a statement many times
        "prepared_statement_cache_size": 0,  # SQLAlchemy's
        "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__",
    },
}


def pooled(url: str) -> str:
    """The same database by way of the pooler."""
    assert POOLER is not None
    host, _, port = POOLER.rpartition(":")
    return make_url(url).set(host=host, port=int(port)).render_as_string(hide_password=False)
