"""The immutable base class of `Event` and `PersistedEvent`. It keeps values encoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

__all__ = ["EncodedEvent", "set_slot"]

#: Sets an attribute of an immutable object.
set_slot = object.__setattr__


class EncodedEvent:
    """An immutable event whose metadata is kept as JSON and decoded on first use."""

    __slots__ = ("_metadata",)

    #: Attributes that make up the value. Pickling and copying transfer these.
    _state: ClassVar[tuple[str, ...]]
    _metadata: Mapping[str, Any]

    def _decoded_metadata(self, text: str | None) -> Mapping[str, Any]:
        try:
            return self._metadata
        except AttributeError:  # first use
            value = None if text is None else json.loads(text)
            # Other programs may write to the log. JSON that is not an object is returned unchanged.
            metadata = MappingProxyType(value or {}) if isinstance(value, dict | None) else value
            set_slot(self, "_metadata", metadata)
            return metadata

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable; create another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable; create another one")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            set_slot(self, name, value)
