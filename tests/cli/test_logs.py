"""Lines of text and of JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pupsourcing_sa.cli._logs import JsonFormatter, TextFormatter, configure_logging


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
    assert line.endswith(f" INFO pupsourcing_sa.test[{record().process}]: worker started first=1 value={expected}")


def test_text_of_an_exception_follows_the_line():
    line, *traceback = TextFormatter().format(record(exc_info=failure(), attempts=3)).split("\n")
    assert line.endswith("worker started attempts=3")
    assert traceback[-2:] == ["ValueError: no", "luck"]


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


@contextmanager
def root_logger(*handlers: logging.Handler) -> Iterator[logging.Logger]:
    """The root logger with these handlers only, without those of the tests."""
    root, ours = logging.getLogger(), logging.getLogger("pupsourcing_sa")
    before = root.handlers, root.level, ours.level
    root.handlers = list(handlers)
    try:
        yield root
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])  # they cache what is enabled
        ours.setLevel(before[2])


def test_an_application_that_configures_logging_keeps_it_unless_told():
    with root_logger(own := logging.NullHandler()) as root:
        configure_logging(None, is_quiet=True)
        assert root.handlers == [own]
        assert not logging.getLogger("pupsourcing_sa.worker").isEnabledFor(logging.INFO)
        configure_logging("json", is_quiet=False)
        assert [type(handler.formatter) for handler in root.handlers] == [JsonFormatter]


@pytest.mark.parametrize(("is_quiet", "level"), [(True, logging.WARNING), (False, logging.INFO)])
def test_other_applications_get_text(is_quiet: bool, level: int):
    with root_logger() as root:
        configure_logging(None, is_quiet=is_quiet)
        assert [type(handler.formatter) for handler in root.handlers] == [TextFormatter]
        assert root.level == level
