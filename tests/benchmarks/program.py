"""Parts that the programs of this package share."""

from __future__ import annotations

import os
import platform
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

from sqlalchemy import Engine, text

from tests.fix_postgres import new_database, open_server

__all__ = ["describe", "own_database", "parse"]


def parse(parser: ArgumentParser, cases: Iterable[str]) -> tuple[Namespace, list[str]]:
    """Return the options and the cases that the command line selects by parts of their names; by default all."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="run only the cases whose name contains NAME")
    options = parser.parse_args()
    chosen = [name for name in cases if not options.names or any(part in name for part in options.names)]
    if not chosen:
        parser.error("no case has such a name. The cases are:\n  " + "\n  ".join(cases))
    return options, chosen


@contextmanager
def own_database() -> Iterator[str]:
    """Yield the URL of an empty database, on the server of the tests."""
    with open_server() as server, new_database(server) as url:
        yield url


def describe(engine: Engine, *drivers: str) -> str:
    """Return the versions and the number of cores."""
    with engine.connect() as connection:
        server = connection.scalar(text("SHOW server_version"))
    packages = ", ".join(f"{name} {version(name)}" for name in ("SQLAlchemy", *drivers))
    return f"Python {platform.python_version()}, {packages}, PostgreSQL {server}, {os.cpu_count()} cores"
