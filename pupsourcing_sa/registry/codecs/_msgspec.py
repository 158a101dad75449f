"""The codec for dataclasses, attrs classes, msgspec Structs and TypedDicts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pupsourcing_sa.errors import MissingExtraError
from pupsourcing_sa.registry.codecs.protocol import BoundCodec, InvalidPayload

__all__ = ["MsgspecCodec"]

#: msgspec ends its messages with the path of the field.
_PATH: Final = re.compile(r" - at `(?P<path>[^`]*)`$")
#: msgspec's descriptions of classes whose payloads are JSON objects.
_OBJECTS: Final = ("DataclassType", "StructType", "TypedDictType")
#: The beginnings of messages that quote names of the schema only. Other messages may quote a value of the payload.
_WITHOUT_VALUES: Final = (
    "Expected ",
    "Object missing required field ",
    "JSON is malformed",
    "Input data was truncated",
)


class MsgspecCodec:
    """A codec that encodes JSON with msgspec. It is the default.

    It supports dataclasses, attrs classes, ``msgspec.Struct`` and ``TypedDict``, with fields of the types that msgspec
    supports. Types are strict: a payload with ``"2"`` for an ``int`` is invalid. Unknown keys are ignored. Sets are
    sorted, so equal objects have equal bytes.

    Raises:
        MissingExtraError: msgspec is not installed.
    """

    def __init__(self) -> None:
        try:
            import msgspec
        except ModuleNotFoundError as error:
            raise MissingExtraError("msgspec", "events") from error
        self._msgspec = msgspec
        self._encode = msgspec.json.Encoder(order="deterministic").encode

    def bind(self, cls: Any, /) -> BoundCodec:
        """Prepare for a class.

        Raises:
            TypeError: msgspec does not support the class, or the type of one of its fields.
        """
        name, msgspec = getattr(cls, "__qualname__", repr(cls)), self._msgspec
        try:
            decode = msgspec.json.Decoder(cls).decode
            info = msgspec.inspect.type_info(cls)
            unsupported = next(_custom_types(info), None)
        except TypeError as error:
            hint = ""
            if "unions" in str(error):
                hint = ". Make the types of the union msgspec.Struct with a tag, or register the class with "
                hint += "codec=PydanticCodec()"
            raise TypeError(f"{name} cannot be encoded by msgspec: {error}{hint}") from error
        if type(info).__name__ not in _OBJECTS:
            raise TypeError(
                f"{name} is not a dataclass, an attrs class, a msgspec.Struct or a TypedDict; use one of these, or "
                "pass a codec that supports it to register()"
            )
        if getattr(info, "array_like", False):
            raise TypeError(
                f"{name} is array_like, so a new field in the middle would change the meaning of old events; remove "
                "the option"
            )
        if unsupported is not None:
            raise TypeError(
                f"{name} cannot be encoded by msgspec: it has a field of type {unsupported.__qualname__}, which "
                "msgspec does not know. Use a dataclass for it, or pass a codec that supports it to register()"
            )
        return _BoundMsgspec(msgspec, cls, self._encode, decode)

    def __repr__(self) -> str:
        return "MsgspecCodec()"


class _BoundMsgspec:
    def __init__(self, msgspec: Any, cls: Any, encode: Any, decode: Any) -> None:
        self._msgspec = msgspec
        self._cls = cls
        self._encode = encode
        #: Decodes as `decode` does, with the exceptions of msgspec. A call of Python takes as long as a small payload.
        self.decode_unexplained = self._decode = decode

    def encode(self, data: Any, /) -> bytes:
        try:
            payload: bytes = self._encode(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidPayload(f"it cannot be encoded: {_without_values(error)}") from None
        return payload

    def decode(self, payload: bytes, /) -> Any:
        try:
            return self._decode(payload)
        except (ValueError, RecursionError) as error:
            raise _invalid(error) from None

    def decode_json(self, value: Any, /) -> Any:
        try:
            return self._msgspec.convert(value, self._cls)
        except (ValueError, RecursionError) as error:
            raise _invalid(error) from None

    def json_schema(self) -> Mapping[str, Any]:
        schema: dict[str, Any] = self._msgspec.json.schema(self._cls)
        return schema


def _invalid(error: Exception) -> InvalidPayload:
    found = _PATH.search(str(error))
    return InvalidPayload(_without_values(error), found["path"] if found else None)


def _without_values(error: Exception) -> str:
    """Return the message without its path; a general one instead of a message that may quote a value."""
    text = _PATH.sub("", str(error))
    if text.startswith(_WITHOUT_VALUES):
        return text
    return "the value is invalid" if isinstance(error, ValueError) else "a value has an unsupported type"


def _custom_types(info: Any, seen: frozenset[Any] = frozenset()) -> Iterator[Any]:
    """Find the types that msgspec does not know, at any depth."""
    if type(info).__name__ == "CustomType":
        yield info.cls
    cls = getattr(info, "cls", None)
    if cls is not None:
        if cls in seen:
            return
        seen |= {cls}
    for name in ("type", "item_type", "key_type", "value_type"):
        if (inner := getattr(info, name, None)) is not None:
            yield from _custom_types(inner, seen)
    for name in ("fields", "types", "item_types"):
        for inner in getattr(info, name, ()):
            yield from _custom_types(inner, seen)
