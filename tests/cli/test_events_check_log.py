"""``pupsourcing-sa events check`` with a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventRegistry, EventStore
from pupsourcing_sa.store import log_check
from pupsourcing_sa.store.log_check import LogCheck
from tests.fix_command import Command
from tests.fix_store import NAMES, make_event, make_named_tables, make_tables

CLASSES = """
from dataclasses import dataclass
from pupsourcing_sa import EventRegistry

events = EventRegistry()

@events.register("Placed", version=2)
@dataclass
class Placed:
    amount: int

    def __post_init__(self):
        if self.amount == 666:
            raise KeyError("secret")

@events.upcast("Placed", from_version=1)
def _(old):
    return {"amount": old["total"]}

events.retire("Archived")
"""

EVENTS: list[tuple[str, int, object]] = [
    ("Placed", 1, {"total": 1}),
    ("Placed", 2, {"amount": 2}),
    ("Placed", 2, {"amount": "secret"}),
    ("Archived", 1, {"secret": "secret"}),
    ("Moved", 1, {"secret": "secret"}),
    ("Placed", 1, {"secret": "secret"}),
    ("Placed", 1, b"secret"),
    ("Placed", 3, {"amount": "secret"}),
    ("Moved", 1, {"secret": "secret"}),
    ("Placed", 2, {"amount": 666}),
    ("Placed", 1, {"total": 4}),
]


def append(engine: Engine, store: EventStore, events: Any) -> None:
    with Session(engine) as session:
        for number, (event_type, version, payload) in enumerate(events, 1):
            event = make_event(event_type=event_type, event_version=version, payload=payload, event_id=UUID(int=number))
            store.append(session, AnyVersion(), [event])
        session.commit()


@pytest.fixture
def store(engine: Engine) -> EventStore:
    return EventStore(make_tables(engine))


@pytest.fixture(autouse=True)
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application, and limits so small that a log of few events has several parts."""
    (tmp_path / "shop.py").write_text(CLASSES)
    for name, value in {"_CHUNK": 3, "_FETCH": 2, "_PAGE": 3}.items():
        monkeypatch.setattr(log_check, name, value)


def url_of(engine: Engine) -> list[str]:
    return ["--registry", "shop:events", "--database-url", engine.url.render_as_string(hide_password=False)]


@pytest.mark.parametrize("option", [["--all"], []])
def test_what_cannot_be_read(command: Command, engine: Engine, store: EventStore, option: list[str]):
    append(engine, store, EVENTS)
    done = command("events", "check", *url_of(engine), *option)
    assert (done.returncode, done.stdout.splitlines()) == (
        1,
        [
            f"problem: Moved v1 at position 5 ({UUID(int=5)}): event type 'Moved' is not registered; register its "
            "class, or retire it",
            "problem: Moved v1: 1 more events",
            f"problem: Placed v1 at position 6 ({UUID(int=6)}): the upcaster of Placed from version 1 raised KeyError",
            f"problem: Placed v1 at position 7 ({UUID(int=7)}): the payload is not JSON, which upcasters need",
            f"problem: Placed v2 at position 3 ({UUID(int=3)}): $.amount: Expected `int`, got `str`",
            f"problem: Placed v2 at position 10 ({UUID(int=10)}): the class or its codec raised KeyError",
            f"problem: Placed v3 at position 8 ({UUID(int=8)}): there is no upcaster of 'Placed' from version 3 to 2; "
            "deploy the code that wrote it",
            "log: 11 events",
            "  Archived v1: 1 events, retired",
            "  Moved v1: 2 events, 2 failed",
            "  Placed v1: 4 events, 2 decoded, 2 failed",
            "  Placed v2: 3 events, 1 decoded, 2 failed",
            "  Placed v3: 1 events, 1 failed",
            "failed: 4 problems",
        ],
    )
    assert "reading the log" in done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_a_log_that_can_be_read_and_a_file(command: Command, engine: Engine):
    store = EventStore(make_named_tables(engine, "custom"))
    append(engine, store, [EVENTS[0], EVENTS[1], EVENTS[10]])
    names = [text for name, value in NAMES["custom"].items() for text in (f"--{name.replace('_', '-')}", value)]
    counts = ["log: 3 events", "  Placed v1: 2 events, 1 decoded", "  Placed v2: 1 events, 1 decoded"]
    done = command("events", "check", *url_of(engine), *names, "--sample", "1")
    assert (done.returncode, done.stdout.splitlines()) == (0, [*counts, "ok: no problems found"])

    assert command("events", "snapshot", "--registry", "shop:events", "-o", "events.json").returncode == 0
    file = Path("events.json")
    file.write_text(file.read_text().replace('"amount": 1', '"amount": "1"'))
    done = command("events", "check", *url_of(engine), *names, "--sample", "1", "events.json")
    assert (done.returncode, done.stdout.splitlines()[1:]) == (1, [*counts, "failed: 1 problems"])
    # DATABASE_URL, which the fixture sets, does not select a log.
    done = command("events", "check", "--registry", "shop:events", "events.json")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 2)


