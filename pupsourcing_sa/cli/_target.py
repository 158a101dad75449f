"""Loading of an object that a command line names as ``module:attribute``, with a message for each mistake."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.store import AsyncEventStore, EventStore
from pupsourcing_sa.worker import Worker

__all__ = ["application_code", "load_registry", "load_worker"]


def load_worker(target: str) -> Worker:
    """Return the worker ``module:attribute``, or the worker that the function of this name returns.

    The working directory is on the path, as with ``python -m``.

    Raises:
        UsageError: there is no such worker, or the application's code failed.
    """
    found = _load(target, "myapp.worker:worker", Worker)
    if not isinstance(found, Worker):
        raise UsageError(f"{target} must be a Worker or a function that returns one, not {type(found).__name__}")
    return found


def load_registry(target: str) -> EventRegistry:
    """Return the registry ``module:attribute``, or the one of the store or the worker of this name, and check it.

    Raises:
        UsageError: there is no such registry, or the application's code failed.
        ClickException: an upcaster is missing or wrong, or an annotation of a class cannot be evaluated.
    """
    found = _load(target, "myapp.events:events", EventRegistry, EventStore, AsyncEventStore, Worker)
    owner = found.store if isinstance(found, Worker) else found
    registry = owner.registry if isinstance(owner, (EventStore, AsyncEventStore)) else owner
    if registry is None:
        raise UsageError(f"the store of {target} has no registry. Pass registry= to it, or name the EventRegistry")
    if not isinstance(registry, EventRegistry):
        raise UsageError(
            f"{target} must be an EventRegistry, a store or a Worker, or a function that returns one, not "
            f"{type(found).__name__}"
        )
    try:
        registry.check()
    except (TypeError, ValueError) as error:
        raise click.ClickException(f"{target}: {error}") from error
    return registry


def _load(target: str, example: str, *kinds: type[Any]) -> Any:
    """Return the object ``module:attribute``. Call it if it is a function.

    Args:
        target: the name of the object.
        example: a name for the message about one that is wrong.
        kinds: the classes of the object. It may be of another class.
    """
    module_name, attribute = _split(target, example)
    try:
        directory = str(Path.cwd())
    except OSError as error:
        raise UsageError("the working directory was removed. Change to a directory that exists") from error
    if directory not in sys.path:
        sys.path.insert(0, directory)
    found = _attribute(_module(module_name, directory), module_name, attribute, kinds)
    return _call(found, target) if not isinstance(found, kinds) and callable(found) else found


@contextmanager
def application_code(action: str) -> Iterator[None]:
    """Run code of the application.

    Raises:
        UsageError: the action failed. It has the exception, without the frames of this package.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # noqa: BLE001 - code of the application may raise anything
        frames = error.__traceback__
        while frames is not None and _is_ours(frames.tb_frame.f_globals.get("__name__", "")):
            frames = frames.tb_next
        hint = ""
        # psycopg2 is the default driver of SQLAlchemy 2.0.
        if isinstance(error, ModuleNotFoundError) and error.name == "psycopg2":
            hint = ". Write postgresql+psycopg:// in the URL of the database"
        line = str(error).partition("\n")[0]
        raise UsageError(
            f"{action} failed: {type(error).__name__}: {line}{hint}", error.with_traceback(frames)
        ) from None


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("importlib", "contextlib") or module.startswith("pupsourcing_sa.cli.")


def _split(target: str, example: str) -> tuple[str, str]:
    module_name, colon, attribute = target.partition(":")
    names = [*module_name.split("."), *attribute.split(".")]
    if colon and all(name.isidentifier() for name in names) and not module_name.endswith(".py"):
        return module_name, attribute
    guess = module_name.removeprefix("./").removesuffix(".py").replace("/", ".").strip(".")
    if not colon and "." in guess and not module_name.endswith(".py"):
        guess, _, attribute = guess.rpartition(".")
    default_module, _, default_attribute = example.partition(":")
    example = f"{guess or default_module}:{attribute or default_attribute}"
    raise UsageError(f"{target!r} must be a module and one of its attributes, such as {example}")


def _module(name: str, directory: str) -> Any:
    with application_code(f"importing {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, but imports one that does not
            missing = error.name
    raise UsageError(f"there is no module {missing!r} in {directory} or on the Python path")


def _attribute(module: Any, module_name: str, attribute: str, kinds: tuple[type[Any], ...]) -> Any:
    found = module
    for name in attribute.split("."):
        with application_code(f"looking for {attribute!r} in module {module_name!r}"):
            try:
                found = getattr(found, name)
                continue
            except AttributeError:
                members = getattr(found, "__dict__", {})
                candidates = [member for member, value in members.items() if isinstance(value, kinds)]
                similar = difflib.get_close_matches(name, dir(found), n=1) or candidates
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise UsageError(f"module {module_name!r} has no attribute {attribute!r}{hint}")
    return found


def _call(function: Any, target: str) -> Any:
    if inspect.iscoroutinefunction(function):
        raise UsageError(
            f"{target} must not be a coroutine function. Declare it with def: the Worker creates its own event loop"
        )
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UsageError(f"{target} must be callable without arguments: {error}") from error
    except ValueError:
        pass  # a function written in C has no signature
    with application_code(f"{target}()"):
        return function()
