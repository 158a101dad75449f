"""What the commands share: complaints about their arguments, and the database that they name."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError

from pupsourcing_sa.errors import MissingExtraError

__all__ = ["UsageError", "complain", "count", "database_url", "emit", "open_engine"]


class UsageError(Exception):
    """What was asked for cannot be done as it was asked; the message says what to change."""


def count(value: str) -> int:
    """A number of things, 1 or more."""
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def database_url(options: argparse.Namespace) -> URL:
    """The database that ``--database-url`` names, or else ``DATABASE_URL``, by psycopg, whatever driver is named.

    A bare ``postgresql://`` would be psycopg2 under SQLAlchemy 2.0, and an asynchronous driver wants an event loop.
    """
    given = options.database_url or os.environ.get("DATABASE_URL")
    if not given:
        raise UsageError("which database? Give --database-url, or set DATABASE_URL")
    try:
        url = make_url(given)
    except (ArgumentError, ValueError) as error:  # the latter of a port that is no number
        raise UsageError(f"--database-url or DATABASE_URL: {error}") from error
    if url.get_backend_name() != "postgresql":
        raise UsageError(f"--database-url or DATABASE_URL must be a postgresql URL, not {url.render_as_string()}")
    if url.drivername.endswith("+asyncpg") and "ssl" in url.query:
        url = url.update_query_dict({"sslmode": url.query["ssl"]}).difference_update_query(["ssl"])
    return url.set(drivername="postgresql+psycopg")


def open_engine(url: URL, **options: Any) -> Engine:
    """An engine for a URL of psycopg.

    Raises:
        MissingExtraError: psycopg is not installed.
    """
    try:
        return create_engine(url, **options)
    except ImportError as error:
        raise MissingExtraError("psycopg", "psycopg") from error


def emit(text: str) -> None:
    """Print to standard output, which may be a pipe that somebody has closed, as ``head`` does."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered is flushed at the exit


def complain(what: object, status: int) -> int:
    """Say what went wrong; gives the exit status."""
    print(f"pupsourcing-sa: {what}".rstrip(), file=sys.stderr)
    return status
