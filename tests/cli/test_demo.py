"""``pupsourcing-sa demo``, with few events, on its own server and on the server of the tests."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

import psutil
import pytest
from sqlalchemy import create_engine, inspect, text

from tests.fix_command import COMMAND, Command, run_in_process
from tests.waiting import patiently, wait_until


@pytest.mark.exhaustive  # CI also runs `make demo`
def test_it_shows_and_checks_everything(command: Command):
    done = command("demo", "--events", "300", "--writers", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for expected in (
        "embedded, in a temporary directory",
        "+ events",
        "+ users",
        "register bob, roll back    21 users, 21 events",
        "OptimisticConcurrencyError: User 'ann': expected NoStream(), found version 1",
        "300/300",
        "321 events in the log",
        "kill -9 ended the node that ran the consumer",
        "the other node took over",
        "events missed by the worker: 0",
        "The read model agrees with the log",
    ):
        assert expected in done.stdout


def test_a_server_that_is_not_postgresql():
    done = run_in_process("demo", "--database-url", "mysql://ann:secret@localhost/x")
    assert done == (2, "", "pupsourcing-sa: --database-url must be a postgresql URL, not mysql://ann:***@localhost/x\n")


@pytest.mark.exhaustive
def test_on_a_given_server_it_works_in_a_schema_of_its_own(command: Command, database_url: str):
    engine = create_engine(database_url)
    before = inspect(engine).get_schema_names()
    done = command("demo", "--events", "50", "--writers", "1", "--database-url", database_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert inspect(engine).get_schema_names() == before
    assert inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.exhaustive
def test_a_schema_that_is_kept(command: Command, database_url: str):
    engine = create_engine(database_url)
    before = inspect(engine).get_schema_names()
    command("demo", "--events", "50", "--writers", "1", "--database-url", database_url, "--keep")
    (kept,) = set(inspect(engine).get_schema_names()) - set(before)
    assert "events" in inspect(engine).get_table_names(kept)
    engine.dispose()


@pytest.mark.exhaustive
def test_a_difference_is_an_error(command: Command, database_url: str):
    """A read model that a trigger changes does not agree with the log."""
    spoil = (
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.users := NEW.users + 1; RETURN NEW; END $$;"
        "CREATE FUNCTION spoil_providers() RETURNS event_trigger LANGUAGE plpgsql AS $$ DECLARE made record; BEGIN"
        " FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%.providers' LOOP"
        "  EXECUTE 'CREATE TRIGGER spoil BEFORE INSERT ON ' || made.object_identity || ' FOR EACH ROW EXECUTE FUNCTION"
        " public.spoil()'; END LOOP; END $$;"
        "CREATE EVENT TRIGGER spoil ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION spoil_providers()"
    )
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text(spoil))
    engine.dispose()
    done = command("demo", "--events", "50", "--writers", "1", "--database-url", database_url)
    assert done.returncode == 1
    assert "The read model is WRONG" in done.stdout


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(number: signal.Signals):
    process = subprocess.Popen(
        [COMMAND, "demo", "--events", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ
    )
    others: list[psutil.Process] = []
    assert process.stdout is not None
    try:
        with process.stdout:
            while b"processes append" not in process.stdout.readline():
                assert process.poll() is None
            wait_until(lambda: has_started_all(process.pid), seconds=60)
            others = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(number)
            status = process.wait(timeout=patiently(60))
        assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[number]
        _, alive = psutil.wait_procs(others, timeout=patiently(30))
        assert [process.cmdline() for process in alive] == []
    finally:
        for left in [process, *others]:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()


def has_started_all(pid: int) -> bool:
    """Return True if the demo has its writers and both nodes. The server is many more processes."""
    started = ""
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # processes of the server come and go
            started += " ".join(process.cmdline())
    return (started.count("demo.writer"), started.count("demo.follower")) == (4, 2)
