"""The errors of a registry that encodes or decodes. Their texts contain no values of payloads."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from pupsourcing_sa.errors import PayloadError
from pupsourcing_sa.registry.codecs import InvalidPayload

__all__ = ["cause_of", "not_registered", "not_registered_class", "payload_error"]


def not_registered(data: Any, registered: Container[type[Any]]) -> TypeError:
    """Return the error about an object that is no event."""
    if isinstance(data, type) and data in registered:
        name = data.__qualname__
        return TypeError(f"an event must be an object, not the class {name}; write {name}(…)")
    return not_registered_class(type(data), registered)


def not_registered_class(cls: type[Any], registered: Container[type[Any]]) -> TypeError:
    """Return the error about a class that is not registered."""
    base = next((base for base in getattr(cls, "__mro__", ()) if base in registered), None)
    if base is not None:
        return TypeError(
            f"{cls.__qualname__} is not registered, only its base class {base.__qualname__} is. The log would lose "
            f"the class; register {cls.__qualname__} under a name of its own"
        )
    return TypeError(f"{cls.__qualname__} is not registered; decorate it with @registry.register('name')")


def payload_error(event_type: str, version: int, error: Exception) -> PayloadError:
    """Return the error about a payload, from that of a codec, a class or an upcaster."""
    if isinstance(error, InvalidPayload):
        return PayloadError(event_type, version, error.path, error.problem)
    # The text of another error may quote a value. It may be one of the class, such as of __post_init__.
    return PayloadError(event_type, version, None, f"the class or its codec raised {type(error).__name__}")


def cause_of(error: Exception) -> BaseException | None:
    """Return the application's own exception. The exceptions of msgspec and Pydantic may quote values."""
    return error.__cause__ if isinstance(error, InvalidPayload) else error
