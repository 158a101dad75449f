"""Event classes of every supported kind. Their annotations are strings, as in most applications."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic

T = TypeVar("T")


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Card(msgspec.Struct, tag="card", frozen=True):
    number: str


class Cash(msgspec.Struct, tag="cash", frozen=True):
    amount: Decimal


@dataclass(frozen=True)
class Line:
    sku: str
    quantity: int


@dataclass(frozen=True)
class Change(Generic[T]):
    old: T
    new: T


@dataclass(frozen=True)
class Everything:
    """Fields of all types that event classes need."""

    id: UUID
    price: Decimal
    at: datetime
    day: date
    length: timedelta
    color: Color
    lines: list[Line]
    change: Change[str]
    paid: Card | Cash
    tags: frozenset[str] = frozenset()
    counts: dict[str, int] = field(default_factory=dict)
    comment: str | None = None


@dataclass(frozen=True)
class AsDataclass:
    sku: str
    quantity: int
    at: datetime | None = None
    lines: list[Line] = field(default_factory=list)


@attrs.frozen
class AsAttrs:
    sku: str
    quantity: int
    at: datetime | None = None
    lines: list[Line] = attrs.field(factory=list)


class AsStruct(msgspec.Struct, frozen=True):
    sku: str
    quantity: int
    at: datetime | None = None
    lines: list[Line] = []


class AsModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)

    sku: str
    quantity: int
    at: datetime | None = None
    lines: list[Line] = []
    tags: set[str] = set()
    names: list[set[str]] | None = None
    kind: str = pydantic.Field(default="", alias="Kind")


class AsTypedDict(TypedDict):
    sku: str
    quantity: int


class AsNamedTuple(NamedTuple):
    sku: str
    quantity: int


@dataclass(frozen=True)
class RefersToALaterClass:
    later: Later | None = None


@dataclass(frozen=True)
class Later:
    number: int
