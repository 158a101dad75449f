"""Checks of the classes and codecs that an application registers."""

from __future__ import annotations

from typing import Any

from pupsourcing_sa.registry.codecs import MsgspecCodec, PayloadCodec, PydanticCodec

__all__ = ["check_class", "check_codec", "default_codec"]


def default_codec(cls: type[Any]) -> PayloadCodec:
    """Return the codec of a class that is registered without one, in a registry without one."""
    # Only classes that import Pydantic can be models.
    is_model = any(base.__module__.partition(".")[0] == "pydantic" for base in getattr(cls, "__mro__", ()))
    return PydanticCodec() if is_model else MsgspecCodec()


def check_codec(codec: PayloadCodec) -> PayloadCodec:
    """Refuse an object that is no codec."""
    if isinstance(codec, type) or not callable(getattr(codec, "bind", None)):
        raise TypeError(f"codec must be an object with a method bind(cls), not {codec!r}")
    return codec


def check_class(name: str, cls: Any, *, has_codec: bool) -> None:
    """Refuse an object that is no class, and a NamedTuple."""
    if not isinstance(cls, type):
        raise TypeError(f"register({name!r}) decorates a class, not {cls!r}")
    if issubclass(cls, tuple) and hasattr(cls, "_fields") and not has_codec:
        raise TypeError(
            f"{cls.__qualname__} is a NamedTuple, which is stored as an array: a new field in the middle would change "
            "the meaning of old events. Use a dataclass"
        )
