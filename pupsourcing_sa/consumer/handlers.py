"""Kinds of handlers: coroutine functions, plain functions, and functions that would do nothing or fail at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["check_parameters", "is_coroutine_function", "refuse_awaitable"]


def refuse_awaitable(handler: object, result: object) -> None:
    """Refuse a handler that returned a generator or an awaitable, which the worker would not run."""
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError(f"{handler!r} must not be a generator: calling it runs nothing. Remove the yield")
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(
            f"{handler!r} returned an awaitable, but is not a coroutine function. Declare it with async def"
        )


def is_coroutine_function(handler: object) -> bool:
    """Return True for a coroutine function, or a callable object whose ``__call__`` is one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def check_parameters(title: str, handler: Callable[..., Any], expected: str) -> None:
    """Check that a handler accepts two arguments. Otherwise its first call would count as a failed event."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        # Some callables written in C have no signature.
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(f"{title} must take ({expected}), not {signature}: {error}") from error
