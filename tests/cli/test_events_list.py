"""``pupsourcing-sa events list`` and ``events show``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore
from tests.fix_command import COMMAND, Command, Result
from tests.fix_store import NAMES, make_event, make_named_tables, make_tables
from tests.waiting import patiently, wait_until


def day(number: int) -> datetime:
    return datetime(2026, 1, number, tzinfo=UTC)


@pytest.fixture
def store(engine: Engine) -> EventStore:
    """A log of 30 events: those of position n are of the day n."""
    store = EventStore(make_tables(engine))
    with Session(engine) as session:
        for n in range(1, 31):
            event = make_event(
                f"u{n % 3}",
                aggregate_type="User" if n % 2 else "Order",
                event_type=f"E{n % 5}",
                correlation_id=f"c{n}" if n % 10 else "ten",
                created_at=day(n),
                payload={"n": n},
            )
            store.append(session, AnyVersion(), [event])
        session.commit()
    return store


def positions(done: Result) -> list[int]:
    assert (done.returncode, done.stderr) == (0, "")
    listed = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert listed == sorted(listed)
    return listed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], range(11, 31)),
        (["--limit", "2"], [29, 30]),
        (["--limit", "0"], []),
        (["--after", "3", "--limit", "2"], [4, 5]),
        (["--after", "3"], range(4, 24)),
        (["--aggregate", "User", "u1"], [1, 7, 13, 19, 25]),
        (["--aggregate", "User", "u1", "--type", "E1", "--type", "E3"], [1, 13]),
        (["--aggregate", "User", "u1", "--after", "7", "--limit", "1"], [13]),
        (["--aggregate", "User", "unknown"], []),
        (["--type", "E0", "--type", "E1", "--limit", "3"], [25, 26, 30]),
        (["--correlation", "ten"], [10, 20, 30]),
        (["--correlation", "ten", "--aggregate", "Order", "u1"], [10]),
        (["--correlation", "ten", "--until", "2026-01-30T00:00:00Z"], [10, 20]),
        (["--since", "2026-01-05T00:00:00Z", "--until", "2026-01-07T01:00:00+01:00"], [5, 6]),
    ],
)
def test_options_select_events(command: Command, store: EventStore, arguments: list[str], expected: Any):
    assert positions(command("events", "list", *arguments)) == list(expected)


def test_a_line_and_an_object(command: Command, store: EventStore):
    line = command("events", "list", "--limit", "1").stdout
    assert line == '    30  2026-01-30T00:00:00.000000+00:00  Order u0 #5  E0 v1  {"n": 30}\n'
    lines = command("events", "list", "--json").stdout.splitlines()
    assert [json.loads(line)["payload"]["n"] for line in lines] == list(range(11, 31))
    listed = json.loads(lines[-1])
    shown = command("events", "show", "30").stdout
    assert json.loads(shown) == listed
    assert json.loads(command("events", "show", listed["event_id"]).stdout) == listed
    assert '\n  "payload": {\n    "n": 30\n  }\n' in shown
    assert {name: value for name, value in listed.items() if name != "event_id"} == {
        "global_position": 30,
        "aggregate_type": "Order",
        "aggregate_id": "u0",
        "aggregate_version": 5,
        "event_type": "E0",
        "event_version": 1,
        "created_at": "2026-01-30T00:00:00.000000+00:00",
        "correlation_id": "ten",
        "causation_id": None,
        "trace_id": None,
        "metadata": {},
        "payload": {"n": 30},
    }


#: Clears the screen, reverses the text, adds a line; DEL, and a character outside of the first plane.
HOSTILE = "Zoë \x1b[2J\u202e\x9b\n2026 all is well\u2028\x7f\U000e0001"


@pytest.mark.parametrize("runner", ["command", "ascii"])
def test_data_that_other_programs_wrote(
    command: Command, process: Command, engine: Engine, store: EventStore, runner: str
):
    if runner == "ascii":
        command = partial(process, env={"PYTHONIOENCODING": "ascii"})
    payloads: list[Any] = [{"name": HOSTILE}, b"\xff\x00", b"NaN", b"1e400", b"[" * 100_000]
    with Session(engine) as session:
        for payload in payloads:
            store.append(session, AnyVersion(), [make_event(HOSTILE, payload=payload)])
        session.execute(text("UPDATE events SET created_at = 'infinity' WHERE global_position = 31"))
        session.commit()
    done = command("events", "list", "--after", "30")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["31", "32", "33", "34", "35"]
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "unreadable time" in done.stdout
    assert done.stdout.splitlines()[1].endswith("  <2 bytes>")

    shown = command("events", "show", "31").stdout
    found = json.loads(shown)
    assert (found["payload"], found["aggregate_id"]) == ({"name": HOSTILE}, HOSTILE)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert found["created_at"] is None
    assert "infinity" in found["problems"][0]
    lines = command("events", "list", "--after", "31", "--json").stdout.splitlines()
    assert [json.loads(line)["payload_base64"] for line in lines[:3]] == ["/wA=", "TmFO", "MWU0MDA="]
    assert "payload" not in json.loads(lines[0])


def test_events_above_the_stable_position(command: Command, engine: Engine, store: EventStore):
    with Session(engine) as unfinished, Session(engine) as session:
        store.append(unfinished, AnyVersion(), [make_event("open")])
        store.append(session, AnyVersion(), [make_event("closed")])
        session.commit()
        done = command("events", "list", "--limit", "1")
        assert done.stdout.split()[0] == "30"
        assert done.stderr == (
            "note: events after position 30 are not shown until the transactions that append have ended\n"
        )
        assert json.loads(command("events", "show", "32").stdout)["aggregate_id"] == "closed"
        missing = command("events", "show", "31")
    assert (missing.returncode, missing.stdout, missing.stderr) == (
        1,
        "",
        "pupsourcing-sa: no committed event has the position 31; the last position is 32\n",
    )


@pytest.mark.parametrize("options", [{}, {"payload": JSONB}], ids=["bytea", "jsonb"])
def test_a_log_with_other_names(command: Command, engine: Engine, options: dict[str, Any]):
    store = EventStore(make_named_tables(engine, "custom", **options))
    with Session(engine) as session:
        store.append(session, AnyVersion(), [make_event(payload={"n": 1}, event_id=UUID(int=1))])
        session.commit()
    names = [text for name, value in NAMES["custom"].items() for text in (f"--{name.replace('_', '-')}", value)]
    listed = json.loads(command("events", "list", "--json", *names).stdout)
    assert (listed["event_id"], listed["payload"]) == (str(UUID(int=1)), {"n": 1})
    assert json.loads(command("events", "show", "1", *names).stdout) == listed


class TestFollow:
    @pytest.fixture
    def start(self, engine: Engine) -> Iterator[Callable[..., subprocess.Popen[str]]]:
        url = engine.url.render_as_string(hide_password=False)
        started: list[subprocess.Popen[str]] = []

        def start(*arguments: str) -> subprocess.Popen[str]:
            command = [COMMAND, "events", "list", "--follow", *arguments, "--database-url", url]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            started.append(subprocess.Popen(command, text=True, env=os.environ | {"PGAPPNAME": "follower"}, **pipes))
            return started[-1]

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def append(self, engine: Engine, store: EventStore, name: str) -> None:
        with Session(engine) as session:
            store.append(session, AnyVersion(), [make_event(name)])
            session.commit()

    def wait_for_polls(self, engine: Engine) -> None:
        """Wait until the command has looked for new events at least once, from beginning to end."""
        ended = text(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'follower' AND state = 'idle' "
            "AND query = 'COMMIT' AND query_start > :now"
        )
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for _ in range(2):  # the first one may have begun before
                now = {"now": connection.scalar(text("SELECT clock_timestamp()"))}
                wait_until(lambda now=now: connection.scalar(ended, now))

    @pytest.mark.parametrize("is_open_at_start", [False, True])
    def test_new_events_in_the_order_of_the_log(
        self, start: Any, engine: Engine, store: EventStore, is_open_at_start: bool
    ):
        arguments = ("--limit", "1", "--type", "UserRegistered", "--type", "E0", "--json")
        with Session(engine) as slow:
            if not is_open_at_start:
                following = start(*arguments)
                lines = map(json.loads, following.stdout)
                assert next(lines)["global_position"] == 30
            store.append(slow, AnyVersion(), [make_event("slow")])
            self.append(engine, store, "fast")
            if is_open_at_start:
                following = start(*arguments)
                lines = map(json.loads, following.stdout)
                assert next(lines)["global_position"] == 30
            self.wait_for_polls(engine)
            slow.commit()
        self.append(engine, store, "later")
        assert [next(lines)["aggregate_id"] for _ in range(3)] == ["slow", "fast", "later"]
        following.send_signal(signal.SIGINT)
        _, messages = following.communicate(timeout=patiently(30))
        assert following.returncode == 130
        assert messages.endswith("pupsourcing-sa: interrupted\n")
        assert messages.startswith("note: ") is is_open_at_start

    def test_all_events_after_a_position(self, start: Any, engine: Engine, store: EventStore):
        following = start("--after", "5")
        assert [int(next(following.stdout).split()[0]) for _ in range(25)] == list(range(6, 31))
        self.append(engine, store, "new")
        assert "User new #1" in next(following.stdout)

    def test_a_closed_pipe_ends_it(self, start: Any, engine: Engine, store: EventStore):
        following = start("--limit", "1")
        assert next(following.stdout).split()[0] == "30"
        following.stdout.close()
        self.append(engine, store, "new")
        assert following.wait(timeout=patiently(30)) == 0
        assert following.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--since", "2026-01-02"], "--since: must have a time zone, such as 2026-01-02T03:04:05Z"),
        (["list", "--until", "soon"], "--until: must be a time in ISO 8601, such as 2026-01-02T03:04:05Z, not 'soon'"),
        (
            ["list", "--since", "2026-01-02T00:00Z", "--until", "2026-01-02T00:00Z"],
            "--since must be before --until",
        ),
        (["list", "--follow", "--until", "2026-01-02T00:00Z"], "--until does not apply to --follow"),
        (["list", "--follow", "--after", "1", "--limit", "1"], "--limit does not apply to --follow with --after"),
        (["list", "--limit", "-1"], "--limit: must be from 0 to 100,000, not -1"),
        (["show", "first"], "EVENT: must be a position, such as 4711, or an event_id, not 'first'"),
        (["show", "0"], "EVENT: must be a position"),
        (["list", "--database-url", ""], "no database is given. Use --database-url, or set DATABASE_URL"),
    ],
)
def test_wrong_usage(command: Command, arguments: list[str], message: str):
    done = command("events", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_no_tables(command: Command):
    for arguments in (["list"], ["show", "1"]):
        done = command("events", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert "run your migrations" in done.stderr
        assert "--schema" in done.stderr
