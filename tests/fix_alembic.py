"""Projects that use Alembic: a directory with an environment, a database, and commands as users type them."""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import subprocess
import sys
import textwrap
import traceback
from argparse import Namespace
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import alembic
import psycopg
import pytest
import sqlalchemy
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.config import CommandLine, Config
from alembic.operations import Operations
from alembic.operations.ops import DowngradeOps, UpgradeOps
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData, make_url, text
from sqlalchemy.dialects import postgresql

from pupsourcing_sa.migrations import log_op, register, template_directory

__all__ = ["Autogenerate", "Project", "index_files"]

#: Everything that a migration can create, as PostgreSQL describes it, in every schema except PostgreSQL's own.
_DESCRIPTION = text(
    """
    WITH schemas AS (
        SELECT oid FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'
    )
    SELECT c.oid::regclass::text AS object, concat_ws(' ', c.relkind, a.attname, format_type(a.atttypid, a.atttypmod),
        a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid)) AS definition
    FROM pg_class AS c
        LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace IN (SELECT oid FROM schemas)
    UNION ALL
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) || ' ' || indisvalid::text FROM pg_index
    WHERE indexrelid::regclass::text !~ '^pg_'
    UNION ALL
    SELECT conrelid::regclass::text, conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace IN (SELECT oid FROM schemas)
    UNION ALL
    SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) || ' ' || tgenabled::text FROM pg_trigger
    WHERE NOT tgisinternal
    UNION ALL
    SELECT oid::regprocedure::text, prosrc FROM pg_proc WHERE pronamespace IN (SELECT oid FROM schemas)
    """
)


class Project:
    """A directory with an Alembic environment, and a database.

    Commands run in this process, unless ``is_process`` is set: an interpreter takes longer to start than they run.
    """

    is_process = False

    def __init__(self, directory: Path, database: Engine) -> None:
        self.directory = directory
        self.database = database
        self.url = database.url.render_as_string(hide_password=False)

    def alembic(self, *arguments: str) -> str:
        """Run ``alembic``, check that it succeeds without a warning, and return its output."""
        done = self.try_alembic(*arguments)
        assert done.returncode == 0, f"alembic {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def try_alembic(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if not self.is_process:
            return _run_alembic(self.directory, arguments, {"DATABASE_URL": self.url})
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "alembic", *arguments],
            cwd=self.directory,
            env={**os.environ, "DATABASE_URL": self.url},
            capture_output=True,
            text=True,
            check=False,
        )

    def add_to(self, models: str, *, template: str = "generic", plugin: bool = True, **options: str) -> None:
        """Make it an application with models and with an environment from a template of Alembic's own.

        Args:
            models: the module with the models, which has ``target_metadata``.
            template: a template of Alembic.
            plugin: True if ``env.py`` uses our plugin.
            options: more arguments of ``context.configure()``, in Python.
        """
        (self.directory / "models.py").write_text(models)
        self.alembic("init", "--template", template, "migrations")
        self.replace("alembic.ini", "driver://user:pass@localhost/dbname", self.url.replace("%", "%%"))
        imports = "from models import target_metadata"
        if plugin:
            imports += "\nfrom pupsourcing_sa import migrations\nmigrations.register()"
            options["autogenerate_plugins"] = "['alembic.autogenerate.*', 'pupsourcing_sa']"
        self.replace("migrations/env.py", "target_metadata = None", imports)
        arguments = ", ".join(
            f"{name}={value}" for name, value in {"target_metadata": "target_metadata", **options}.items()
        )
        self.replace("migrations/env.py", "target_metadata=target_metadata", arguments)

    def replace(self, path: str, old: str, new: str) -> None:
        file = self.directory / path
        content = file.read_text()
        assert old in content
        file.write_text(content.replace(old, new))

    def guard(self) -> None:
        """Declare the log with guards, in an environment from our template."""
        self.replace("migrations/env.py", "EventTables(target_metadata)", "EventTables(target_metadata, guarded=True)")

    def revise(self, message: str, *options: str) -> str:
        """Let autogenerate write a revision. Return its text; of several revisions, their texts in order."""
        versions = self.directory / "migrations" / "versions"
        before = set(versions.glob("*.py"))
        self.alembic("revision", "--autogenerate", "--message", message, *options)
        return "\n".join(sorted(path.read_text() for path in set(versions.glob("*.py")) - before))

    def differences(self) -> str:
        """Return the operations that ``alembic check`` reports; empty if there are none."""
        done = self.try_alembic("check")
        found = re.search(r"New upgrade operations detected: (.*)", done.stdout + done.stderr)
        assert bool(found) == bool(done.returncode), done.stdout + done.stderr
        return found[1] if found else ""

    def execute(self, *statements: str) -> None:
        """Run SQL without SQLAlchemy. Each string may have several statements."""
        url = make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def execute_output(self, sql: str) -> None:
        """Run the output of ``alembic --sql``, statement by statement like ``psql``."""
        self.execute(*sql.split(";\n\n"))

    def objects(self) -> list[tuple[str, str]]:
        """Return the objects in the database, except those of Alembic itself."""
        with self.database.connect() as connection:
            rows = [(row.object, row.definition) for row in connection.execute(_DESCRIPTION)]
        return sorted(row for row in rows if not re.match(r'(\w+\.|"\w+"\.)?alembic_version', row[0]))

    def migrate(self) -> list[tuple[str, str]]:
        """Run every command for migrations once, and return the objects that they create in the database."""
        before = self.objects()
        self.revise("the beginning")
        self.alembic("upgrade", "head")
        self.alembic("check")  # fails if another autogenerate would find a difference
        made = self.objects()
        sql = self.alembic("upgrade", "head", "--sql")
        self.alembic("downgrade", "base")
        assert self.objects() == before

        version_table = re.search(r"CREATE TABLE (\S*alembic_version)", sql)
        assert version_table
        self.execute(f"DROP TABLE {version_table[1]}")
        self.execute_output(sql)
        assert self.objects() == made
        return made


