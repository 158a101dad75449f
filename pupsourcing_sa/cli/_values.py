"""Types of the values that options and environment variables have.

They parse text that a user wrote, and click begins their messages with the name of the option or variable. Arguments
of Python functions are checked by `pupsourcing_sa._checks`, and so are the parsed settings of a worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime

import click

__all__ = ["moment", "one_of", "seconds", "true_or_false", "whole_number"]


def whole_number(minimum: int = 1, maximum: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers in this range."""
    expected = f"a whole number, {minimum} or more" if maximum is None else f"from {minimum:,} to {maximum:,}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise click.BadParameter(f"must be a whole number, not {text!r}") from None
        if number < minimum or (maximum is not None and number > maximum):
            raise click.BadParameter(f"must be {expected}, not {text}")
        return number

    return parse


def seconds(maximum: float = math.inf) -> Callable[[str], float]:
    """Return a parser of a time in seconds, greater than 0."""
    limit = "" if math.isinf(maximum) else f" and at most {maximum:,}"

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise click.BadParameter(f"must be a number of seconds, not {text!r}") from None
        if not 0 < number <= maximum or math.isinf(number):
            raise click.BadParameter(f"must be a number of seconds greater than 0{limit}, not {text}")
        return number

    return parse


def moment(text: str) -> datetime:
    """Return a time with a time zone."""
    example = "such as 2026-01-02T03:04:05Z"
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"must be a time in ISO 8601, {example}, not {text!r}") from None
    if parsed.tzinfo is None:
        raise click.BadParameter(f"must have a time zone, {example}, not {text!r}")
    return parsed


def true_or_false(text: str) -> bool:
    """Return the value of True or False, written in any case, or of 1 or 0."""
    found = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if found is None:
        raise click.BadParameter(f"must be True or False, not {text!r}")
    return found


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser of one of these words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise click.BadParameter(f"must be {', '.join(choices[:-1])} or {choices[-1]}, not {text!r}")
        return text

    return parse
