"""The checked form of a consumer, which the worker uses."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

from pupsourcing_sa._checks import MAX_INTEGER, check_int, check_type
from pupsourcing_sa.consumer.handlers import check_parameters
from pupsourcing_sa.consumer.scope import Scope
from pupsourcing_sa.event import PersistedEvent

__all__ = ["ISOLATION_LEVELS", "IsolationLevel", "Subscription"]

#: Isolation levels of a batch, from the lowest to the highest.
IsolationLevel: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
ISOLATION_LEVELS: Final[tuple[str, ...]] = get_args(IsolationLevel)

_MAX_NAME_LENGTH: Final = 255
_MAX_PARTITIONS: Final = 2**15

_OPTIONS: Final = (
    "aggregate_types",
    "event_types",
    "partitions",
    "handle_batch",
    "batch_size",
    "batch_bytes",
    "max_attempts",
    "isolation",
    "reacts",
)
#: difflib's similarity of a near miss. ``n_partitions`` is a near miss; ``aggregate_ids`` and ``attempts`` are not.
_NEAR_MISS: Final = 0.85
#: A method of `TypedConsumer`, whose name is similar to ``handle_batch``.
_METHOD_OF_TYPED: Final = "handles_batch"


@dataclass(frozen=True, slots=True)
class Subscription:
    """A consumer's checked attributes, with defaults for missing ones.

    Attributes:
        name: name of the checkpoint.
        scope: the events that it wants, and the number of its partitions.
        handle: handler of one event, or ``None``.
        handle_batch: handler of a list of events, or ``None``; it takes precedence.
        batch_size: maximum number of events per transaction; ``None`` for the worker's setting.
        batch_bytes: maximum number of bytes per transaction; ``None`` for the worker's setting.
        max_attempts: number of failed attempts after which a partition is parked; ``None`` for no limit.
        isolation: isolation level of a batch, one of `ISOLATION_LEVELS`.
        reacts: True for a reaction, which begins at the stable position of its first declaration.
    """

    name: str
    scope: Scope
    handle: Callable[[Any, PersistedEvent], Any] | None
    handle_batch: Callable[[Any, Sequence[PersistedEvent]], Any] | None
    batch_size: int | None = None
    batch_bytes: int | None = None
    max_attempts: int | None = None
    isolation: str = "REPEATABLE READ"
    reacts: bool = False

    @classmethod
    def of(cls, consumer: object) -> Subscription:
        """Check a consumer and return its subscription.

        Raises:
            TypeError: it has no name or no handler, an attribute has the wrong type, or the name of an option is
                misspelt.
            ValueError: an attribute has an invalid value.
        """
        name = _name_of(consumer)
        _refuse_near_misses(consumer, name)
        handle, handle_batch = _handlers_of(consumer, name)
        _refuse_iterators(consumer, name)
        scope = Scope.of(
            aggregate_types=getattr(consumer, "aggregate_types", None),
            event_types=getattr(consumer, "event_types", None),
        )
        partitions = _integer(consumer, name, "partitions", 1, maximum=_MAX_PARTITIONS)
        return cls(
            name,
            replace(scope, partitions=partitions),
            handle,
            handle_batch,
            batch_size=_integer(consumer, name, "batch_size", None),
            batch_bytes=_integer(consumer, name, "batch_bytes", None),
            max_attempts=_integer(consumer, name, "max_attempts", None),
            isolation=_isolation(consumer, name),
            reacts=_boolean(consumer, name, "reacts"),
        )


def _name_of(consumer: object) -> str:
    if isinstance(consumer, type):
        raise TypeError(f"a consumer must be an object, not the class {consumer.__name__}; write {consumer.__name__}()")
    name = getattr(consumer, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"{consumer!r} is not a consumer: it needs a name; decorate a function with @consumer('name')")
    name = str.__str__(name)
    if not name.strip() or not name.isprintable() or len(name) > _MAX_NAME_LENGTH:
        raise ValueError(
            f"the name of a consumer must have 1 to {_MAX_NAME_LENGTH} printable characters, not {name!r:.80}"
        )
    return name


def _refuse_near_misses(consumer: object, name: str) -> None:
    """Refuse a misspelt option. Without its option, a consumer could get the whole log.

    Names with a leading underscore are private to the application.
    """
    options = {_letters(option): option for option in _OPTIONS} | {"isolationlevel": "isolation"}  # SQLAlchemy's name
    for attribute in dir(consumer):
        if attribute.startswith("_") or attribute in (*_OPTIONS, _METHOD_OF_TYPED):
            continue
        similar = difflib.get_close_matches(_letters(attribute), options, n=1, cutoff=_NEAR_MISS)
        if similar:
            option = options[similar[0]]
            raise TypeError(
                f"consumer {name!r} has an attribute {attribute!r}, which is not an option; rename it to {option!r}, "
                f"or to '_{attribute}' if it is your own"
            )


def _refuse_iterators(consumer: object, name: str) -> None:
    """Refuse a generator of types. It is empty when it is read again, and the scope would be the whole log."""
    for option in ("aggregate_types", "event_types"):
        if isinstance(value := getattr(consumer, option, None), Iterator):
            raise TypeError(f"{option} of consumer {name!r} must be a set or a list of str, not {type(value).__name__}")


def _letters(attribute: str) -> str:
    return attribute.replace("_", "").lower()


def _handlers_of(consumer: object, name: str) -> tuple[Any, Any]:
    handle, handle_batch = getattr(consumer, "handle", None), getattr(consumer, "handle_batch", None)
    if callable(handle_batch):
        check_parameters(f"the handler of consumer {name!r}", handle_batch, "session, events")
    elif callable(handle):
        check_parameters(f"the handler of consumer {name!r}", handle, "session, event")
    else:
        raise TypeError(f"consumer {name!r} needs a method handle(session, event) or handle_batch(session, events)")
    return handle, handle_batch


_Default = TypeVar("_Default", int, None)


def _integer(
    consumer: object, name: str, attribute: str, default: _Default, *, maximum: int = MAX_INTEGER
) -> int | _Default:
    """Return an attribute that must be an integer of at least 1; ``None`` is allowed if it is the default."""
    value = getattr(consumer, attribute, default)
    checked: int | _Default = check_int(
        f"{attribute} of consumer {name!r}", value, minimum=1, maximum=maximum, is_optional=default is None
    )
    return checked


def _boolean(consumer: object, name: str, attribute: str) -> bool:
    value: bool = getattr(consumer, attribute, False)
    check_type(f"{attribute} of consumer {name!r}", value, bool, "a bool")
    return value


def _isolation(consumer: object, name: str) -> str:
    given = getattr(consumer, "isolation", "REPEATABLE READ")
    if not isinstance(given, str):
        raise TypeError(f"isolation of consumer {name!r} must be a str, not {type(given).__name__}")
    level = str.__str__(given).replace("_", " ").upper()
    if level not in ISOLATION_LEVELS:
        raise ValueError(
            f"isolation of consumer {name!r} must be one of {', '.join(map(repr, ISOLATION_LEVELS))}, not {given!r:.80}"
        )
    return level
