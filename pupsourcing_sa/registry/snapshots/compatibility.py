"""The comparison of two JSON Schemas of an event class: can the new class read payloads of the old one?

It compares the parts of JSON Schema that codecs produce: types, formats, constraints, enums, properties, items, unions
and references. Some schemas say too little: that of a ``Decimal`` in a Pydantic model accepts every text. Decoding
stored payloads is the stronger test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = ["Change", "changes"]

_Schema: TypeAlias = Mapping[str, Any]


_CONSTRAINTS: Final = (
    "pattern",
    "multipleOf",
    "minimum",
    "exclusiveMinimum",
    "minLength",
    "minItems",
    "maximum",
    "exclusiveMaximum",
    "maxLength",
    "maxItems",
)


class Change(NamedTuple):
    """A difference between two schemas.

    Attributes:
        path: path of the field, such as ``$.lines[].sku``.
        problem: the difference, with the remedy if it breaks.
        is_breaking: True if the new class may fail to read old payloads.
    """

    path: str
    problem: str
    is_breaking: bool


def changes(old: _Schema, new: _Schema) -> list[Change]:
    """Return the changes that break, or that drop data, in the order of the old schema.

    >>> old = {"type": "object", "properties": {"total": {"type": "integer"}}}
    >>> new = {"type": "object", "properties": {"total": {"type": "string"}}}
    >>> changes(old, new)[0].problem
    'integer became string; write an upcaster'
    """
    return list(_Comparison(old, new).compare(old, new, "$", frozenset()))


class _Comparison:
    def __init__(self, old: _Schema, new: _Schema) -> None:
        self._old = old.get("$defs", {})
        self._new = new.get("$defs", {})

    def compare(self, old: _Schema, new: _Schema, path: str, seen: frozenset[tuple[str, str]]) -> Iterator[Change]:
        pair = (str(old.get("$ref", "")), str(new.get("$ref", "")))
        if all(pair):
            if pair in seen:  # a class that contains itself
                return
            seen |= {pair}
        old, new = _resolved(old, self._old), _resolved(new, self._new)
        if "anyOf" in old or "oneOf" in old or "anyOf" in new or "oneOf" in new:
            yield from self._compare_unions(_options(old), _options(new), path, seen)
        elif "enum" in new or "const" in new:
            yield from _compare_enums(old, new, path)
        elif (problem := _type_problem(old, new)) is not None:
            yield Change(path, f"{problem}; write an upcaster", True)
        else:
            yield from self._compare_properties(old, new, path, seen)
            yield from self._compare_items(old, new, path, seen)

    def _compare_unions(
        self, old: list[_Schema], new: list[_Schema], path: str, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Change]:
        """Compare each option of the old union with the nearest option of the new one."""
        for option in old:
            results = [list(self.compare(option, other, path, seen)) for other in new]
            best = min(results, key=lambda result: sum(change.is_breaking for change in result), default=[])
            yield from best

    def _compare_properties(
        self, old: _Schema, new: _Schema, path: str, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Change]:
        mine, theirs = old.get("properties", {}), new.get("properties", {})
        values, others = old.get("additionalProperties"), new.get("additionalProperties")
        for name, schema in mine.items():
            if name in theirs:
                yield from self.compare(schema, theirs[name], f"{path}.{name}", seen)
            elif isinstance(others, Mapping):  # a class became a mapping
                yield from self.compare(schema, others, f"{path}.{name}", seen)
            elif others is False:
                yield Change(f"{path}.{name}", "it was removed, and the class refuses unknown keys", True)
            else:
                yield Change(f"{path}.{name}", "it was removed; the values in old events are ignored", False)
        for name in new.get("required", ()):
            if name not in old.get("required", ()):
                what = "became required" if name in mine else "is new and required"
                yield Change(f"{path}.{name}", f"it {what}; give it a default, or write an upcaster", True)
        if isinstance(values, Mapping) and isinstance(others, Mapping):
            yield from self.compare(values, others, f"{path}[...]", seen)

    def _compare_items(
        self, old: _Schema, new: _Schema, path: str, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Change]:
        mine, theirs = old.get("items"), new.get("items")
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            yield from self.compare(mine, theirs, f"{path}[]", seen)
        firsts, others = old.get("prefixItems", []), new.get("prefixItems", [])
        if len(firsts) != len(others):
            yield Change(path, f"{len(firsts)} items became {len(others)}; write an upcaster", True)
            return
        for number, (first, other) in enumerate(zip(firsts, others, strict=True)):
            yield from self.compare(first, other, f"{path}[{number}]", seen)


def _resolved(schema: _Schema, definitions: _Schema) -> _Schema:
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    return schema


def _options(schema: _Schema) -> list[_Schema]:
    return list(schema.get("anyOf") or schema.get("oneOf") or [schema])


def _compare_enums(old: _Schema, new: _Schema, path: str) -> Iterator[Change]:
    accepted = new.get("enum", [new.get("const")])
    if "enum" not in old and "const" not in old:
        yield Change(path, "any value became an enum; write an upcaster", True)
        return
    removed = [value for value in old.get("enum", [old.get("const")]) if value not in accepted]
    if removed:
        names = ", ".join(map(json.dumps, removed))
        yield Change(path, f"the values {names} were removed; keep them, or write an upcaster", True)


def _type_problem(old: _Schema, new: _Schema) -> str | None:
    mine, theirs = old.get("type"), new.get("type")
    if theirs is None or (mine, theirs) == ("integer", "number"):
        return None
    if mine is None and ("enum" in old or "const" in old):
        values = old.get("enum", [old.get("const")])
        is_text = all(isinstance(value, str) for value in values)
        return None if is_text == (theirs == "string") and "format" not in new else f"an enum became {_name(new)}"
    if mine != theirs or ("format" in new and old.get("format") != new["format"]):
        return f"{_name(old)} became {_name(new)}"
    return next((f"{name} became stricter" for name in _CONSTRAINTS if _is_stricter(name, old, new)), None)


def _is_stricter(name: str, old: _Schema, new: _Schema) -> bool:
    if name not in new or "prefixItems" in new:
        return False
    mine, theirs = old.get(name), new[name]
    if mine is None or name in ("pattern", "multipleOf"):
        return bool(mine != theirs)
    return bool(theirs < mine if "max" in name.lower() else theirs > mine)


def _name(schema: _Schema) -> str:
    return str(schema.get("format") or schema.get("type") or "any value")
