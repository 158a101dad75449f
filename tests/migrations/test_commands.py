"""The commands for migrations: ``pupsourcing-sa init``, ``template-path`` and ``sql``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import MetaData
from sqlalchemy.dialects.postgresql import JSONB

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.migrations import sql_script, template_directory
from tests.fix_alembic import Project
from tests.fix_command import COMMAND, Command


@pytest.mark.parametrize(("options", "driver"), [([], "psycopg"), (["--async"], "asyncpg")])
def test_from_nothing_to_the_tables(project: Project, command: Command, options: list[str], driver: str) -> None:
    project.url = project.url.replace("+psycopg", f"+{driver}")
    done = command("init", *options, "migrations")
    assert done.returncode == 0, done.stderr
    assert "alembic.ini" in done.stdout
    project.alembic("revision", "--autogenerate", "-m", "event log")
    project.alembic("upgrade", "head")
    project.alembic("check")
    assert {"events", "aggregate_heads", "consumer_checkpoints"} <= {name for name, _ in project.objects()}


def test_a_directory_that_is_not_empty(command: Command, tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "file").touch()
    done = command("init", "migrations")
    assert done.returncode == 2
    assert done.stderr == "pupsourcing-sa: Directory migrations already exists and is not empty\n"


def test_a_directory_that_cannot_be(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command("init", "file/migrations")
    assert done.returncode == 2
    assert "file/migrations" in done.stderr
    assert "Traceback" not in done.stderr


def test_init_without_alembic(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['alembic'] = None; from pupsourcing_sa.cli import main; "
        "main(['template-path', 'sync']);"
        "sys.exit(main(['init', 'migrations']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == f"{template_directory()}\n"
    assert done.stderr == "pupsourcing-sa: alembic is not installed: pip install 'pupsourcing-sa[alembic]'\n"


@pytest.mark.parametrize("template", ["sync", "async"])
def test_template_path(command: Command, template: str) -> None:
    assert command("template-path", template).stdout == f"{template_directory(template)}\n"


def test_an_unknown_template(command: Command) -> None:
    done = command("template-path", "generic")
    assert done.returncode == 2
    assert "must be sync or async, not 'generic'" in done.stderr


class TestSQL:
    def test_everything(self, command: Command, project: Project) -> None:
        done = command("sql")
        metadata = MetaData()
        assert done.stdout == sql_script(EventTables(metadata), WorkerTables(metadata))
        project.execute(done.stdout)
        made = project.objects()
        metadata.drop_all(project.database)
        metadata.create_all(project.database)
        assert project.objects() == made

    def test_names_of_ones_own(self, command: Command) -> None:
        arguments = ["--schema", "shop", "--events", "journal", "--aggregate-heads", "heads", "--payload", "jsonb"]
        done = command("sql", *arguments, "--guarded", "--only", "store")
        tables = EventTables(schema="shop", events="journal", aggregate_heads="heads", payload=JSONB, guarded=True)
        assert done.stdout == sql_script(tables)

    def test_the_workers_own(self, command: Command) -> None:
        done = command("sql", "--only", "worker", "--worker-nodes", "n", "--consumer-assignments", "a")
        assert done.stdout == sql_script(WorkerTables(worker_nodes="n", consumer_assignments="a"))
        assert "CREATE TABLE IF NOT EXISTS n (" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--schema", ""], "schema must be a schema name of 1 to 63 bytes"),
            (
                ["--only", "store", "--worker-nodes", "n"],
                "--worker-nodes applies to tables that --only store leaves out",
            ),
            (["--only", "worker", "--payload", "jsonb"], "--payload applies to tables that --only worker leaves out"),
            (["--only", "worker", "--guarded"], "--guarded applies to tables that --only worker leaves out"),
            (["--events", ""], "events must be a table name of 1 to 63 bytes"),
            (["--events", "same", "--aggregate-heads", "same"], "must be different tables, not both 'same'"),
        ],
    )
    def test_names_that_cannot_be(self, command: Command, arguments: list[str], message: str) -> None:
        done = command("sql", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stdout == ""


def test_a_closed_pipe() -> None:
    """The reader closes the pipe early, for example ``head``."""
    process = subprocess.Popen([COMMAND, "sql"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert (stderr.read(), process.wait()) == (b"", 0)
