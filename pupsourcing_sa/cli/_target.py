"""Finds what a command line names as ``module:attribute``, and says what is wrong with it if it cannot be used."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pupsourcing_sa.cli._usage import UsageError
from pupsourcing_sa.worker import Worker

__all__ = ["application_code", "load_worker"]


def load_worker(target: str) -> Worker:
    """The worker that ``module:attribute`` is, or that the function of this name returns.

    The working directory is on the path, as with ``python -m``.

    Raises:
        UsageError: there is none. Where the application's own code failed, its traceback was printed.
    """
    module_name, attribute = _split(target)
    try:
        here = str(Path.cwd())
    except OSError as error:
        raise UsageError("the working directory does not exist any more; change to one that does") from error
    if here not in sys.path:
        sys.path.insert(0, here)
    found = _attribute(_module(module_name, here), module_name, attribute)
    if not isinstance(found, Worker) and callable(found):
        found = _made_by(found, target)
    if not isinstance(found, Worker):
        raise UsageError(f"{target} must be a Worker or a function that returns one, not {type(found).__name__}")
    return found


@contextmanager
def application_code(what: str) -> Iterator[None]:
    """Run the application's code, whose failure is a UsageError: after its traceback, without our part of it.

    Raises:
        UsageError: with what failed and why.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = error.__traceback__
        while frames is not None and _is_ours(frames.tb_frame.f_globals.get("__name__", "")):
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames)
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == "psycopg2":  # which SQLAlchemy 2.0 takes by default
            hint = "; write postgresql+psycopg:// in the URL of the database"
        line = str(error).partition("\n")[0]
        raise UsageError(f"{what} failed: {type(error).__name__}: {line}{hint}") from error


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("importlib", "contextlib") or module.startswith("pupsourcing_sa.cli.")


def _split(target: str) -> tuple[str, str]:
    module_name, colon, attribute = target.partition(":")
    names = [*module_name.split("."), *attribute.split(".")]
    if colon and all(name.isidentifier() for name in names) and not module_name.endswith(".py"):
        return module_name, attribute
    guess = module_name.removeprefix("./").removesuffix(".py").replace("/", ".").strip(".")
    if not colon and "." in guess and not module_name.endswith(".py"):
        guess, _, attribute = guess.rpartition(".")
    hint = f"{guess or 'myapp.worker'}:{attribute or 'worker'}"
    raise UsageError(f"{target!r} must be a module and an attribute of it, such as {hint}")


def _module(name: str, here: str) -> Any:
    with application_code(f"importing {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and imports something that is not
            missing = error.name
    raise UsageError(f"there is no module {missing!r} in {here} or on the Python path")


def _attribute(module: Any, module_name: str, attribute: str) -> Any:
    found = module
    for name in attribute.split("."):
        with application_code(f"looking for {attribute!r} in module {module_name!r}"):
            try:
                found = getattr(found, name)
                continue
            except AttributeError:
                known = getattr(found, "__dict__", {})
                workers = [each for each, value in known.items() if isinstance(value, Worker)]
                near = difflib.get_close_matches(name, dir(found), n=1) or workers
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"module {module_name!r} has no attribute {attribute!r}{hint}")
    return found


def _made_by(factory: Any, target: str) -> Any:
    if inspect.iscoroutinefunction(factory):
        raise UsageError(f"{target} must not be a coroutine function; a Worker makes its event loop itself")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UsageError(f"{target} is called without arguments: {error}") from error
    except ValueError:
        pass  # something of C that does not tell; calling it will
    with application_code(f"{target}()"):
        return factory()
