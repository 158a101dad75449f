"""The problems in a status, and their messages."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from pupsourcing_sa.errors import ReplicatedLogError, SequenceBehindLogError
from pupsourcing_sa.status.descriptions import cause_of, describe_event, describe_transaction, how_to_end
from pupsourcing_sa.status.findings import Finding, StatusLimits, diagnose, notes
from pupsourcing_sa.status.model import ConsumerStatus, FailingEvent, NodeStatus, PartitionStatus, Status
from pupsourcing_sa.store.positions import BlockingAppend, LockHolder

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ALIVE = NodeStatus(UUID(int=1), "h1", 11, ("a", "b"), LONG_AGO, 1.0, is_silent=False)
SILENT = NodeStatus(UUID(int=2), "h2", 12, ("a",), LONG_AGO, 61.0, is_silent=True)
WELL = PartitionStatus(0, ALIVE.worker_id, 10, 0, True, 0.0, None, None, 0.0)
FAILING = FailingEvent(
    7,
    UUID(int=7),
    "Placed",
    "Traceback (most recent call last):\n  File …\nValueError: no",
    3,
    LONG_AGO,
    LONG_AGO,
    None,
)
HOLDER = BlockingAppend(
    4711, None, "app", "shop", "idle in transaction", timedelta(seconds=75), "INSERT  INTO\nx", mark=5
)
PSQL = LockHolder(4712, None, "app", "psql", "idle in transaction", timedelta(seconds=75), "update  x")
LOCKED = replace(WELL, locked_by=PSQL, locked_seconds=65.0)


def consumer(*parts: PartitionStatus, name: str = "a", live_nodes: int = 1, is_stopped: bool = False) -> ConsumerStatus:
    return ConsumerStatus(name, live_nodes, parts, is_stopped)


STOPPED = consumer(replace(WELL, failing=FAILING, lag_events=9), name="old one", live_nodes=0, is_stopped=True)


def status_of(*consumers: ConsumerStatus, nodes: tuple[NodeStatus, ...] = (ALIVE,), **given: Any) -> Status:
    values = {"taken_at": LONG_AGO, "last_position": 10, "last_issued": 10, "stable_position": 10}
    values |= {"held_back_seconds": 0.0, "blocking": ()}
    return Status(**(values | given), nodes=nodes, consumers=consumers)


def test_notes():
    (note,) = notes(status_of(STOPPED, consumer(WELL)))
    assert note.startswith("consumer 'old one' is not running; it was stopped in an orderly way.")
    assert note.endswith("run pupsourcing-sa consumers remove 'old one'")
    assert notes(status_of(STOPPED, nodes=())) == []


class TestDiagnosis:
    @pytest.mark.parametrize(
        ("status", "limits", "kinds"),
        [
            (status_of(nodes=()), {}, []),  # nothing to run
            (status_of(log_problem=SequenceBehindLogError("events")), {}, ["sequence_behind_log"]),
            (status_of(log_problem=ReplicatedLogError("events")), {}, ["replicated_log"]),
            (status_of(), {}, []),
            (status_of(consumer(WELL)), {}, []),
            (status_of(consumer(WELL, live_nodes=0), nodes=()), {}, ["no_node"]),
            (status_of(consumer(replace(WELL, worker_id=None), live_nodes=0), nodes=()), {}, ["no_node"]),
            (status_of(consumer(WELL, live_nodes=0), nodes=(SILENT,)), {}, ["no_node", "silent_node"]),
            (status_of(nodes=(SILENT,)), {}, ["silent_node"]),
            (status_of(consumer(WELL), nodes=(ALIVE, SILENT)), {}, ["silent_node"]),
            (status_of(consumer(WELL, name="c", live_nodes=0)), {}, ["no_node_for_consumer"]),
            (status_of(consumer(replace(WELL, worker_id=None), live_nodes=0)), {}, ["no_node_for_consumer"]),
            (status_of(consumer(WELL, replace(WELL, worker_id=None))), {}, ["unassigned"]),
            (status_of(consumer(replace(WELL, failing=FAILING))), {}, ["failing"]),
            (status_of(consumer(replace(WELL, failing=replace(FAILING, parked_at=LONG_AGO)))), {}, ["parked"]),
            (status_of(consumer(replace(WELL, deaths=2, lag_events=1))), {}, ["nodes_died"]),
            (status_of(consumer(replace(WELL, deaths=1, lag_events=1))), {}, []),  # it may have had any reason
            (status_of(consumer(replace(WELL, deaths=9))), {}, []),  # it had no event to die of
            (
                status_of(consumer(replace(WELL, deaths=2, lag_events=1, failing=FAILING))),
                {},
                ["failing", "nodes_died"],
            ),
            (
                status_of(
                    consumer(replace(WELL, deaths=2, lag_events=1, failing=replace(FAILING, parked_at=LONG_AGO)))
                ),
                {},
                ["parked"],
            ),
            (status_of(consumer(replace(WELL, lag_events=9**9, lag_seconds=9e9))), {}, []),  # no limit was given
            (status_of(consumer(replace(WELL, lag_events=10))), {"max_lag_events": 10}, []),
            (status_of(consumer(replace(WELL, lag_events=11))), {"max_lag_events": 10}, ["lagging"]),
            (status_of(consumer(replace(WELL, lag_events=1))), {"max_lag_events": 0}, ["lagging"]),
            (status_of(consumer(replace(WELL, lag_seconds=2.0))), {"max_lag_seconds": 2.0}, []),
            (status_of(consumer(replace(WELL, lag_seconds=2.1))), {"max_lag_seconds": 2.0}, ["lagging"]),
            (status_of(blocking=(HOLDER,), held_back_seconds=60.0), {}, []),
            (status_of(blocking=(HOLDER,), held_back_seconds=60.1), {}, ["held_back"]),
            (status_of(blocking=(HOLDER,), held_back_seconds=60.1), {"max_stall_seconds": 61}, []),
            (status_of(blocking=(HOLDER,)), {}, []),  # it holds nothing back
            (status_of(consumer(LOCKED)), {}, ["locked"]),
            (status_of(consumer(replace(LOCKED, locked_seconds=60.0))), {}, []),
            (status_of(consumer(LOCKED)), {"max_lock_seconds": 66}, []),
            (status_of(consumer(replace(LOCKED, failing=FAILING))), {}, ["failing", "locked"]),
            (status_of(consumer(LOCKED, live_nodes=0), nodes=()), {}, ["no_node", "locked"]),
            (status_of(consumer(WELL), last_position=0, last_issued=10), {}, []),  # the newest events were deleted
            (status_of(consumer(WELL), last_position=9, last_issued=9), {}, ["ahead_of_log"]),
            (status_of(consumer(WELL), last_position=0, last_issued=0), {}, ["ahead_of_log"]),
            (status_of(STOPPED), {}, []),
            (status_of(STOPPED), {"max_lag_events": 1}, []),
            (status_of(STOPPED, last_issued=9), {}, ["ahead_of_log"]),
            (status_of(STOPPED, nodes=()), {}, ["no_node", "failing"]),
            (status_of(consumer(WELL, WELL), last_position=9, last_issued=9), {}, ["ahead_of_log"]),
            (status_of(consumer(WELL, live_nodes=0), nodes=(), last_issued=9), {}, ["no_node", "ahead_of_log"]),
            (
                status_of(
                    consumer(replace(WELL, failing=FAILING, worker_id=None, lag_events=5), live_nodes=0),
                    nodes=(SILENT,),
                    blocking=(HOLDER,),
                    held_back_seconds=75.0,
                ),
                {"max_lag_events": 1},
                ["no_node", "silent_node", "held_back", "failing", "lagging"],
            ),
        ],
    )
    def test_kinds(self, status: Status, limits: dict[str, Any], kinds: list[str]):
        findings = diagnose(status, StatusLimits(**limits))
        assert [finding.kind for finding in findings] == kinds
        assert all(len(finding.message.splitlines()) == 1 for finding in findings)

    def test_messages(self):
        status = status_of(
            consumer(
                replace(WELL, failing=FAILING, lag_events=12_001, is_lag_exact=False),
                replace(WELL, partition=1, worker_id=None),
                replace(WELL, partition=3, worker_id=None, lag_seconds=90.4),
                replace(LOCKED, partition=4),
                replace(WELL, partition=5, position=1_012),
                replace(WELL, partition=6, position=1_011),
                replace(WELL, partition=7, failing=replace(FAILING, parked_at=LONG_AGO)),
            ),
            consumer(WELL, name="b\n", live_nodes=0),
            nodes=(ALIVE, SILENT),
            blocking=(HOLDER,),
            held_back_seconds=75.0,
            stable_position=5,
        )
        assert [
            finding.message for finding in diagnose(status, StatusLimits(max_lag_events=12_000, max_lag_seconds=90))
        ] == [
            "no heartbeat from node 00000000-0000-0000-0000-000000000002 (h2, pid 12) for 61 s. Check the process "
            "and its connection to the database",
            "the stable position has been stalled at 5 for 75 s (limit 60 s) by pid 4711 'shop', role app, idle in "
            "transaction, started 75 s ago, last statement: INSERT INTO x; to end it: SELECT "
            "pg_terminate_backend(4711)",
            "consumer 'a' is at position 1012, but the log has only issued 10, so it will skip new events. The log was "
            "truncated with RESTART IDENTITY, or restored without the checkpoints. Stop the workers. Then delete the "
            "consumer's checkpoints and what it wrote, or restore both from the log's backup",
            "consumer 'a' partitions 1, 3 are not assigned to a node. If this lasts for more than a few seconds, "
            "check the logs of the workers",
            "consumer 'a' partition 0 is failing on event 7 (Placed 00000000-0000-0000-0000-000000000007), attempts "
            "3: ValueError: no; the worker will retry",
            "consumer 'a' partition 0 is at least 12,001 events behind (limit 12,000)",
            "consumer 'a' partition 3 is 90 s behind (limit 90 s)",
            "consumer 'a' partition 4 has been locked for 65 s (limit 60 s) by pid 4712 'psql', role app, idle in "
            "transaction, started 75 s ago, last statement: update x; to end it: SELECT pg_terminate_backend(4712)",
            "consumer 'a' partition 7 is parked on event 7 (Placed 00000000-0000-0000-0000-000000000007), attempts "
            "3: ValueError: no; fix the cause, then set parked_at in its row of consumer_checkpoints to NULL",
            "consumer 'b\\n' has no running node: the last one did not stop in an orderly way. Start a worker that "
            "includes it or, if the consumer was removed from the code, run pupsourcing-sa consumers remove 'b '",
        ]
        assert diagnose(status_of(consumer(WELL), nodes=())) == [
            Finding("no_node", "no node is running: none of 1 consumers is processed. Start a worker")
        ]

    @pytest.mark.parametrize("holder", [HOLDER, PSQL])
    def test_a_prepared_transaction_is_ended_by_its_id(self, holder: LockHolder):
        prepared = replace(holder, pid=None, gid="it's", state="prepared", application_name=None, query=None)
        assert describe_transaction(prepared) == 'prepared transaction "it\'s", role app, prepared 75 s ago'
        assert how_to_end(prepared) == "COMMIT PREPARED or ROLLBACK PREPARED 'it''s'"

    def test_a_role_that_may_not_see_whose_transaction_it_is(self):
        hidden = LockHolder(4711, None, None, None, None, None, None)
        assert describe_transaction(hidden) == "pid 4711"

    def test_an_event_that_is_not_known(self):
        assert describe_event(replace(FAILING, position=None)) == "no recorded event"
        assert describe_event(replace(FAILING, event_id=None, event_type=None)) == "event 7, attempts 3"


def raise_plainly() -> None:
    raise ValueError("first line\nsecond: line")


def raise_from_another() -> None:
    try:
        raise KeyError("cause")
    except KeyError as error:
        raise RuntimeError("effect") from error


def raise_with_a_note() -> None:
    error = ValueError("noted")
    error.add_note("Note: this")
    raise error


def raise_group() -> None:
    raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])


@pytest.mark.parametrize(
    ("fail", "cause"),
    [
        (raise_plainly, "ValueError: first line"),
        (raise_from_another, "RuntimeError: effect"),
        (raise_with_a_note, "ValueError: noted"),
        (raise_group, "TypeError: two"),
    ],
)
def test_the_cause_is_found_in_a_traceback(fail: Callable[[], None], cause: str):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        fail()
    error = "".join(traceback.format_exception(caught.value))
    assert cause_of(replace(FAILING, error=error)) == cause


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (None, "no error is recorded"),
        ("", "no error is recorded"),
        ("written by hand\nmore", "written by hand"),
        ("bad \x1b[31m\x07 text", r"bad \x1b[31m\x07 text"),
        ("x" * 500, "x" * 199 + "…"),
    ],
)
def test_the_cause_in_other_texts(error: str | None, cause: str):
    assert cause_of(replace(FAILING, error=error)) == cause
