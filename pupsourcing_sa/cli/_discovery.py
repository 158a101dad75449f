"""Finds the consumers that installed distributions offer, and adds them to a worker's own.

A distribution offers them by an entry point of the group ``pupsourcing_sa.consumers``, which names a consumer or an
iterable of consumers::

    [project.entry-points."pupsourcing_sa.consumers"]
    billing = "billing.consumers:all_consumers"
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, NamedTuple

from pupsourcing_sa.cli._target import application_code
from pupsourcing_sa.cli._usage import UsageError
from pupsourcing_sa.consumer import Subscription

__all__ = ["GROUP", "Found", "discovered", "distinct"]

GROUP: Final = "pupsourcing_sa.consumers"


class Found(NamedTuple):
    """A consumer, and where it comes from, for a message."""

    consumer: Any
    origin: str


def discovered() -> list[Found]:
    """What the installed distributions offer, in the order of their entry points' names.

    Raises:
        UsageError: an entry point cannot be loaded, or gives something that is no consumer.
    """
    points = entry_points(group=GROUP)
    return [found for point in sorted(points, key=lambda each: (each.name, each.value)) for found in _offered(point)]


def distinct(found: Iterable[Found]) -> list[Any]:
    """The consumers, each once.

    Raises:
        UsageError: two of them have one name, and with it one checkpoint; both origins are named.
    """
    first: dict[str, Found] = {}
    for each in found:
        name = Subscription.of(each.consumer).name
        known = first.setdefault(name, each)
        if known.consumer is not each.consumer:
            raise UsageError(
                f"two consumers are called {name!r}, one of {known.origin} and one of {each.origin}; "
                "a name is that of a checkpoint: rename one of them, or leave out the entry points with --no-discover"
            )
    return [each.consumer for each in first.values()]


def _offered(point: EntryPoint) -> Iterator[Found]:
    origin = _origin(point)
    with application_code(f"loading {origin}"):
        loaded = point.load()
        is_one = hasattr(loaded, "name") or not isinstance(loaded, Iterable)
        consumers = [loaded] if is_one else list(loaded)
    for consumer in consumers:
        try:
            Subscription.of(consumer)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{origin} must give a consumer or an iterable of them: {error}") from error
        yield Found(consumer, origin)


def _origin(point: EntryPoint) -> str:
    of = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"entry point {point.name} = {point.value}{of}"
