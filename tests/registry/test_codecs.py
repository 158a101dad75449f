"""Codecs: every kind of class, strict types, equal bytes in every process, and errors without values."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest

from pupsourcing_sa.errors import MissingExtraError, PayloadError
from pupsourcing_sa.registry import EventRegistry, MsgspecCodec, PydanticCodec
from tests.registry.classes import (
    AsAttrs,
    AsDataclass,
    AsModel,
    AsNamedTuple,
    AsStruct,
    AsTypedDict,
    Card,
    Cash,
    Change,
    Color,
    Everything,
    Later,
    Line,
)

KINDS = [AsDataclass, AsAttrs, AsStruct, AsModel]
SECRET = "ann@example.org"


def registry_of(cls: type[Any], **options: Any) -> EventRegistry:
    registry = EventRegistry(**options)
    registry.register("Stocked")(cls)
    return registry


@pytest.mark.parametrize("cls", KINDS)
def test_an_object_comes_back_equal(cls: type[Any]) -> None:
    registry = registry_of(cls)
    data = cls(sku="a", quantity=2, at=datetime(2026, 1, 2, 3, 4, 5, 6, UTC), lines=[Line("b", 1)])
    encoded = registry.encode(data)
    assert encoded[:2] == ("Stocked", 1)
    assert json.loads(encoded.payload)["lines"] == [{"sku": "b", "quantity": 1}]
    (decoded,) = registry.decode(*encoded)
    assert decoded == data
    assert type(decoded) is cls


def test_every_type_of_field_comes_back_equal() -> None:
    registry = registry_of(Everything)
    for paid in (Card("4"), Cash(Decimal("0.10"))):
        data = Everything(
            UUID(int=5),
            Decimal("1.50"),
            datetime(2026, 1, 2, tzinfo=UTC),
            date(2026, 1, 2),
            timedelta(days=1, microseconds=5),
            Color.BLUE,
            [Line("a", 1)],
            Change("x", "y"),
            paid,
            frozenset("abc"),
            {"a": 1},
        )
        assert registry.decode(*registry.encode(data)) == (data,)


def test_a_typed_dict_is_named_by_the_caller() -> None:
    registry = registry_of(AsTypedDict)
    encoded = registry.encode(registry.event("Stocked", {"sku": "a", "quantity": 1}))
    assert registry.decode(*encoded) == ({"sku": "a", "quantity": 1},)
    with pytest.raises(PayloadError, match=r"at \$.quantity"):
        registry.encode(registry.event("Stocked", {"sku": "a", "quantity": "1"}))
    with pytest.raises(ValueError, match="'Other' is not registered"):
        registry.event("Other", {})
    with pytest.raises(TypeError, match="dict is not registered"):
        registry.encode({"sku": "a", "quantity": 1})


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"sku": "a", "quantity": "2"}, "$.quantity"),
        ({"sku": "a", "quantity": 1.5}, "$.quantity"),
        ({"sku": "a", "quantity": True}, "$.quantity"),
        ({"sku": 5, "quantity": 1}, "$.sku"),
        ({"sku": "a", "quantity": 1, "lines": [{"sku": "b", "quantity": SECRET}]}, "$.lines[0].quantity"),
        ({"sku": "a", "quantity": 1, "at": SECRET}, "$.at"),
    ],
)
def test_types_are_strict_and_errors_name_the_path_and_no_value(
    cls: type[Any], payload: dict[str, Any], path: str
) -> None:
    registry = registry_of(cls)
    with pytest.raises(PayloadError) as caught:
        registry.decode("Stocked", 1, json.dumps(payload).encode())
    error = caught.value
    assert (error.event_type, error.event_version, error.path) == ("Stocked", 1, path)
    assert SECRET not in str(error)
    assert error.__cause__ is None, "the exception of the codec may quote the value"
    assert error.__suppress_context__


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("payload", [b"", b"[", b"\xff", b"[1]", b"null", b"{}", b"[" * 100_000])
def test_other_payloads_are_invalid(cls: type[Any], payload: bytes) -> None:
    with pytest.raises(PayloadError, match="payload of 'Stocked' version 1"):
        registry_of(cls).decode("Stocked", 1, payload)


@pytest.mark.parametrize("cls", KINDS)
def test_keys_that_a_class_no_longer_has_are_ignored(cls: type[Any]) -> None:
    (decoded,) = registry_of(cls).decode("Stocked", 1, b'{"sku":"a","quantity":1,"dropped":5}')
    assert decoded.sku == "a"


@pytest.mark.parametrize("cls", KINDS)
def test_a_datetime_without_a_time_zone_is_refused(cls: type[Any]) -> None:
    naive = datetime(2026, 1, 2)  # noqa: DTZ001
    with pytest.raises(PayloadError, match=r"at \$\.at: the datetime has no time zone"):
        registry_of(cls).encode(cls(sku="a", quantity=1, at=naive))


@dataclass
class Nested:
    data: dict[str, list[AsDataclass]]
    other: Any = None


def test_nested_datetimes_without_a_time_zone_are_found() -> None:
    naive = datetime(2026, 1, 2)  # noqa: DTZ001
    registry = registry_of(Nested)
    with pytest.raises(PayloadError) as caught:
        registry.encode(Nested({SECRET: [AsDataclass("a", 1), AsDataclass("a", 1, naive)]}))
    assert caught.value.path == "$.data[...][1].at"
    with pytest.raises(PayloadError, match=r"at \$\.other\[0\]"):
        registry.encode(Nested({}, [naive]))


@pytest.mark.parametrize("cls", KINDS)
def test_an_object_with_a_value_of_a_wrong_type_is_refused(cls: type[Any]) -> None:
    wrong = cls.model_construct(sku="a", quantity=SECRET) if cls is AsModel else cls(sku="a", quantity=SECRET)
    with pytest.raises(PayloadError) as caught:
        registry_of(cls).encode(wrong)
    assert SECRET not in str(caught.value)


@dataclass
class Measured:
    value: float


def test_verification_finds_what_cannot_be_read_again() -> None:
    """JSON has no NaN: it is written as null."""
    with pytest.raises(PayloadError, match=r"at \$\.value"):
        registry_of(Measured).encode(Measured(float("nan")))
    assert registry_of(Measured, verify=False).encode(Measured(float("nan"))).payload == b'{"value":null}'


SETS = """
from decimal import Decimal
from pupsourcing_sa.registry import EventRegistry
from tests.registry.classes import *
registry = EventRegistry()
registry.register("Everything")(Everything)
registry.register("AsModel")(AsModel)
names = ["ann", "bob", "eve", "dan", "kim"]
day = date(2026, 1, 2)
everything = Everything(
    UUID(int=1), Decimal(1), datetime(2026, 1, 2).astimezone(), day, timedelta(1), Color.RED, [], Change("a", "b"),
    Card("4"), frozenset(names)
)
print(registry.encode(everything).payload)
print(registry.encode(AsModel(sku="a", quantity=1, tags=set(names), names=[set(names)], Kind="b")).payload)
"""


def test_equal_objects_have_equal_bytes_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SETS],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ".", "TZ": "UTC"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    (output,) = outputs
    assert '["ann","bob","dan","eve","kim"]' in output


class Plain:
    pass


@dataclass
class HasPlain:
    items: list[dict[str, Plain | None]]


@dataclass
class HasUnion:
    item: Line | Later


def test_unsupported_types_are_refused_at_registration_with_a_remedy() -> None:
    with pytest.raises(TypeError, match=r"HasPlain cannot be encoded by msgspec: .*Plain"):
        registry_of(HasPlain)
    with pytest.raises(TypeError, match="PydanticCodec"):
        registry_of(HasUnion)
    with pytest.raises(TypeError, match="HasPlain cannot be encoded by Pydantic"):
        registry_of(HasPlain, codec=PydanticCodec())
    with pytest.raises(TypeError, match="AsNamedTuple is a NamedTuple"):
        registry_of(AsNamedTuple)


def test_pydantic_encodes_other_classes_if_it_is_chosen() -> None:
    registry = EventRegistry()
    registry.register("Stocked", codec=PydanticCodec())(HasUnion)
    assert registry.decode(*registry.encode(HasUnion(Later(1)))) == (HasUnion(Later(1)),)


@pytest.mark.parametrize(("codec", "package"), [(MsgspecCodec, "msgspec"), (PydanticCodec, "pydantic")])
def test_a_missing_package_is_named_with_the_extra(
    codec: type[Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed: pip install 'pupsourcing-sa\[events\]'"):
        codec()


class AsArray(msgspec.Struct, array_like=True):
    sku: str


@pytest.mark.parametrize(
    ("cls", "problem"), [(int, "int is not a dataclass"), (Color, "Color is not a"), (AsArray, "AsArray is array_like")]
)
def test_payloads_must_be_json_objects(cls: type[Any], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        registry_of(cls)
