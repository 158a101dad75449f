"""The comparison of schemas, on both codecs: each verdict is proved by decoding a payload of the old class."""

from __future__ import annotations

from dataclasses import make_dataclass
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupsourcing_sa.registry import MsgspecCodec, PydanticCodec
from pupsourcing_sa.registry.snapshots.compatibility import changes
from tests.registry.classes import Line

Narrow = Enum("Narrow", {"A": "a"})
Wide = Enum("Wide", {"A": "a", "B": "b"})
LineV2 = make_dataclass("LineV2", [("sku", int), ("quantity", int)])
REQUIRED = object()


def schema_of(codec: Any, *fields: tuple[Any, ...]) -> Any:
    given = []
    for name, hint, default in fields:
        given.append((name, hint) if default is REQUIRED else (name, hint, default))
    return codec.bind(make_dataclass("Event", given, kw_only=True)).json_schema()


def field(hint: Any, default: Any = REQUIRED) -> tuple[Any, ...]:
    return ("value", hint, default)


OTHER = ("other", str, REQUIRED)

CASES = {
    "the same": ([field(int)], [field(int)], []),
    "an optional field": ([OTHER], [OTHER, field(int, 0)], []),
    "a default": ([field(int)], [field(int, 0)], []),
    "an integer that becomes a float": ([field(int)], [field(float)], []),
    "a nullable field": ([field(int)], [field(int | None)], []),
    "a wider enum": ([field(Narrow)], [field(Wide)], []),
    "a wider union": ([field(int | None)], [field(int | str | None)], []),
    "an enum that becomes text": ([field(Narrow)], [field(str)], []),
    "a required field": ([OTHER], [OTHER, field(int)], ["$.value: it is new and required; give it a default"]),
    "a field that becomes required": (
        [field(int, 0)],
        [field(int)],
        ["$.value: it became required; give it a default"],
    ),
    "another type": ([field(str)], [field(int)], ["$.value: string became integer; write an upcaster"]),
    "a float that becomes an integer": ([field(float)], [field(int)], ["$.value: number became integer"]),
    "a narrower enum": ([field(Wide)], [field(Narrow)], ['$.value: the values "b" were removed; keep them']),
    "a text that becomes an enum": ([field(str)], [field(Literal["a", "b"])], ["$.value: any value became an enum"]),
    "a narrower union": ([field(int | str)], [field(int)], ["$.value: string became integer"]),
    "not nullable": ([field(int | None)], [field(int)], ["$.value: null became integer"]),
    "a nested type": ([field(list[Line])], [field(list[LineV2])], ["$.value[].sku: string became integer"]),
    "values of a mapping": ([field(dict[str, int])], [field(dict[str, str])], ["$.value[...]: integer became string"]),
    "a tuple of another length": ([field(tuple[int, int])], [field(tuple[int])], ["$.value: 2 items became 1"]),
    "an item of a tuple": ([field(tuple[int, int])], [field(tuple[int, str])], ["$.value[1]: integer became string"]),
    "a renamed field": (
        [("old", int, REQUIRED)],
        [field(int)],
        ["$.old: it was removed; the values", "$.value: it is new and required"],
    ),
}


@pytest.mark.parametrize("codec", [MsgspecCodec(), PydanticCodec()], ids=repr)
@pytest.mark.parametrize("case", CASES)
def test_the_changes_of_a_schema(codec: Any, case: str) -> None:
    old, new, expected = CASES[case]
    found = [f"{path}: {problem}" for path, problem, _ in changes(schema_of(codec, *old), schema_of(codec, *new))]
    assert len(found) == len(expected), found
    for text, beginning in zip(found, expected, strict=True):
        assert text.startswith(beginning)


def test_a_removed_field_is_no_break() -> None:
    (change,) = changes(schema_of(MsgspecCodec(), OTHER, field(int)), schema_of(MsgspecCodec(), OTHER))
    assert not change.is_breaking


@pytest.mark.parametrize("codec", [MsgspecCodec(), PydanticCodec()], ids=repr)
def test_a_format_and_a_constraint_are_part_of_the_type(codec: Any) -> None:
    def problems(old: Any, new: Any) -> list[str]:
        return [change.problem for change in changes(schema_of(codec, field(old)), schema_of(codec, field(new)))]

    # Pydantic's schema of a Decimal accepts every text.
    assert problems(str, Decimal) or isinstance(codec, PydanticCodec)
    assert not problems(Decimal, Decimal)
    constraint = msgspec.Meta if isinstance(codec, MsgspecCodec) else pydantic.Field
    small, large = Annotated[int, constraint(le=5)], Annotated[int, constraint(le=9)]
    assert problems(int, small) == problems(large, small) == ["maximum became stricter; write an upcaster"]
    assert not problems(small, large)
    assert not problems(small, int)


HINTS = st.recursive(
    st.sampled_from([int, str, float, bool, Narrow, Wide, Line, LineV2, type(None)]),
    lambda inner: st.one_of(
        inner.map(lambda hint: list[hint]),
        inner.map(lambda hint: dict[str, hint]),
        inner.map(lambda hint: hint | None if hint is not type(None) else hint),
    ),
    max_leaves=3,
)
VALUES: dict[Any, Any] = {int: 5, str: "x", float: 1.5, bool: True, Narrow: "a", Wide: "b", type(None): None}
VALUES |= {Line: {"sku": "a", "quantity": 1}, LineV2: {"sku": 1, "quantity": 1}}


def value_of(hint: Any) -> Any:
    if hint in VALUES:
        return VALUES[hint]
    origin, arguments = hint.__origin__ if hasattr(hint, "__origin__") else None, hint.__args__
    if origin is list:
        return [value_of(arguments[0])]
    if origin is dict:
        return {"k": value_of(arguments[1])}
    return value_of(arguments[0])


@given(HINTS, HINTS)
def test_a_payload_that_cannot_be_decoded_is_a_break(old: Any, new: Any) -> None:
    codec = MsgspecCodec()
    breaks = changes(schema_of(codec, field(old)), schema_of(codec, field(new)))
    bound = codec.bind(make_dataclass("Event", [("value", new)]))
    try:
        bound.decode_json({"value": value_of(old)})
    except ValueError:
        assert any(change.is_breaking for change in breaks)
