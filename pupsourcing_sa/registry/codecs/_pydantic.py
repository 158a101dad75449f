"""The codec for Pydantic models, and for other types that Pydantic supports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pupsourcing_sa.errors import MissingExtraError
from pupsourcing_sa.registry.codecs.protocol import BoundCodec, InvalidPayload

__all__ = ["PydanticCodec"]


class PydanticCodec:
    """A codec that encodes JSON with Pydantic. It is the default for subclasses of ``pydantic.BaseModel``.

    Validation is strict, and fields are encoded under their aliases. Sets are sorted, so equal
    objects have equal bytes.

    Raises:
        MissingExtraError: Pydantic 2 is not installed.
    """

    def __init__(self) -> None:
        try:
            import pydantic
        except ModuleNotFoundError as error:
            raise MissingExtraError("pydantic", "events") from error
        self._pydantic = pydantic

    def bind(self, cls: Any, /) -> BoundCodec:
        """Prepare for a class.

        Raises:
            TypeError: Pydantic does not support the class, or the type of one of its fields.
        """
        try:
            adapter = self._pydantic.TypeAdapter(cls)
            adapter.rebuild()
        except self._pydantic.PydanticUserError as error:
            name = getattr(cls, "__qualname__", repr(cls))
            raise TypeError(f"{name} cannot be encoded by Pydantic: {error}") from error
        return _BoundPydantic(self._pydantic, adapter)

    def __repr__(self) -> str:
        return "PydanticCodec()"


class _BoundPydantic:
    def __init__(self, pydantic: Any, adapter: Any) -> None:
        self._pydantic = pydantic
        self._adapter = adapter
        try:
            written = adapter.json_schema(mode="serialization")
        except pydantic.PydanticInvalidForJsonSchema:
            written = {}
        self._sets = written if '"uniqueItems"' in json.dumps(written) else None

    def encode(self, data: Any, /) -> bytes:
        try:
            payload: bytes = self._adapter.dump_json(data, by_alias=True, warnings="error")
        except (ValueError, TypeError, RecursionError):
            raise InvalidPayload("it cannot be encoded: a value does not have the type of its field") from None
        if self._sets is None:
            return payload
        value = _sorted_sets(json.loads(payload), self._sets, self._sets.get("$defs", {}))
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, payload: bytes, /) -> Any:
        try:
            return self._adapter.validate_json(payload, strict=True)
        except self._pydantic.ValidationError as error:
            raise _invalid(error) from None

    def decode_json(self, value: Any, /) -> Any:
        # Strict validation of Python values would refuse the text of a UUID or a date.
        return self.decode(json.dumps(value, ensure_ascii=False).encode())

    def json_schema(self) -> Mapping[str, Any]:
        schema: dict[str, Any] = self._adapter.json_schema()
        return schema


def _invalid(error: Any) -> InvalidPayload:
    """Translate the first error. Messages of the application's own validators may quote a value."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    is_own = first["type"] in ("value_error", "assertion_error")
    return InvalidPayload("a validator refused the value" if is_own else first["msg"], path)


def _sorted_sets(value: Any, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """Sort the arrays of a JSON value that are sets according to its schema."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        value = _sorted_sets(value, option, definitions)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        rest = others if isinstance(others, dict) else {}
        return {key: _sorted_sets(inner, known.get(key, rest), definitions) for key, inner in value.items()}
    if isinstance(value, list):
        items, first = schema.get("items"), schema.get("prefixItems", ())
        rest = items if isinstance(items, dict) else {}
        value = [
            _sorted_sets(inner, first[number] if number < len(first) else rest, definitions)
            for number, inner in enumerate(value)
        ]
        return sorted(value, key=json.dumps) if schema.get("uniqueItems") else value
    return value