def _run_alembic(
    directory: Path, arguments: tuple[str, ...], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Do what ``python -m alembic`` does in a directory, and undo what it does to this process."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        chdir(directory),
        redirect_stdout(output),
        redirect_stderr(errors),
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "path", [str(directory), *sys.path]),
        _unchanged_modules(directory),
        _unchanged_logging(),
    ):
        try:
            _CommandLine("alembic").main([*arguments])
            status: Any = 0
        except SystemExit as error:
            status = error.code
        except Exception:  # noqa: BLE001 - a process would end with its traceback
            traceback.print_exc()
            status = 1
    return subprocess.CompletedProcess(arguments, status or 0, output.getvalue(), errors.getvalue())


class _CommandLine(CommandLine):
    """The command line of Alembic, whose output can be redirected."""

    def run_cmd(self, config: Config, options: Namespace) -> None:
        config.stdout = sys.stdout  # not as it was when Alembic was imported
        super().run_cmd(config, options)


@contextmanager
def _unchanged_modules(directory: Path) -> Iterator[None]:
    """Forget the modules of a project, such as its models: the next project has others of that name."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{directory}{os.sep}"):
            del sys.modules[name]
    importlib.invalidate_caches()


@contextmanager
def _unchanged_logging() -> Iterator[None]:
    """Undo ``fileConfig()``, which replaces the handlers of the root logger and disables existing loggers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    known = logging.Logger.manager.loggerDict.values()
    loggers = [logger for logger in known if isinstance(logger, logging.Logger)]
    states = [(logger, logger.disabled, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, is_disabled, its_level, its_handlers, propagates in states:
        logger.disabled, logger.handlers[:], logger.propagate = is_disabled, its_handlers, propagates
        logger.setLevel(its_level)


class Autogenerate:
    """Autogenerate in this process, without a project: its findings, as the text of a migration."""

    def __init__(self, engine: Engine, metadata: MetaData | list[MetaData], **options: Any) -> None:
        register()
        self._engine = engine
        self._metadata = metadata
        self._options = {
            "target_metadata": metadata,
            "autogenerate_plugins": ["alembic.autogenerate.*", "pupsourcing_sa"],
            **options,
        }

    def upgrade(self) -> str:
        """Return the operations of the upgrade; empty if there are none."""
        return self._find()[0]

    def downgrade(self) -> str:
        return self._find()[1]

    def _find(self) -> tuple[str, str]:
        with self._engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=self._options)
            script = produce_migrations(context, self._metadata)
            upgrade, downgrade = script.upgrade_ops, script.downgrade_ops
            assert upgrade is not None
            assert downgrade is not None
            return self._render(upgrade, context), self._render(downgrade, context)

    def _render(self, operations: UpgradeOps | DowngradeOps, context: MigrationContext) -> str:
        lines = textwrap.dedent(f"    {render_python_code(operations, migration_context=context)}").splitlines()
        return "\n".join(line for line in lines if not line.startswith("#") and line != "pass")

    def execute(self, migration: str) -> None:
        """Run the text of a migration."""
        with self._engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=self._options)
            with context.begin_transaction(), Operations.context(context):
                exec(migration, {"op": alembic.op, "log_op": log_op, "sa": sqlalchemy, "postgresql": postgresql})


def index_files(engine: Engine, table: str) -> dict[str, int]:
    """Return the indexes of a table, and their files. A new file is a new index."""
    sql = "SELECT c.relname, c.relfilenode FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid WHERE indrelid = "
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(text(f"{sql} CAST(:table AS regclass)"), {"table": table})}


@pytest.fixture
def project(tmp_path: Path, database: Engine) -> Project:
    return Project(tmp_path, database)


@pytest.fixture
def new_project(project: Project) -> Project:
    """A function that creates a project from our template, with the default tables."""
    project.alembic("init", "--template", str(template_directory("sync")), "migrations")
    return project
