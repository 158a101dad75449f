"""The scope of a consumer or a read: the events that it selects from the log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pupsourcing_sa._checks import check_names, check_text

__all__ = ["Scope"]


@dataclass(frozen=True, slots=True)
class Scope:
    """Conditions that an event must meet. An attribute that is ``None`` is not a condition.

    Attributes:
        aggregate_types: aggregate types, sorted.
        event_types: event types, sorted.
        correlation_id: the correlation id.
        partitions: number of partitions; an aggregate's partition is a hash of its id.
        partition: number of the partition, from 0.
        aggregate: type and id of one aggregate.
        since: ``created_at`` of the event, or earlier.
        until: a moment after ``created_at``.
    """

    aggregate_types: tuple[str, ...] | None = None
    event_types: tuple[str, ...] | None = None
    correlation_id: str | None = None
    partitions: int = 1
    partition: int = 0
    aggregate: tuple[str, str] | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def conditions(self) -> frozenset[str]:
        """The names of the attributes that are conditions."""
        names = ("aggregate_types", "event_types", "correlation_id", "aggregate", "since", "until")
        given = {name for name in names if getattr(self, name) is not None}
        return frozenset(given | {"partitions"} if self.partitions > 1 else given)

    @classmethod
    def of(
        cls,
        *,
        aggregate_types: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        correlation_id: str | None = None,
    ) -> Scope:
        """Return a scope from the arguments of a public function; an empty iterable of names means all.

        Raises:
            TypeError, ValueError: an argument is invalid; the message names it.
        """
        return cls(
            check_names("aggregate_types", aggregate_types),
            check_names("event_types", event_types),
            check_text("correlation_id", correlation_id, is_optional=True),
        )
