"""A server that tests may crash."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from tests.waiting import wait_until

__all__ = ["Server"]


class Server:
    """A server that tests may crash.

    Args:
        url: URL of an embedded server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._directory = Path(str(make_url(url).query["host"]))
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._program = Path(self._scalar("SELECT setting FROM pg_config WHERE name = 'BINDIR'")) / "pg_ctl"
        self._frozen: list[int] = []
        self._is_ours = False

    def restart_at_once(self) -> None:
        """Stop without a checkpoint, like a power failure; start and recover."""
        self._is_ours = True
        self._restart()

    def freeze_wal_writer(self) -> None:
        """Keep asynchronous commits from the disk until the next crash."""
        self._scalar("CHECKPOINT")
        self._frozen.append(self._scalar("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"))
        os.kill(self._frozen[0], signal.SIGSTOP)

    def kill_backend(self) -> None:
        """Kill a backend. The postmaster then ends all of them, and recovers from the WAL without restarting."""
        with self._engine.connect() as connection:
            self._kill(connection.scalar(text("SELECT pg_backend_pid()")))
            connection.invalidate()
        wait_until(self._answers)

    def kill_postmaster(self) -> None:
        """Kill the postmaster, whose children then end; start and recover."""
        locks = [self._directory / "postmaster.pid", *self._directory.glob(".s.PGSQL.*.lock")]
        self._kill(int(locks[0].read_text().split()[0]))
        # The process stays a zombie, which would be taken for a running server.
        for lock in locks:
            lock.unlink()
        self._is_ours = True
        wait_until(self._is_restarted)

    def close(self) -> None:
        """Stop the server. The fixture that started it does not know the process that runs now."""
        self._engine.dispose()
        if self._is_ours and (self._directory / "postmaster.pid").exists():
            self._control("stop")

    def _kill(self, *victims: int) -> None:
        # A stopped process does not notice the crash.
        for pid in (*victims, *self._frozen):
            os.kill(pid, signal.SIGKILL)
        self._frozen.clear()

    def _is_restarted(self) -> bool:
        """Restart, and return True unless a child of the killed process still uses the shared memory."""
        try:
            self._restart()
        except subprocess.CalledProcessError:
            return False
        return True

    def _restart(self) -> None:
        self._control("restart", f"--log={self._directory / 'log-of-restarts'}")

    def _answers(self) -> bool:
        try:
            return bool(self._scalar("SELECT 1"))
        except DBAPIError:
            return False

    def _scalar(self, sql: str) -> Any:
        with self._engine.connect() as connection:
            result = connection.exec_driver_sql(sql)
            return result.scalar() if result.returns_rows else None

    def _control(self, what: str, *options: str) -> None:
        owner = self._directory.stat()  # PostgreSQL refuses to run as root
        subprocess.run(
            [self._program, what, f"--pgdata={self._directory}", "--mode=immediate", "--wait", *options],
            user=owner.st_uid,
            group=owner.st_gid,
            extra_groups=[] if os.geteuid() == 0 else None,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
