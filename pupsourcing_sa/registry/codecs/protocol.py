"""The protocol of payload codecs.

A codec turns objects of one class into bytes and back::

    PayloadCodec   chooses how to encode a class          one for a registry, or for one event class
        │ bind(cls), once for each class
        ▼
    BoundCodec     encodes and decodes objects of a class

A codec knows nothing of the store, and threads may share it. Encryption is not a task of codecs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["BoundCodec", "InvalidPayload", "PayloadCodec"]


class PayloadCodec(Protocol):
    """A way to encode classes. Pass your own to `EventRegistry`, or to `EventRegistry.register` for one class."""

    def bind(self, cls: Any, /) -> BoundCodec:
        """Prepare for a class. The registry calls this once for each class.

        Raises:
            TypeError: the codec does not support the class, or the type of one of its fields.
        """


class BoundCodec(Protocol):
    """The codec of one class. ``encode`` is never called with an instance of a subclass."""

    def encode(self, data: Any, /) -> bytes:
        """Encode an object. Equal objects must have equal bytes, in every process.

        Raises:
            ValueError: the object cannot be encoded.
        """

    def decode(self, payload: bytes, /) -> Any:
        """Decode a payload.

        Raises:
            ValueError: the payload does not match the class. Raise `InvalidPayload` to name the field.
        """

    def decode_json(self, value: Any, /) -> Any:
        """Build the object from decoded JSON, as an upcaster returns it.

        Raises:
            ValueError: as for `decode`.
        """

    def json_schema(self) -> Mapping[str, Any]:
        """Return the JSON Schema of the payload, or an empty mapping if there is none."""


class InvalidPayload(ValueError):
    """A payload does not match its class. The text must not contain values of the payload.

    Attributes:
        path: path of the field, such as ``$.lines[1].quantity``; ``None`` if it is not known.
        problem: the problem, such as ``"Expected `int`, got `str`"``.
    """

    def __init__(self, problem: str, path: str | None = None) -> None:
        self.path = path
        self.problem = problem
        super().__init__(problem if path is None else f"{problem} - at `{path}`")
