"""Example objects of event classes, for the golden payloads of a snapshot."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union
from uuid import UUID

__all__ = ["example_of"]

_VALUES: Final[Mapping[Any, Any]] = {
    str: "text",
    int: 1,
    float: 1.5,
    bool: True,
    bytes: b"bytes",
    Decimal: Decimal("1.50"),
    UUID: UUID(int=1),
    datetime: datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
    date: date(2026, 1, 2),
    time: time(3, 4, 5, tzinfo=UTC),
    timedelta: timedelta(days=1, seconds=1),
    NoneType: None,
    Any: "text",
    object: "text",
}


def example_of(hint: Any) -> Any:
    """Return an object of a class, or of the type of a field, with every optional field set.

    Raises:
        TypeError, ValueError: no example is known, or the class refuses it.
    """
    return _example(hint, ())


def _example(hint: Any, outer: tuple[Any, ...]) -> Any:
    """Return an example; ``outer`` are the classes around it, of which no other object is made."""
    if hint in _VALUES:
        return _VALUES[hint]
    if isinstance(hint, TypeVar):
        return _example(hint.__bound__ or str, outer)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _example(arguments[0], outer)
    if origin is Literal:
        return arguments[0]
    if origin in (Union, UnionType):
        options = [option for option in arguments if option is not NoneType and option not in outer]
        return _example(options[0], outer) if options else None
    if isinstance(origin, type) and not _fields(origin):
        return _container(origin, arguments, outer)
    cls = origin or hint
    if isinstance(cls, type) and issubclass(cls, Enum):
        return next(iter(cls))
    return _object(cls, outer)


def _container(cls: type[Any], arguments: tuple[Any, ...], outer: tuple[Any, ...]) -> Any:
    if issubclass(cls, Mapping):
        return {_example(arguments[0], outer): _example(arguments[1], outer)}
    if issubclass(cls, tuple) and arguments[-1] is not Ellipsis:
        return tuple(_example(argument, outer) for argument in arguments)
    # A list of the class itself is empty, or it would never end.
    values = () if arguments[0] in outer else (_example(arguments[0], outer),)
    make: Callable[[Any], Any] = list
    if issubclass(cls, (tuple, AbstractSet)):
        make = tuple if issubclass(cls, tuple) else frozenset if issubclass(cls, frozenset) else set
    return make(values)


def _object(cls: Any, outer: tuple[Any, ...]) -> Any:
    if cls in outer:
        raise TypeError(f"{cls.__qualname__} contains itself")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = _fields(cls)
    if not fields:
        raise TypeError(f"there is no example of {cls!r}")
    return cls(**{argument: _example(hints[name], (*outer, cls)) for argument, name in fields.items()})


def _fields(cls: Any) -> Mapping[str, str]:
    """Return the arguments of a class with the names of their fields."""
    if typing.is_typeddict(cls):
        return {name: name for name in cls.__annotations__}
    if hasattr(cls, "__pydantic_fields__"):
        return {field.alias or name: name for name, field in cls.__pydantic_fields__.items()}
    if hasattr(cls, "__struct_fields__"):
        return {name: name for name in cls.__struct_fields__}
    if hasattr(cls, "__attrs_attrs__"):
        return {field.alias: field.name for field in cls.__attrs_attrs__ if field.init}
    return {name: name for name, field in getattr(cls, "__dataclass_fields__", {}).items() if field.init}
