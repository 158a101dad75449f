"""Where the demo happens: an embedded server, or a schema of its own on a server of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.schema import CreateSchema, DropSchema

from pupsourcing_sa.testing import embedded_postgres

__all__ = ["Place", "database"]


class Place:
    """A database to work in, and what to tell of it."""

    def __init__(self, url: URL, description: str) -> None:
        self.url = url.render_as_string(hide_password=False)
        self.description = description


@contextmanager
def database(url: str | None, *, keep: bool) -> Iterator[Place]:
    """A place for the demo, removed afterwards unless it is to be kept.

    Args:
        url: of a PostgreSQL database, or ``None`` for an embedded server in a temporary directory.
        keep: leave the schema in the user's database.
    """
    if url is None:
        with embedded_postgres() as embedded_url:
            yield Place(make_url(embedded_url), "embedded, in a temporary directory")
        return
    server = make_url(url)
    if server.get_backend_name() != "postgresql":
        raise ValueError(f"--database-url must be a postgresql URL, not {server.render_as_string()}")
    server = server.set(drivername="postgresql+psycopg")
    schema = f"pupsourcing_demo_{uuid4().hex[:8]}"
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.execute(CreateSchema(schema))
    try:
        yield Place(server.update_query_dict({"options": f"-csearch_path={schema}"}), f"yours, in schema {schema}")
    finally:
        if not keep:
            with engine.begin() as connection:
                connection.execute(DropSchema(schema, cascade=True))
        engine.dispose()
