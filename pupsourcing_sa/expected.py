"""What a writer expects of an aggregate's version when it appends."""

from __future__ import annotations

from typing import TypeAlias

from pupsourcing_sa._checks import check_int

__all__ = ["AnyVersion", "Exact", "ExpectedVersion", "NoStream"]


class _Expectation:
    """A value without identity: two of them are equal when they expect the same version."""

    __slots__ = ()

    #: The version the aggregate must have; 0 means that it must not exist, ``None`` that any will do.
    version: int | None

    def __eq__(self, other: object) -> bool:
        return self.version == other.version if isinstance(other, _Expectation) else NotImplemented

    def __hash__(self) -> int:
        return hash((_Expectation, self.version))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class AnyVersion(_Expectation):
    """No expectation: the events follow whatever is there.

    >>> AnyVersion()
    AnyVersion()
    """

    __slots__ = ()
    version: None = None


class NoStream(_Expectation):
    """The aggregate must not exist yet: its first event is being appended.

    >>> NoStream() == Exact(0)
    True
    """

    __slots__ = ()
    version: int = 0


class Exact(_Expectation):
    """The aggregate must be at this version, which is the number of its events.

    Args:
        version: 0 (the same as `NoStream`) or more.

    Raises:
        TypeError: ``version`` is not an int.
        ValueError: ``version`` is negative or does not fit a BIGINT.

    >>> Exact(3)
    Exact(3)
    >>> match Exact(3):
    ...     case Exact(version):
    ...         print(version)
    3
    """

    __slots__ = ("version",)
    __match_args__ = ("version",)
    version: int

    def __init__(self, version: int) -> None:
        check_int("version", version)
        object.__setattr__(self, "version", version)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __reduce__(self) -> tuple[type[Exact], tuple[int]]:
        return type(self), (self.version,)

    def __repr__(self) -> str:
        return f"Exact({self.version})"


ExpectedVersion: TypeAlias = AnyVersion | NoStream | Exact
