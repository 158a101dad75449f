"""Lines of text and of JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pupsourcing_sa.cli._logging import JsonFormatter, TextFormatter, configure_logging
from tests.fix_command import root_logger


def record(message: str = "worker started", *, exc_info: Any = None, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("pupsourcing_sa.test").makeRecord(
        "pupsourcing_sa.test", logging.INFO, "file.py", 1, message, (), exc_info, extra=extra
    )


def failure() -> Any:
    try:
        raise ValueError("no\nluck")
    except ValueError:
        return sys.exc_info()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, "5"),
        (0.5, "0.5"),
        (None, "null"),
        ("word", "word"),
        ("/a-b.c:d", "/a-b.c:d"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('"', r'"\""'),
        ("line\nINFO forged", r'"line\nINFO forged"'),
        ("\x9b31m", r'"\u009b31m"'),
        ("Müller & Söhne", '"Müller & Söhne"'),
        (("a", "b"), '["a","b"]'),
        ({"a": {1}}, '{"a":[1]}'),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("x"), "x"),
    ],
)
def test_text(value: object, expected: str):
    line = TextFormatter().format(record(first=1, value=value))
    assert line.endswith(f" INFO    worker started first=1 value={expected} process={os.getpid()}")


def test_the_beginning_of_a_line_of_text():
    early = record()
    early.created, early.msecs = datetime(2026, 7, 25, 11, 29, 5).astimezone().timestamp(), 7.0
    assert TextFormatter().format(early).startswith("2026-07-25 11:29:05.007 INFO    worker started ")


def test_text_of_another_library_names_its_logger():
    other = record()
    other.name = "sqlalchemy.pool"
    assert f" worker started logger=sqlalchemy.pool process={os.getpid()}" in TextFormatter().format(other)


def test_text_of_an_exception_follows_the_line():
    line, *traceback = TextFormatter().format(record(exc_info=failure(), attempts=3)).split("\n")
    assert line.endswith(f"worker started attempts=3 process={os.getpid()}")
    assert traceback[0] == "    Traceback (most recent call last):"
    assert traceback[-2:] == ["    ValueError: no", "    luck"]


def test_json():
    data = {"number": 5, "names": ("a", "b"), "set": {1}, "id": UUID(int=1), "nan": float("nan"), "map": {1: Path("x")}}
    line = JsonFormatter().format(record("it\nworks", **data))
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "INFO",
        "logger": "pupsourcing_sa.test",
        "process": record().process,
        "message": "it\nworks",
        "number": 5,
        "names": ["a", "b"],
        "set": [1],
        "id": "00000000-0000-0000-0000-000000000001",
        "nan": "nan",
        "map": {"1": "x"},
    }


def test_json_of_an_exception():
    found = json.loads(JsonFormatter().format(record(exc_info=failure())))
    assert found["exception"].startswith("Traceback ")
    assert found["exception"].endswith("ValueError: no\nluck")


def test_json_keeps_its_own_names():
    found = json.loads(JsonFormatter().format(record(level=3, time="now")))
    assert (found["level"], found["level_"], found["time_"]) == ("INFO", 3, "now")


def is_enabled(level: int) -> bool:
    return logging.getLogger("pupsourcing_sa.worker").isEnabledFor(level)


def test_an_application_that_configures_logging_keeps_its_handlers():
    with root_logger(own := logging.NullHandler()) as root:
        configure_logging(None, "warning")
        assert root.handlers == [own]
        assert not is_enabled(logging.INFO)
        configure_logging("json", None)
        assert [type(handler.formatter) for handler in root.handlers] == [JsonFormatter]


@pytest.mark.parametrize(
    ("level", "first", "of_others"),
    [
        (None, logging.INFO, logging.INFO),
        ("debug", logging.DEBUG, logging.INFO),
        ("info", logging.INFO, logging.INFO),
        ("warning", logging.WARNING, logging.WARNING),
        ("error", logging.ERROR, logging.ERROR),
    ],
)
def test_other_applications_get_text(level: str | None, first: int, of_others: int):
    with root_logger() as root:
        configure_logging(None, level)
        assert [type(handler.formatter) for handler in root.handlers] == [TextFormatter]
        assert root.level == of_others
        assert (is_enabled(first - 1), is_enabled(first)) == (False, True)