def test_many_undecodable_events_are_counted(command: Command, engine: Engine, store: EventStore):
    append(engine, store, [("Placed", 1, {})] * 13)
    commits: list[Connection] = []
    note_commit = commits.append
    event.listen(Engine, "commit", note_commit)
    try:
        done = command("events", "check", *url_of(engine))
    finally:
        event.remove(Engine, "commit", note_commit)
    assert len(commits) > 13 // 3 + 13 // 2, "each part of the log is read in a transaction of its own"
    assert [line.startswith("problem: Placed v1 at") for line in done.stdout.splitlines()[:11]] == [True] * 10 + [False]
    assert done.stdout.splitlines()[10:] == [
        "problem: Placed v1: 3 more events",
        "log: 13 events",
        "  Placed v1: 13 events, 0 decoded, 13 failed",
        "failed: 1 problems",
    ]


class _Recording(EventRegistry):
    """A registry that counts the payloads that it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: Counter[bytes] = Counter()

    def decode(self, event_type: str, event_version: int, payload: bytes) -> tuple[Any, ...]:
        self.decoded[payload] += 1
        return super().decode(event_type, event_version, payload)


def test_every_event_may_be_in_the_sample(engine: Engine, store: EventStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_check, "_CHUNK", 10)
    append(
        engine, store, [("Placed", 1, {"n": n}) for n in range(20)] + [("Moved", 1, {"n": -1 - n}) for n in range(2)]
    )
    registry = _Recording()
    for name in ("Placed", "Moved"):
        registry.register(name)(make_dataclass(name, [("n", int)]))
    runs = 100
    for _ in range(runs):
        before = registry.decoded.copy()
        LogCheck(store.reader, registry, engine.begin).sample(4)
        drawn = registry.decoded - before
        assert sorted(drawn.values()) == [1] * 6, "four of one type, and the two of the other one"
    assert len(registry.decoded) == 22, "the probability that one was never drawn is 4e-9"


@pytest.mark.parametrize("is_all", [False, True])
def test_it_holds_nothing_up_and_sees_events_above_the_stable_position(engine: Engine, store: EventStore, is_all: bool):
    append(engine, store, [("Placed", 1, {})] * 9)
    progress: list[tuple[int, int]] = []

    @contextmanager
    def begin() -> Iterator[Connection]:
        with checking.begin():
            yield checking

    def on_progress(position: int, end: int) -> None:
        progress.append((position, end))
        with engine.begin() as other:
            held = text(
                "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) "
                "WHERE pid = :pid AND (state <> 'idle' OR backend_xmin IS NOT NULL)"
            )
            assert other.scalar(held, {"pid": pid}) == 0

    with engine.connect() as checking, Session(engine) as unfinished, Session(engine) as session:
        store.append(unfinished, AnyVersion(), [make_event("open")])
        store.append(session, AnyVersion(), [make_event("closed")])
        session.commit()
        pid = checking.scalar(text("SELECT pg_backend_pid()"))
        checking.rollback()
        check = LogCheck(store.reader, EventRegistry(), begin, on_progress)
        types = check.every() if is_all else check.sample(2)
    assert sum(stored.count for stored in types) == 10
    assert [position for position, _ in progress][:4] == [3, 6, 9, 11]
    assert {end for _, end in progress} == {11}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "name a FILE, the --database-url of a log, or both"),
        (["--all", "--sample", "5", "events.json"], 2, "--all decodes every event. Leave out --sample"),
        (["--sample", "0", "events.json"], 2, "--sample: must be from 1 to 100,000, not 0"),
        (["--database-url", "postgresql://localhost:1/none"], 1, "connection"),
        (["--database-url", ""], 2, "no database is given"),
    ],
)
def test_wrong_usage(command: Command, arguments: list[str], status: int, message: str):
    done = command("events", "check", "--registry", "shop:events", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_tables_and_an_empty_log(command: Command, engine: Engine):
    done = command("events", "check", *url_of(engine))
    assert (done.returncode, done.stdout) == (1, "")
    assert "run your migrations" in done.stderr
    make_tables(engine)
    for option in ([], ["--all"]):
        done = command("events", "check", *url_of(engine), *option)
        assert (done.returncode, done.stdout) == (0, "log: 0 events\nok: no problems found\n")
