"""``pupsourcing-sa import``."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore
from pupsourcing_sa.jsonlines import import_events
from tests.fix_command import COMMAND, Command
from tests.fix_store import make_event, make_tables
from tests.waiting import patiently, wait_until


def line(number: int, **given: object) -> str:
    return json.dumps(
        {"aggregate_type": "User", "aggregate_id": f"u{number % 3}", "event_type": "A", "payload": {"n": number}}
        | given
    )


@pytest.fixture
def store(engine: Engine) -> EventStore:
    return EventStore(make_tables(engine))


def payloads(engine: Engine, store: EventStore) -> list[int]:
    with Session(engine) as session:
        return [found.json()["n"] for found in store.read_events(session, limit=10_000)]


def test_a_file(command: Command, engine: Engine, store: EventStore, tmp_path: Path):
    (tmp_path / "events.jsonl").write_text("\n".join(line(number) for number in range(25)) + "\n\n")
    done = command("import", "events.jsonl", "--batch-size", "10")
    assert (done.returncode, done.stdout) == (0, "25 events appended\n")
    assert payloads(engine, store) == list(range(25))  # the order of the lines is the order of the log
    assert "25 events" in done.stderr


def test_standard_input_with_every_field(command: Command, engine: Engine, store: EventStore):
    fields = {
        "event_version": 2,
        "event_id": "01a20a18-a008-732d-b352-7e82f252c9da",
        "metadata": {"by": "me"},
        "trace_id": "t",
        "correlation_id": "c",
        "causation_id": None,
        "created_at": "2026-01-02T03:04:05.000006+01:00",
    }
    assert command("import", "-", input=line(1, **fields)).returncode == 0
    with Session(engine) as session:
        (found,) = store.read_events(session)
    assert found.event_id == UUID(fields["event_id"])
    assert (found.event_version, found.metadata, found.trace_id) == (2, {"by": "me"}, "t")
    assert (found.correlation_id, found.causation_id) == ("c", None)
    assert found.created_at.isoformat() == "2026-01-02T02:04:05.000006+00:00"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 15: not JSON"),
        ("[" * 100_000, "line 15: its JSON is nested too deeply"),
        ("[]", "line 15: an event must be a JSON object, not list"),
        (line(1, surprise=1), "line 15: unknown field 'surprise'; the fields are aggregate_type,"),
        ('{"aggregate_type": "User", "aggregate_id": "u1", "event_type": "A"}', "line 15: payload is missing"),
        (line(1, event_type=None), "line 15: event_type is missing"),
        (line(1, aggregate_id=5), "line 15: aggregate_id must be a str, not int"),
        (line(1, event_id="x"), "line 15: event_id 'x' cannot be read"),
        (line(1, created_at="2026-01-02"), "line 15: created_at must have a time zone"),
        (line(1, event_id=str(UUID(int=1))), "line 15: event ids must be unique"),
        (
            line(1, aggregate_type="x" * 100_000 + "y"),
            "line 15: 01234567891011121314151617181920",
        ),
    ],
)
def test_a_bad_line_and_its_batch_are_not_appended(command: Command, engine: Engine, store: EventStore, bad, message):
    lines = [line(number) for number in range(20)]
    lines[0] = line(0, event_id=str(UUID(int=1)))
    lines[14] = bad.replace("x" * 100_000, "".join(map(str, range(20_000))))
    done = command("import", "-", "--batch-size", "10", input="\n".join(lines))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "continue with --from-line 11" in done.stderr
    assert payloads(engine, store) == list(range(10))

    lines[14] = line(14)
    assert command("import", "-", "--from-line", "11", input="\n".join(lines)).returncode == 0
    assert payloads(engine, store) == list(range(20))


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": -1}, {"batch_bytes": 0}, {"first_line": 0}])
def test_a_batch_has_at_least_one_event(engine: Engine, store: EventStore, arguments: dict[str, int]):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name} must be between 1"):
        import_events(sessionmaker(engine), store, [line(1)], **arguments)
    assert payloads(engine, store) == []


def wait_until_waiting(engine: Engine) -> None:
    """Wait until a transaction waits for another one."""
    waiting = text(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_until(lambda: connection.scalar(waiting))


class TestAnInterruption:
    """The message says how to continue, and what it says is right."""

    @pytest.fixture
    def start(self, engine: Engine, store: EventStore) -> Callable[[], subprocess.Popen[str]]:
        url = engine.url.render_as_string(hide_password=False)
        arguments = [COMMAND, "import", "-", "--batch-size", "10", "--database-url", url]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

        def start() -> subprocess.Popen[str]:
            importing = subprocess.Popen(arguments, text=True, **pipes)
            assert importing.stdin is not None
            importing.stdin.write("".join(f"{line(number)}\n" for number in range(25)))
            importing.stdin.flush()
            return importing

        return start

    @pytest.mark.parametrize(
        ("number", "status", "reason"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
    )
    def test_while_it_waits_for_lines(self, start, engine: Engine, store: EventStore, number, status, reason):
        importing = start()
        wait_until(lambda: len(payloads(engine, store)) == 20)
        importing.send_signal(number)
        _, messages = importing.communicate(timeout=patiently(30))
        assert importing.returncode == status
        assert f"pupsourcing-sa: {reason}\n20 events were appended" in messages
        assert messages.rstrip().endswith("none from line 21 on. Continue with --from-line 21")

    def test_in_a_batch(self, start, engine: Engine, store: EventStore):
        """The batch is completed."""
        with Session(engine) as other:
            store.append(other, AnyVersion(), [make_event("u1", payload={"n": -1})])
            importing = start()
            wait_until_waiting(engine)
            importing.send_signal(signal.SIGINT)
            other.commit()
        _, messages = importing.communicate(timeout=patiently(30))
        assert importing.returncode == 130
        assert "10 events were appended, and none from line 11 on" in messages
        assert messages.rstrip().endswith("Continue with --from-line 11")
        assert sorted(payloads(engine, store)) == list(range(-1, 10))

    def test_the_second_one_is_at_once(self, start, engine: Engine, store: EventStore):
        with Session(engine) as other:
            store.append(other, AnyVersion(), [make_event("u1", payload={"n": -1})])
            importing = start()
            wait_until_waiting(engine)
            importing.send_signal(signal.SIGINT)
            importing.send_signal(signal.SIGTERM)
            _, messages = importing.communicate(timeout=patiently(30))
        assert importing.returncode == 128 + signal.SIGTERM
        assert "\n0 events were appended, and none from line 1 on" in messages
        assert messages.rstrip().endswith("Continue with --from-line 1")
        assert payloads(engine, store) == []

    @pytest.mark.parametrize("is_committing", [False, True])
    def test_a_lost_connection(self, command: Command, engine: Engine, store: EventStore, is_committing):
        batches = 0

        def lose(connection: Connection) -> None:
            nonlocal batches
            batches += 1
            if batches == 2:
                connection.connection.dbapi_connection.close()

        place = "commit" if is_committing else "begin"
        event.listen(Engine, place, lose)
        try:
            done = command("import", "-", "--batch-size", "10", input="\n".join(line(number) for number in range(25)))
        finally:
            event.remove(Engine, place, lose)
        assert done.returncode == 1
        assert "10 events were appended" in done.stderr
        assert ("the batch that begins with line 11 may be in the log or not" in done.stderr) is is_committing
        assert done.stderr.rstrip().endswith("ontinue with --from-line 11")


def test_text_that_is_no_utf8(command: Command, store: EventStore, tmp_path: Path):
    (tmp_path / "events.jsonl").write_bytes(line(1).encode() + b"\n\xff\n")
    done = command("import", "events.jsonl")
    assert done.returncode == 1
    assert "line 2: not UTF-8" in done.stderr


def test_the_message_names_the_mistake(command: Command):
    missing = command("import", "nowhere.jsonl")
    assert (missing.returncode, missing.stderr) == (
        2,
        "pupsourcing-sa: cannot read nowhere.jsonl: No such file or directory\n",
    )
    without = command("import", "-", env={"DATABASE_URL": ""}, input="")
    assert without.returncode == 2
    assert "Use --database-url, or set DATABASE_URL" in without.stderr
    no_tables = command("import", "-", input=line(1))
    assert no_tables.returncode == 1
    assert "run your migrations" in no_tables.stderr
    unreachable = command("import", "-", "--database-url", "postgresql+psycopg://nobody@127.0.0.1:1/x", input=line(1))
    assert unreachable.returncode == 1
    assert "connection" in unreachable.stderr
    assert "Traceback" not in unreachable.stderr + no_tables.stderr + without.stderr
    nonsense = command("import", "-", "--database-url", "nonsense", input="")
    assert nonsense.returncode == 2
    assert "--database-url" in nonsense.stderr
