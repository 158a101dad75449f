"""Checks of arguments: what they accept, and their messages."""

from __future__ import annotations

import math
from enum import Enum, IntEnum

import pytest

from pupsourcing_sa._checks import (
    MAX_BIGINT,
    check_int,
    check_name,
    check_names,
    check_seconds,
    check_text,
    check_type,
)


def test_values_in_range_are_accepted():
    check_type("name", "text", str, "a str")
    check_int("name", 0)
    check_int("name", MAX_BIGINT)
    check_int("name", None, is_optional=True)
    check_seconds("name", 1)
    check_seconds("name", 0.001)
    check_seconds("name", 1_000_000)
    check_text("name", "é")
    check_text("name", None, is_optional=True)
    check_text("name", "", is_optional=True)
    check_name("name", "é" * 31)
    assert check_names("name", None) is None
    assert check_names("name", []) is None
    assert check_names("name", iter(["b", "a", "b"])) == ("a", "b")


@pytest.mark.parametrize(
    ("check", "value", "options", "error", "message"),
    [
        (check_int, "1", {}, TypeError, "n must be an int, not str"),
        (check_int, True, {}, TypeError, "n must be an int, not bool"),
        (check_int, 1.0, {"is_optional": True}, TypeError, "n must be an int or None, not float"),
        (check_int, None, {}, TypeError, "n must be an int, not NoneType"),
        (check_int, -1, {}, ValueError, "n must be between 0 and 9223372036854775807, not -1"),
        pytest.param(check_int, 10**5000, {}, ValueError, "n must be between 0 and", id="long"),
        (check_int, 8, {"minimum": 1, "maximum": 7}, ValueError, "n must be between 1 and 7, not 8"),
        (check_seconds, "1", {}, TypeError, "n must be a number of seconds, not str"),
        (check_seconds, True, {}, TypeError, "n must be a number of seconds, not bool"),
        (check_seconds, 0, {}, ValueError, "n must be greater than 0 and at most 1,000,000 seconds, not 0"),
        (check_seconds, math.nan, {}, ValueError, "n must be greater than 0 and at most 1,000,000 seconds, not nan"),
        (check_seconds, math.inf, {}, ValueError, "n must be greater than 0 and at most 1,000,000 seconds, not inf"),
        (check_text, None, {}, TypeError, "n must be a str, not NoneType"),
        (check_text, b"a", {"is_optional": True}, TypeError, "n must be a str, not bytes"),
        (check_text, "", {}, ValueError, "n must not be empty"),
        (check_text, "a\0b", {}, ValueError, "n must not contain NUL characters, which PostgreSQL cannot store"),
        (check_text, "\ud800", {}, ValueError, "n cannot be encoded as UTF-8: "),
        (check_name, 5, {}, TypeError, "n must be a str, not int"),
        (check_name, "", {}, ValueError, "n must be a name of 1 to 63 bytes, not ''"),
        (check_name, "n" * 64, {"kind": "table name"}, ValueError, "n must be a table name of 1 to 63 bytes, not 'nnn"),
        (check_names, "User", {}, TypeError, "n must be a set of str, such as {'User'}, not str"),
        (check_names, 5, {}, TypeError, "n must be a set of str, such as {5}, not int"),
        (check_names, [[]], {}, TypeError, "n must contain str only, not list"),
        (check_names, ["a\0"], {}, ValueError, "n must not contain NUL characters, which PostgreSQL cannot store"),
    ],
)  # fmt: skip
def test_other_values_are_refused(check, value, options, error, message):
    with pytest.raises(error) as caught:
        check("n", value, **options)
    assert str(caught.value).startswith(message)


class Number(int, Enum):
    TWO = 2


class Size(IntEnum):
    TWO = 2


class Kind(str, Enum):  # noqa: UP042
    USER = "user"


class Duration(float):
    pass


@pytest.mark.parametrize(
    ("check", "value", "plain"),
    [
        (check_int, Number.TWO, 2),
        (check_int, Size.TWO, 2),
        (check_seconds, Number.TWO, 2),
        (check_seconds, Duration(1.5), 1.5),
        (check_text, Kind.USER, "user"),
        (check_name, Kind.USER, "user"),
        (check_names, [Kind.USER, "user"], ("user",)),
    ],
)
def test_values_of_subclasses_are_returned_without_them(check, value, plain):
    checked = check("n", value)
    assert checked == plain
    assert type(checked) is type(plain)
    if isinstance(checked, tuple):
        assert {type(name) for name in checked} == {str}


def test_a_type_is_named_with_a_hint():
    with pytest.raises(TypeError, match=r"^tables must be EventTables, not type; write EventTables\(\)$"):
        check_type("tables", str, int, "EventTables", "; write EventTables()")
