"""What the commands share: complaints about their arguments, and the database that they name."""

from __future__ import annotations

import argparse
import os
import sys

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

__all__ = ["UsageError", "complain", "count", "database_url"]


class UsageError(Exception):
    """What was asked for cannot be done as it was asked; the message says what to change."""


def count(value: str) -> int:
    """A number of things, 1 or more."""
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def database_url(options: argparse.Namespace) -> URL:
    """The database that ``--database-url`` names, or else ``DATABASE_URL``."""
    given = options.database_url or os.environ.get("DATABASE_URL")
    if not given:
        raise UsageError("which database? Give --database-url, or set DATABASE_URL")
    try:
        return make_url(given)
    except ArgumentError as error:
        raise UsageError(f"--database-url or DATABASE_URL: {error}") from error


def complain(what: object, status: int) -> int:
    """Say what went wrong; gives the exit status."""
    print(f"pupsourcing-sa: {what}", file=sys.stderr)
    return status
