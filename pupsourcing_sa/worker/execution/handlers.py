"""Handlers: coroutine functions or not, and results that nothing would wait for."""

from __future__ import annotations

import inspect

__all__ = ["is_coroutine_function", "refuse_awaitable"]


def refuse_awaitable(handler: object, result: object) -> None:
    """Complain of a handler whose result nobody would wait for."""
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError(f"{handler!r} has a yield, so that calling it does nothing: a handler must not be a generator")
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(f"{handler!r} gave an awaitable, and is not a coroutine function: declare it with async def")


def is_coroutine_function(handler: object) -> bool:
    """Whether calling it gives something to await; looks into callable objects as well."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)
