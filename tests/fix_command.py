"""The command ``pupsourcing-sa``, in this process and as a process of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine

__all__ = ["COMMAND", "Command", "Result", "isolated_modules", "root_logger", "run_in_process"]

COMMAND = str(Path(sys.executable).with_name("pupsourcing-sa"))


class Result(NamedTuple):
    """Exit status and output of a command."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Result]


def run_in_process(*arguments: str, env: Mapping[str, str] | None = None, input: str | bytes | None = None) -> Result:  # noqa: A002
    """Run the command in this process, with its own standard streams, log and environment variables."""
    from pupsourcing_sa.cli._application import application

    with root_logger():
        result = CliRunner().invoke(application, arguments, env={"COLUMNS": "120"} | dict(env or {}), input=input)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def command(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Runs the command in this process, in an empty directory, with DATABASE_URL set to the test's schema.

    Modules in that directory can be imported during the test.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    with isolated_modules(tmp_path):
        yield run_in_process


@contextmanager
def isolated_modules(directory: Path) -> Iterator[None]:
    """Restore the path, and forget the modules that were imported from a directory."""
    path = sys.path.copy()
    try:
        yield
    finally:
        sys.path[:] = path
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            places = [file] if file else list(getattr(module, "__path__", []))
            if any(Path(place).is_relative_to(directory) for place in places):
                del sys.modules[name]


@contextmanager
def root_logger(*handlers: logging.Handler) -> Iterator[logging.Logger]:
    """The root logger with these handlers only, without those of pytest."""
    root, ours = logging.getLogger(), logging.getLogger("pupsourcing_sa")
    before = root.handlers, root.level, ours.level
    root.handlers = list(handlers)
    try:
        yield root
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])  # loggers cache what is enabled; setLevel clears that
        ours.setLevel(before[2])


@pytest.fixture
def process(engine: Engine, tmp_path: Path) -> Callable[..., Result]:
    """Runs the installed command in a process of its own, in an empty directory, with DATABASE_URL set."""

    def run(*arguments: str, **options: Any) -> Result:
        url = engine.url.render_as_string(hide_password=False)
        environment = os.environ | {"DATABASE_URL": url, "COLUMNS": "120"} | options.pop("env", {})
        done = subprocess.run(
            [COMMAND, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
