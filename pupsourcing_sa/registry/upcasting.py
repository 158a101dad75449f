"""Upcasters: functions that turn the JSON of an older event version into a newer one.

Each step begins at one version of a name. It returns the JSON of the next version, or other events, or none::

    OrderCreated 1 ─┐ alias
    OrderPlaced 1 ──┴▶ OrderPlaced 2 ──▶ OrderPlaced 3, the current class
    OrderChanged 1 ──▶ [AddressChanged 1, NoteAdded 1]
    OrderViewed 1  ──▶ []

The row in the log never changes. Steps work on decoded JSON and have no access to the database. A step owns its input,
so it may change it.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pupsourcing_sa.registry.codecs import InvalidPayload

__all__ = ["Step", "Upcasted", "Upcaster", "upcast"]

#: More steps than this for one event mean that steps of several names form a cycle.
_MAX_STEPS: Final = 1000


@dataclass(frozen=True, slots=True)
class Upcasted:
    """An event that an upcaster made of another one.

    Attributes:
        event_type: name of the event type.
        event_version: version of ``data``; upcasters of that version run afterwards.
        data: the payload, as decoded JSON.
    """

    event_type: str
    event_version: int
    data: dict[str, Any]


Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any] | Sequence[Upcasted]]


@dataclass(frozen=True, slots=True)
class Step:
    """An upcaster of one version.

    Attributes:
        function: the upcaster.
        into: names of the events that it may return; ``None`` if they are not declared.
    """

    function: Upcaster
    into: frozenset[str] | None

    @property
    def is_split(self) -> bool:
        """True if the function is declared to return other events, by ``into`` or by its annotation."""
        return self.into is not None or self._returned() in (list, tuple, Sequence, Iterable, Iterator)

    @property
    def may_split(self) -> bool:
        """False if the function is declared to return only the next version."""
        return self.is_split or self._returned() not in (dict, Mapping)

    def may_become(self, names: Collection[str]) -> bool:
        """Return True if the function may return an event of these names instead of the next version."""
        return self.may_split and (self.into is None or not self.into.isdisjoint(names))

    def _returned(self) -> Any:
        """Return the annotated result without its parameters; ``None`` if it is not known."""
        try:
            hint = typing.get_type_hints(self.function).get("return")
        except Exception:  # noqa: BLE001 - an annotation may be any expression
            return None
        origin = typing.get_origin(hint) or hint
        return {"Sequence": Sequence, "Iterable": Iterable, "Iterator": Iterator, "Mapping": Mapping}.get(
            getattr(origin, "__name__", ""), origin
        )


def upcast(
    name: str, version: int, data: Any, step_of: Callable[[str, int], Step | None]
) -> Iterator[tuple[str, int, Any]]:
    """Apply the steps to an event. Yield each resulting event, as name, version and decoded JSON.

    Args:
        name: name of the event type, without aliases.
        version: stored version.
        data: decoded JSON, which the first step may change.
        step_of: returns the step of a name and version; ``None`` at the current version.

    Raises:
        InvalidPayload: a step raised an exception or returned something else, or the steps form a cycle.
    """
    waiting = [(name, version, data)]
    for _ in range(_MAX_STEPS):
        if not waiting:
            return
        name, version, data = waiting.pop()
        step = step_of(name, version)
        if step is None:
            yield name, version, data
            continue
        result = _call(step, name, version, data)
        if isinstance(result, dict):
            waiting.append((name, version + 1, result))
        else:
            # Parts may share objects, and each may be changed by other steps.
            parts = [(part.event_type, part.event_version, copy.deepcopy(part.data)) for part in result]
            waiting.extend(reversed(parts))
    raise InvalidPayload(f"the upcasters from {name} version {version} form a cycle")


def _call(step: Step, name: str, version: int, data: Any) -> dict[str, Any] | Sequence[Upcasted]:
    title = f"the upcaster of {name} from version {version}"
    if not isinstance(data, dict):
        raise InvalidPayload(f"{title} needs a JSON object, not {type(data).__name__}")
    try:
        result = step.function(data)
        if isinstance(result, Iterable) and not isinstance(result, dict):
            result = tuple(result)
    except Exception as error:
        # The text of the exception may quote the payload.
        raise InvalidPayload(f"{title} raised {type(error).__name__}") from error
    if not isinstance(result, (dict, tuple)):
        raise InvalidPayload(f"{title} must return a dict or a sequence of Upcasted, not {type(result).__name__}")
    for part in () if isinstance(result, dict) else result:
        if not isinstance(part, Upcasted) or not isinstance(part.data, dict):
            raise InvalidPayload(f"{title} must return a dict or a sequence of Upcasted with dicts as data")
        if step.into is not None and part.event_type not in step.into:
            raise InvalidPayload(f"{title} returned {part.event_type!r}, which is missing in its into=")
    return result
