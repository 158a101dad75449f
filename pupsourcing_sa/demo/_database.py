"""The database of the demo: an embedded server, or a new schema on the user's server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.schema import CreateSchema, DropSchema

from pupsourcing_sa.testing import embedded_postgres

__all__ = ["DemoDatabase", "open_database"]


class DemoDatabase:
    """A database, and its description for the user."""

    def __init__(self, url: URL, description: str) -> None:
        self.url = url.render_as_string(hide_password=False)
        self.description = description


@contextmanager
def open_database(url: str | None, *, keep: bool) -> Iterator[DemoDatabase]:
    """Open an empty database for the demo, and remove it after the block.

    Args:
        url: URL of a PostgreSQL database, or ``None`` for an embedded server in a temporary directory.
        keep: keep the schema in the user's database.
    """
    if url is None:
        with embedded_postgres() as embedded_url:
            yield DemoDatabase(make_url(embedded_url), "embedded, in a temporary directory")
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
        search_path = {"options": f"-csearch_path={schema}"}
        yield DemoDatabase(server.update_query_dict(search_path), f"your server, in schema {schema}")
    finally:
        if not keep:
            with engine.begin() as connection:
                connection.execute(DropSchema(schema, cascade=True))
        engine.dispose()
