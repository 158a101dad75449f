"""Consumers that installed distributions offer.

A distribution offers them by an entry point of the group ``pupsourcing_sa.consumers``, which names a consumer or an
iterable of consumers::

    [project.entry-points."pupsourcing_sa.consumers"]
    billing = "billing.consumers:all_consumers"
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, NamedTuple

from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._target import application_code
from pupsourcing_sa.consumer import Subscription

__all__ = ["GROUP", "DiscoveredConsumer", "discover_consumers", "distinct_consumers"]

GROUP: Final = "pupsourcing_sa.consumers"


class DiscoveredConsumer(NamedTuple):
    """A consumer, and its source for messages."""

    consumer: Any
    source: str


def discover_consumers() -> list[DiscoveredConsumer]:
    """Return the consumers that installed distributions offer, sorted by the names of their entry points.

    Raises:
        UsageError: an entry point cannot be loaded, or is neither a consumer nor an iterable of consumers.
    """
    points = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return [discovered for point in points for discovered in _load(point)]


def distinct_consumers(discovered: Iterable[DiscoveredConsumer]) -> list[Any]:
    """Return the consumers without repetitions of the same object.

    Raises:
        UsageError: two different consumers have the same name, and so the same checkpoint.
    """
    by_name: dict[str, DiscoveredConsumer] = {}
    for candidate in discovered:
        name = Subscription.of(candidate.consumer).name
        first = by_name.setdefault(name, candidate)
        if first.consumer is not candidate.consumer:
            raise UsageError(
                f"two consumers have the name {name!r}, and so the same checkpoint: one of {first.source} and one of "
                f"{candidate.source}. Rename one of them, or ignore entry points with --no-discover"
            )
    return [candidate.consumer for candidate in by_name.values()]


def _load(point: EntryPoint) -> Iterator[DiscoveredConsumer]:
    source = _describe(point)
    with application_code(f"loading {source}"):
        loaded = point.load()
        is_one = hasattr(loaded, "name") or not isinstance(loaded, Iterable)
        consumers = [loaded] if is_one else list(loaded)
    for consumer in consumers:
        try:
            Subscription.of(consumer)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{source} must be a consumer or an iterable of consumers: {error}") from error
        yield DiscoveredConsumer(consumer, source)


def _describe(point: EntryPoint) -> str:
    distribution = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"entry point {point.name} = {point.value}{distribution}"
