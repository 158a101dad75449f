"""The base of all errors."""

from __future__ import annotations

from typing import Any

__all__ = [
    "PupsourcingError",
]


class PupsourcingError(Exception):
    """Base of every error that this library raises on purpose.

    The first line of the class's docstring is the default message.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or type(self).__name__).partition("\n")[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException.__reduce__ calls the class with the message, but subclasses take other arguments.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[PupsourcingError], args: tuple[Any, ...], state: dict[str, Any]) -> PupsourcingError:
    error = cls.__new__(cls)
    super(PupsourcingError, error).__init__(*args)
    error.__dict__.update(state)
    return error
