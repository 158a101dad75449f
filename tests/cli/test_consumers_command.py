"""The commands ``pupsourcing-sa consumers remove`` and ``adopt-log``."""

from __future__ import annotations

import json

from sqlalchemy import text

from tests.fix_command import Command
from tests.fix_worker import Fleet


def test_from_a_note_to_nothing(sync_fleet: Fleet, command: Command):
    fleet = sync_fleet
    fleet.append(3)
    fleet.worker(fleet.see("one off", partitions=2)).drain()
    fleet.start(fleet.worker(fleet.see("good")))
    fleet.wait(lambda: fleet.seen("good") == [1, 2, 3])

    done = command("status")
    assert (done.returncode, done.stdout.splitlines()[:2]) == (
        0,
        [
            "ok: no problems found",
            "note: consumer 'one off' is not running; it was stopped in an orderly way. If it was removed from the "
            "code, run pupsourcing-sa consumers remove 'one off'",
        ],
    )
    assert any("one off" in line and "stopped" in line for line in done.stdout.splitlines())
    found = json.loads(command("status", "--json").stdout)
    assert [consumer["is_stopped"] for consumer in found["consumers"]] == [False, True]
    assert len(found["notes"]) == 1

    schema = fleet.query("SELECT current_schema()")[0][0]
    done = command("consumers", "remove", "one off", "--dry-run")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            "remove one off: dry run, nothing was changed",
            "before: 2 checkpoints, 0 assignments",
            f"  partition 0: position 3, log {schema}.events",
            f"  partition 1: position 3, log {schema}.events",
            "after: 0 checkpoints, 0 assignments",
        ],
    )
    result = json.loads(command("consumers", "remove", "one off", "--actor", "ann", "--json").stdout)
    assert (result["dry_run"], len(result["before"]["checkpoints"])) == (False, 2)
    assert fleet.query("SELECT actor, operation FROM consumer_operations") == [("ann", "remove")]
    assert "one off" not in command("status").stdout
    done = command("consumers", "remove", "good")
    assert done.returncode == 1
    assert "remove of consumer 'good' is refused: running nodes have it" in done.stderr


def test_a_renamed_log(sync_fleet: Fleet, command: Command):
    fleet = sync_fleet
    fleet.append(1)
    fleet.worker(fleet.see("all")).drain()
    fleet.query("ALTER TABLE events RENAME TO journal", commit=True)
    done = command("consumers", "adopt-log", "all", "--events", "journal")
    assert done.returncode == 0, done.stderr
    with fleet.engine.connect() as connection:
        assert str(connection.scalar(text("SELECT log FROM consumer_checkpoints"))).endswith(".journal")
    assert command("consumers", "adopt-log", "all").returncode == 1  # there is no such log
    assert command("consumers", "adopt-log").returncode == 2
    assert "no database is given" in command("consumers", "remove", "a", env={"DATABASE_URL": ""}).stderr
