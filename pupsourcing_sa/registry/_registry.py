"""The registry of an application's event classes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from pupsourcing_sa._checks import MAX_INTEGER, check_int, check_names, check_text, check_type
from pupsourcing_sa.errors import UnknownEventTypeError
from pupsourcing_sa.registry._classes import check_class, check_codec, default_codec
from pupsourcing_sa.registry._event_type import EncodedPayload, EventType, NamedData
from pupsourcing_sa.registry._refusals import cause_of, not_registered, not_registered_class, payload_error
from pupsourcing_sa.registry._step_checks import checked_steps
from pupsourcing_sa.registry.codecs import InvalidPayload, PayloadCodec
from pupsourcing_sa.registry.codecs.naive import naive_datetime
from pupsourcing_sa.registry.upcasting import Step, Upcaster, upcast

__all__ = ["EventRegistry"]

_C = TypeVar("_C", bound=type)
_U = TypeVar("_U", bound=Upcaster)


class _Deferred(NamedTuple):
    """A class whose annotations could not be evaluated when it was registered."""

    name: str
    version: int
    cls: type[Any]
    codec: PayloadCodec
    error: NameError


class EventRegistry:
    """The event classes of an application: their names and versions, codecs and upcasters.

    Args:
        codec: encodes the classes that are registered without a codec of their own. By default, `PydanticCodec` encodes
            Pydantic models, and `MsgspecCodec` all other classes.
        verify: decode each payload once more before it is written, so that the log never gets an unreadable one.

    A registry is complete when a store or a consumer uses it. After that it cannot be changed.

    >>> from dataclasses import dataclass
    >>> events = EventRegistry()
    >>> @events.register("OrderPlaced", version=2)
    ... @dataclass(frozen=True)
    ... class OrderPlaced:
    ...     total: int
    ...     currency: str
    >>> @events.upcast("OrderPlaced", from_version=1)
    ... def _(old: dict) -> dict:
    ...     return old | {"currency": "EUR"}
    >>> events.encode(OrderPlaced(5, "EUR"))
    EncodedPayload(event_type='OrderPlaced', event_version=2, payload=b'{"total":5,"currency":"EUR"}')
    >>> events.decode("OrderPlaced", 1, b'{"total":5}')
    (OrderPlaced(total=5, currency='EUR'),)
    """

    def __init__(self, *, codec: PayloadCodec | None = None, verify: bool = True) -> None:
        check_type("verify", verify, bool, "a bool")
        self._codec = None if codec is None else check_codec(codec)
        self._verify = verify
        self._types: dict[str, EventType] = {}
        self._by_class: dict[type[Any], EventType] = {}
        self._deferred: dict[type[Any], _Deferred] = {}
        #: Every registered name and alias, with the name of its class.
        self._names: dict[str, str] = {}
        self._retired: set[str] = set()
        self._steps: dict[tuple[str, int], Step] = {}
        #: Decoders of current versions, by stored name and version. `decode` explains their errors.
        self.decoders: dict[tuple[str, int], Callable[[bytes], Any]] = {}
        self._is_complete = False

    # -- registration ------------------------------------------------------------------------------------------

    def register(
        self, name: str, *, version: int = 1, aliases: Iterable[str] = (), codec: PayloadCodec | None = None
    ) -> Callable[[_C], _C]:
        """Register a class as the current version of an event type. This is a decorator that returns the class.

        Args:
            name: name of the event type in the log. Never change it. To rename a type, add its old name to ``aliases``.
            version: current version. Every older version in the log needs an upcaster.
            aliases: older names of this type. Their events have the versions and the upcasters of this type.
            codec: encodes this class; by default the registry's codec.

        Raises:
            TypeError: an argument has the wrong type, or the codec does not support the class.
            ValueError: the name, an alias or the class is registered already.
            RuntimeError: the registry is in use.
            MissingExtraError: the codec needs a package that is not installed.
        """
        name = check_text("name", name)
        version = check_int("version", version, minimum=1, maximum=MAX_INTEGER)
        names = {name, *(check_names("aliases", aliases) or ())}
        if codec is not None:
            check_codec(codec)

        def decorate(cls: _C) -> _C:
            self._refuse_if_complete(f"register {name!r}")
            check_class(name, cls, has_codec=codec is not None)
            known = self._by_class.get(cls) or self._deferred.get(cls)
            if known is not None:
                raise ValueError(f"{cls.__qualname__} is registered already, as {known.name!r}")
            for other in sorted(names):
                self._refuse_known(other)
            chosen = codec or self._codec or default_codec(cls)
            try:
                self._add(name, version, cls, chosen)
            except NameError as error:
                # The class that an annotation names may be defined further down. `check` retries.
                self._deferred[cls] = _Deferred(name, version, cls, chosen, error)
            self._names |= dict.fromkeys(names, name)
            return cls

        return decorate

    def upcast(self, name: str, *, from_version: int, into: Iterable[str] | None = None) -> Callable[[_U], _U]:
        """Register an upcaster. This is a decorator that returns the function.

        The function gets the payload as decoded JSON, which it may change. It returns the payload of the next version,
        or a sequence of `Upcasted` events, which may be empty. It must not change the aggregate, and needs no database.

        Args:
            name: name of the event type. It is registered, an alias, or retired.
            from_version: version of the payload that the function gets.
            into: names of the events that it returns instead of the next version. If it is missing, the annotated
                result decides: a function that returns ``dict`` returns the next version. Consumers of other types
                also receive events of this name unless you declare one or the other.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: the version has an upcaster already.
            RuntimeError: the registry is in use.
        """
        name = check_text("name", name)
        from_version = check_int("from_version", from_version, minimum=1, maximum=MAX_INTEGER)
        names = None if into is None else frozenset(check_names("into", into) or ())

        def decorate(function: _U) -> _U:
            self._refuse_if_complete(f"add an upcaster of {name!r}")
            if not callable(function):
                raise TypeError(f"an upcaster must be a function, not {type(function).__name__}")
            if inspect.iscoroutinefunction(function):
                raise TypeError(
                    "an upcaster must be a function, not a coroutine function; it must not wait for anything"
                )
            if (name, from_version) in self._steps:
                raise ValueError(f"{name!r} has an upcaster from version {from_version} already")
            self._steps[name, from_version] = Step(function, names)
            return function

        return decorate

    def retire(self, name: str) -> None:
        """Declare a name that has no class any longer.

        Its events are returned without data, and no consumer of classes receives them, unless upcasters turn them into
        other events.

        Raises:
            TypeError, ValueError: the name is not a text, or it is registered already.
            RuntimeError: the registry is in use.
        """
        name = check_text("name", name)
        self._refuse_if_complete(f"retire {name!r}")
        self._refuse_known(name)
        self._retired.add(name)

    def check(self) -> None:
        """Check that the registry is complete, and allow no more changes. A store does this when it is created.

        Raises:
            TypeError: an annotation of a class names a type that does not exist at run time.
            ValueError: an upcaster is missing, or belongs to an unknown name or to the current version; upcasters of
                several names form a cycle.
        """
        if self._is_complete:
            return
        for cls, (name, version, _, codec, _) in list(self._deferred.items()):
            try:
                self._add(name, version, cls, codec)
            except NameError as error:
                raise TypeError(
                    f"{cls.__qualname__}: an annotation names a type that does not exist at run time: {error}. Import "
                    "it outside `if TYPE_CHECKING:`, and define the class at the top level of a module"
                ) from error
            del self._deferred[cls]
        versions = {name: event_type.version for name, event_type in self._types.items()}
        self._steps = checked_steps(self._steps, self._names, versions, self._retired)
        for stored, name in self._names.items():
            event_type = self._types[name]
            bound = event_type.codec
            self.decoders[stored, event_type.version] = getattr(bound, "decode_unexplained", bound.decode)
        self._is_complete = True

    @property
    def event_types(self) -> list[EventType]:
        """The registered event types, sorted by name."""
        self.check()
        return [self._types[name] for name in sorted(self._types)]

    @property
    def names(self) -> Mapping[str, str]:
        """Every name and alias, with the name of its event type."""
        return MappingProxyType(self._names)

    @property
    def retired(self) -> frozenset[str]:
        """The names without a class."""
        return frozenset(self._retired)

    @cached_property
    def split_types(self) -> frozenset[str]:
        """The stored types whose upcasters may return several events, or none."""
        self.check()
        names = {name for (name, _), step in self._steps.items() if step.may_split}
        return frozenset(names | {stored for stored, name in self._names.items() if name in names})

    # -- encoding ----------------------------------------------------------------------------------------------

    def event(self, name: str, data: Any) -> NamedData:
        """Name the type of data whose class cannot tell, such as a ``TypedDict``. Pass the result to an append.

        Raises:
            ValueError: the name is not registered.
        """
        if check_text("name", name) not in self._types:
            raise ValueError(f"{name!r} is not registered; register its class")
        return NamedData(name, data)

    def encode(self, data: Any) -> EncodedPayload:
        """Encode an object of a registered class, or the result of `event`.

        Raises:
            TypeError: the class is not registered.
            PayloadError: the object cannot be encoded, or its payload cannot be decoded again.
        """
        self.check()
        if isinstance(data, NamedData):
            event_type, data = self._types[data.event_type], data.data
        else:
            found = self._by_class.get(type(data))
            if found is None:
                raise not_registered(data, self._by_class)
            event_type = found
        codec = event_type.codec
        try:
            payload = codec.encode(data)
            path = naive_datetime(data)
            if path is not None:
                raise InvalidPayload("the datetime has no time zone; use one such as datetime.UTC", path)
            if self._verify:
                codec.decode(payload)
        except Exception as error:  # noqa: BLE001 - the application's codec or class may raise any
            raise payload_error(event_type.name, event_type.version, error) from cause_of(error)
        if type(payload) is not bytes:
            raise TypeError(f"the codec of {event_type.name!r} must return bytes, not {type(payload).__name__}")
        return EncodedPayload(event_type.name, event_type.version, payload)

    # -- decoding ----------------------------------------------------------------------------------------------

    def is_known(self, event_type: str) -> bool:
        """Return True if events of this stored type can have data: it is registered, an alias, or has upcasters."""
        self.check()
        return event_type in self._names or any(name == event_type for name, _ in self._steps)

    def is_readable(self, event_type: str, event_version: int) -> bool:
        """Return True if this stored version is the current one, or has an upcaster."""
        self.check()
        return (event_type, event_version) in self.decoders or self._step(event_type, event_version) is not None

    def decode(self, event_type: str, event_version: int, payload: bytes) -> tuple[Any, ...]:
        """Decode a stored payload into objects of current classes. Usually this is one object.

        Upcasters may turn an event into several, or none.

        Raises:
            UnknownEventTypeError: the type is not registered, or it is retired.
            PayloadError: the payload does not match the class, or an upcaster failed.
        """
        decoder = self.decoders.get((event_type, event_version))
        if decoder is not None:
            try:
                return (decoder(payload),)
            except Exception:  # noqa: BLE001
                pass  # decoded again below, by a method that explains the error
        try:
            return self._upcast(event_type, event_version, payload)
        except UnknownEventTypeError:
            raise
        except Exception as error:  # noqa: BLE001 - as above, and upcasters
            raise payload_error(event_type, event_version, error) from cause_of(error)

    def stored_types(self, *classes: type[Any]) -> frozenset[str]:
        """Return the stored event types that can become objects of these classes.

        These are the names and aliases of the classes, and every name whose upcasters may return one of them.

        Raises:
            TypeError: a class is not registered.
        """
        self.check()
        wanted: set[str] = set()
        for cls in classes:
            if cls not in self._by_class:
                raise not_registered_class(cls, self._by_class)
            wanted.add(self._by_class[cls].name)
        # A stored type may become a wanted one in several steps.
        count = 0
        while count < len(wanted):
            count = len(wanted)
            wanted |= {name for (name, _), step in self._steps.items() if step.may_become(wanted)}
        return frozenset(wanted | {stored for stored, name in self._names.items() if name in wanted})

    def __repr__(self) -> str:
        return f"<EventRegistry of {len(self._types) + len(self._deferred)} event types>"

    # ----------------------------------------------------------------------------------------------------------

    def _add(self, name: str, version: int, cls: type[Any], codec: PayloadCodec) -> None:
        self._types[name] = self._by_class[cls] = EventType(name, version, cls, codec.bind(cls))

    def _upcast(self, stored: str, version: int, payload: bytes) -> tuple[Any, ...]:
        """Decode a payload of an older version, or one of an unknown type or version."""
        self.check()
        name = self._names.get(stored, stored)
        if not self.is_known(stored):
            raise UnknownEventTypeError(stored, stored in self._retired)
        if (stored, version) in self.decoders:
            return (self._types[name].codec.decode(payload),)
        try:
            data = json.loads(payload)
        except (ValueError, RecursionError):
            raise InvalidPayload("the payload is not JSON, which upcasters need") from None
        return tuple(self._built(*part) for part in upcast(name, version, data, self._step))

    def _step(self, stored: str, version: int) -> Step | None:
        return self._steps.get((self._names.get(stored, stored), version))

    def _built(self, stored: str, version: int, data: Any) -> Any:
        """Build an object of a current class from decoded JSON."""
        event_type = self._types.get(self._names.get(stored, stored))
        if event_type is None:
            raise InvalidPayload(f"there is no class for {stored!r}; register it, or add an upcaster")
        if version != event_type.version:
            remedy = "deploy the code that wrote it" if version > event_type.version else "add an upcaster"
            raise InvalidPayload(
                f"there is no upcaster of {stored!r} from version {version} to {event_type.version}; {remedy}"
            )
        return event_type.codec.decode_json(data)

    def _refuse_if_complete(self, what: str) -> None:
        if self._is_complete:
            raise RuntimeError(
                f"cannot {what}: the registry is in use. Import all modules with event classes before you create the "
                "store"
            )

    def _refuse_known(self, name: str) -> None:
        if name in self._names:
            owner = self._names[name]
            raise ValueError(
                f"{name!r} is registered already"
                + ("" if owner == name else f", as an alias of {owner!r}")
                + "; register the current class only, and add upcasters for older versions"
            )
        if name in self._retired:
            raise ValueError(f"{name!r} is retired; use another name")
