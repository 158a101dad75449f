"""``pupsourcing-sa status``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, func, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, EventTables, WorkerTables
from pupsourcing_sa.worker import Status, read_status
from tests.fix_command import COMMAND, Command, Result
from tests.fix_postgres import new_schema
from tests.fix_store import make_event

CUSTOM = {
    "events": "the.events",
    "worker_nodes": "nodes",
    "consumer_assignments": "assignments",
    "consumer_checkpoints": "%s",
}


class Group:
    """The tables of a group of workers. The tests write the rows that workers would write."""

    def __init__(self, engine: Engine, schema: str | None = None, events: str = "events", **names: str) -> None:
        self.engine = engine
        self.store = EventStore(EventTables(schema=schema, events=events))
        self.tables = WorkerTables(self.store.tables.metadata, schema=schema, **names)
        self.tables.metadata.create_all(engine)

    def append(self, number: int) -> None:
        with Session(self.engine) as session:
            for count in range(number):
                self.store.append(session, AnyVersion(), [make_event(f"u{count}")])
            session.commit()

    # The last heartbeat lies ahead by default: on a busy machine a status may take longer than the timeout.
    def node(self, *consumers: str, silent_for: float = -600, hostname: str = "host", **more: Any) -> UUID:
        values = {"worker_id": uuid4(), "hostname": hostname, "pid": 7, "consumers": list(consumers)} | more
        self._insert("worker_nodes", **values, heartbeat_at=func.now() - timedelta(seconds=silent_for))
        return values["worker_id"]

    def partition(self, name: str, node: UUID | None, partition: int = 0, **checkpoint: Any) -> None:
        key = {"consumer_name": name, "partition": partition}
        self._insert("consumer_assignments", **key, worker_id=node)
        self._insert("consumer_checkpoints", **key, **checkpoint)

    def _insert(self, table: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(getattr(self.tables, table).insert().values(values))


@pytest.fixture
def group(engine: Engine) -> Group:
    return Group(engine)


def test_no_problems(command: Command, group: Group):
    group.append(1_234)
    node = group.node("orders", "mails")
    group.partition("orders", node, last_position=1_200)
    group.partition("mails", node, last_position=1_234)
    done = command("status")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["ok:", "no", "problems", "found"]
    assert lines[2][:7] == ["log:", "last", "position", "1,234,", "stable", "position", "1,234,"]
    short = str(node)[:8]
    assert ["mails", "0", short, "1,234", "0", "assigned"] in lines
    (orders,) = (line for line in lines if line[:1] == ["orders"])
    assert orders[1:5] == ["0", short, "1,200", "34"]
    (host,) = (line for line in lines if line[:1] == [short])
    assert host[1:3] == ["host", "7"]
    assert host[-2:] == ["2", "2"]


def test_batches_that_run_and_nodes_that_died(command: Command, group: Group):
    group.append(3)
    batch = {"consumer": "or\x1b[2Jders", "partition": 1, "position": 2, "seconds": 12.5}
    node = group.node("orders", running={"batches": [batch]})
    group.partition("orders", node, last_position=1, deaths=4)
    done = command("status")
    assert done.returncode == 3
    assert done.stdout.startswith("problem: 4 nodes died while they processed consumer 'orders' partition 0")
    assert f"or\\x1b[2Jders/1: event 2, for 12 s at the last heartbeat of node {str(node)[:8]}" in done.stdout
    assert json.loads(command("status", "--json").stdout)["nodes"][0]["batches"] == [batch]


def test_each_statement_sees_the_current_state(
    command: Command, engine: Engine, group: Group, monkeypatch: pytest.MonkeyPatch
):
    levels = []

    def read(connection: Connection, *arguments: Any, **options: Any) -> Status:
        levels.append(connection.scalar(text("SHOW transaction_isolation")))
        return read_status(connection, *arguments, **options)

    monkeypatch.setattr("pupsourcing_sa.cli._status.read_status", read)
    options = f"{engine.url.query['options']} -cdefault_transaction_isolation=serializable"
    url = engine.url.update_query_dict({"options": options}).render_as_string(hide_password=False)
    assert command("status", "--database-url", url).returncode == 0
    assert levels == ["read committed"]


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["encoding", "locale"],
)
def test_a_terminal_that_has_only_ascii(process: Callable[..., Result], group: Group, environment: dict[str, str]):
    group.partition("größe→", group.node("größe→"))
    done = process("status", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"gr\xf6\xdfe\u2192" in done.stdout
    assert process("status", "--json", env=environment).returncode == 0


def test_a_script_is_exact_or_is_not_printed(process: Callable[..., Result]):
    script = process("sql", "--events", "größe", env={"PYTHONIOENCODING": "ascii"})
    assert (script.returncode, script.stdout) == (2, "")
    assert r"cannot print '\xf6', because its encoding is ascii; set PYTHONIOENCODING=utf-8" in script.stderr


def test_nothing_to_show(command: Command, group: Group):
    done = command("status")
    assert done.returncode == 0
    assert "no nodes" in done.stdout
    assert "no consumers" in done.stdout


def test_problems_come_first(command: Command, group: Group):
    group.append(3)
    node, silent = group.node("orders"), group.node(silent_for=30)
    failure = {"failed_position": 2, "attempts": 4, "failed_at": func.now() - timedelta(seconds=30)}
    error = "Traceback (most recent call last):\n  File x\nValueError: [red]no[/nothing] \x1b]0;title\x07"
    group.partition("orders", node, 0, last_position=1, **failure, error=error)
    group.partition("orders", None, 1)
    group.partition("or[bold]", None, 0)
    done = command("status", "--max-lag-events", "2")
    assert (done.returncode, done.stderr) == (3, "")
    lines = done.stdout.splitlines()
    assert [line.startswith("problem: ") for line in lines[:8]] == [True] * 6 + [False, False], done.stdout
    assert f"no heartbeat from node {silent} (host, pid 7) for 3" in lines[0]
    assert "consumer 'or[bold]' has no running node" in lines[1]
    assert "consumer 'or[bold]' partition 0 is 3 events behind (limit 2)" in lines[2]
    assert "consumer 'orders' partition 1 is not assigned to a node" in lines[3]
    assert "consumer 'orders' partition 0 is failing on event 2 (UserRegistered" in lines[4]
    assert lines[4].endswith(r"attempts 4: ValueError: [red]no[/nothing] \x1b]0;title\x07; the worker will retry")
    assert "consumer 'orders' partition 1 is 3 events behind (limit 2)" in lines[5]
    assert "orders/0: event 2 (UserRegistered" in done.stdout
    assert re.search(r"attempts 4, last failure \d\d s ago\n  ValueError: \[red\]no", done.stdout)
    assert "or[bold] " in done.stdout

    assert command("status", "--heartbeat-timeout", "100").stdout.splitlines()[0].startswith("problem: consumer")


def test_json(command: Command, group: Group, monkeypatch: pytest.MonkeyPatch):
    """JSON does not need rich."""
    group.append(2)
    node = group.node("orders")
    group.partition("orders", node, last_position=1)
    group.partition("mails", None, last_position=2)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    done = command("status", "--json")
    assert (done.returncode, done.stderr) == (3, "")
    found = json.loads(done.stdout)
    assert [finding["kind"] for finding in found["findings"]] == ["no_node_for_consumer"]
    assert (found["last_position"], found["stable_position"], found["blocking"]) == (2, 2, [])
    assert found["nodes"][0]["worker_id"] == str(node)
    assert [consumer["name"] for consumer in found["consumers"]] == ["mails", "orders"]
    assert found["consumers"][1]["partitions"][0]["lag_events"] == 1
    missing = command("status")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "pip install 'pupsourcing-sa[cli]'" in missing.stderr


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_closed_pipe_does_not_change_the_exit_status(group: Group, options: list[str]):
    group.partition("orders", None)
    environment = os.environ | {"DATABASE_URL": group.engine.url.render_as_string(hide_password=False)}
    process = subprocess.Popen(
        [COMMAND, "status", *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert (stderr.read(), process.wait()) == (b"", 3)


def test_what_holds_the_stable_position_back(command: Command, group: Group):
    with Session(group.engine) as session:
        group.store.append(session, AnyVersion(), [make_event("slow")])
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        group.append(1)
        within = command("status")
        assert within.returncode == 0
        assert f"by pid {pid}" in within.stdout
        assert f"  to end it: SELECT pg_terminate_backend({pid})\n" in within.stdout
        held = command("status", "--max-stall-seconds", "0.000001")
        assert held.returncode == 3
        assert held.stdout.startswith("problem: the stable position has been stalled at 0 for ")
        as_json = json.loads(command("status", "--json").stdout)
        assert as_json["blocking"][0]["pid"] == pid
        assert as_json["blocking"][0]["age"] > 0
        assert as_json["held_back_seconds"] > 0


def test_what_keeps_a_node_from_its_partition(command: Command, group: Group):
    node = group.node("orders")
    group.partition("orders", node, updated_at=func.now() - timedelta(minutes=5))
    with group.engine.connect() as connection:
        connection.execute(text("SET application_name = 'a[bold] tool'"))
        connection.execute(text("UPDATE consumer_checkpoints SET attempts = 0"))
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        within = command("status")
        assert (within.returncode, within.stderr) == (0, "")
        assert ["orders", "0", str(node)[:8], "0", "0", "locked"] in [
            line.split() for line in within.stdout.splitlines()
        ]
        assert re.search(rf"Locks\norders/0: locked for up to .*, by pid {pid} 'a\[bold\] tool', ", within.stdout)
        assert f"  to end it: SELECT pg_terminate_backend({pid})\n" in within.stdout
        locked = command("status", "--max-lock-seconds", "0.000001")
        assert locked.returncode == 3
        assert locked.stdout.startswith("problem: consumer 'orders' partition 0 has been locked for ")
        as_json = json.loads(command("status", "--json").stdout)
        ((partition,),) = (consumer["partitions"] for consumer in as_json["consumers"])
        assert (partition["locked_by"]["pid"], partition["locked_by"]["state"]) == (pid, "idle in transaction")
        assert partition["locked_by"]["age"] >= partition["locked_seconds"] > 0
    after = command("status")
    assert "Locks" not in after.stdout
    assert "assigned" in after.stdout


def test_a_checkpoint_of_another_log(command: Command, group: Group):
    group.append(3)
    group.partition("orders", group.node("orders"), last_position=3)
    with group.engine.begin() as connection:
        connection.execute(text("TRUNCATE events RESTART IDENTITY"))
    done = command("status")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("problem: consumer 'orders' is at position 3, but the log has only issued 0, ")
    assert "ahead of log" in done.stdout
    found = json.loads(command("status", "--json").stdout)
    assert [finding["kind"] for finding in found["findings"]] == ["ahead_of_log"]
    assert found["last_issued"] == 0
    with group.engine.begin() as connection:
        connection.execute(text("DELETE FROM consumer_checkpoints"))
    assert command("status").returncode == 0


def test_a_sequence_behind_the_log(command: Command, group: Group):
    group.append(3)
    with group.engine.begin() as connection:
        connection.execute(text("ALTER TABLE events ALTER global_position RESTART WITH 1"))
    done = command("status")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("problem: the sequence of events.global_position is behind the log, ")
    found = json.loads(command("status", "--json").stdout)
    assert [finding["kind"] for finding in found["findings"]] == ["sequence_behind_log"]
    assert found["log_problem"] == found["findings"][0]["message"]
    with group.engine.begin() as connection:
        connection.execute(text(found["log_problem"].partition("Run: ")[2]))
    assert command("status").returncode == 0


def test_limits_of_lag(command: Command, group: Group):
    group.append(2)
    group.partition("orders", group.node("orders"))
    assert command("status", "--max-lag-events", "2", "--max-lag-seconds", "600").returncode == 0
    assert command("status", "--max-lag-events", "1").returncode == 3
    old = command("status", "--max-lag-seconds", "0.000001")
    assert old.returncode == 3
    assert "s behind (limit 1e-06 s)" in old.stdout


def test_other_names(command: Command, engine: Engine):
    names = CUSTOM | {"schema": f"my shop {uuid4().hex}"}
    with new_schema(engine, names["schema"]):
        group = Group(engine, **names)
        group.append(1)
        group.partition("orders", group.node("orders"), last_position=1)
        options = [part for name, value in names.items() for part in (f"--{name.replace('_', '-')}", value)]
        done = command("status", *options)
    assert done.returncode == 0, done.stderr
    assert "log: last position 1, stable position 1" in done.stdout


@pytest.mark.parametrize("width", [80, 160])
def test_a_narrow_console_shows_everything(command: Command, group: Group, width: int):
    node = group.node(hostname="worker-7f9c6d5b4-x2x8z.production.svc.cluster.example")
    name = "a_consumer_whose_name_is_quite_long_and_has_no_spaces_in_it_anywhere"
    group.partition(name, node, 12, last_position=123_456_789)
    done = command("status", env={"COLUMNS": str(width)})
    shown = done.stdout.split("\n\n", 1)[1]
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    cells = "".join(line.strip().split(" ")[0] for line in shown.splitlines())
    assert name in cells
    assert "…" not in done.stdout
    assert "123,456,789" in shown


def test_the_driver_of_the_application_does_not_matter(command: Command, group: Group):
    for driver in ("postgresql", "postgresql+psycopg2", "postgresql+asyncpg", "postgresql+psycopg_async"):
        url = group.engine.url.set(drivername=driver)
        if driver.endswith("asyncpg"):
            url = url.update_query_dict({"ssl": "disable"})
        done = command("status", "--database-url", url.render_as_string(hide_password=False))
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-lag-events", "-1"], "--max-lag-events: must be from 0 to 9,223,372,036,854,775,806, not -1"),
        (["--max-lag-events", str(2**63)], "--max-lag-events: must be from 0 to"),
        (["--max-lag-events", "x"], "--max-lag-events: must be a whole number, not 'x'"),
        (
            ["--max-lag-seconds", "nan"],
            "--max-lag-seconds: must be a number of seconds greater than 0, not nan",
        ),
        (
            ["--heartbeat-timeout", "0"],
            "--heartbeat-timeout: must be a number of seconds greater than 0 and at most 1,000,000, not 0",
        ),
        (["--heartbeat-timeout", "2e6"], "--heartbeat-timeout: must be a number of seconds greater than 0 and at most"),
        (["--timeout", "soon"], "--timeout: must be a number of seconds, not 'soon'"),
        (["--database-url", "mysql://u:secret@h/d"], "must be a postgresql URL, not mysql://u:***@h/d"),
        (["--database-url", "postgresql://host:port/d"], "--database-url or DATABASE_URL: invalid literal for int()"),
        (["--database-url", ""], "Use --database-url, or set DATABASE_URL"),
        (["--worker-nodes", "events"], "choose another name"),
        (["--events", ""], "events must be a table name"),
    ],
)
def test_wrong_usage(command: Command, arguments: list[str], message: str):
    done = command("status", *arguments, env={"DATABASE_URL": ""} if "" in arguments else {})
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_does_not_answer(command: Command, engine: Engine):
    away = command("status", "--json", "--database-url", "postgresql://nobody@127.0.0.1:1/x")
    assert (away.returncode, away.stdout) == (1, "")
    assert "connection" in away.stderr
    without_log = command("status")
    assert (without_log.returncode, without_log.stdout) == (1, "")
    assert "there is no table events" in without_log.stderr
    group = Group(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE worker_nodes CASCADE"))
    without_workers = command("status")
    assert without_workers.returncode == 1
    assert "there is no table worker_nodes" in without_workers.stderr
    assert "run your migrations" in without_workers.stderr
    assert "to this command as options, such as --schema" in without_workers.stderr
    group.tables.metadata.create_all(engine)
    with engine.begin() as connection:  # like a migration that is running
        connection.execute(text("LOCK TABLE worker_nodes IN ACCESS EXCLUSIVE MODE"))
        waiting = command("status", "--timeout", "0.3")
    assert (waiting.returncode, waiting.stdout) == (1, "")
    assert "statement timeout" in waiting.stderr
    for done in (away, without_log, without_workers, waiting):
        assert "Traceback" not in done.stderr
