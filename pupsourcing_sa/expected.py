"""The version of an aggregate that a caller expects when it appends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pupsourcing_sa._checks import check_int

__all__ = ["AnyVersion", "Exact", "ExpectedVersion", "NoStream"]


class _Expectation:
    """An expected version. Two expectations are equal if they expect the same version."""

    __slots__ = ()

    #: The version that the aggregate must have. 0 means that it must not exist, ``None`` that any version is accepted.
    version: int | None

    def __eq__(self, other: object) -> bool:
        return self.version == other.version if isinstance(other, _Expectation) else NotImplemented

    def __hash__(self) -> int:
        return hash((_Expectation, self.version))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class AnyVersion(_Expectation):
    """No expectation: the events follow the current version.

    >>> AnyVersion()
    AnyVersion()
    """

    __slots__ = ()
    version: None = None


class NoStream(_Expectation):
    """The aggregate must not exist: this append creates it.

    >>> NoStream() == Exact(0)
    True
    """

    __slots__ = ()
    version: int = 0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Exact(_Expectation):
    """The aggregate must have this version, which is the number of its events.

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

    version: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", check_int("version", self.version))

    def __repr__(self) -> str:
        return f"Exact({self.version})"


ExpectedVersion: TypeAlias = AnyVersion | NoStream | Exact
