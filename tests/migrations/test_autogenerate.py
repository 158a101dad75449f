"""``alembic revision --autogenerate`` finds our tables, all of them, and nothing to complain about afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from pupsourcing_sa.errors import TemplateError
from pupsourcing_sa.migrations import template_directory

_MODELS = """
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from pupsourcing_sa import EventTables, WorkerTables

class Base(DeclarativeBase):
    metadata = MetaData({metadata})

class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)

EventTables(Base.metadata{tables})
WorkerTables(Base.metadata{tables})
"""

_CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

#: Everything that a migration can make, as PostgreSQL itself describes it; in every schema that is not its own.
_DESCRIPTION = text(
    """
    SELECT c.oid::regclass::text AS object, concat_ws(' ', c.relkind, a.attname, format_type(a.atttypid, a.atttypmod),
        a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid)) AS definition
    FROM pg_class AS c
        LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^(pg_|information_schema)')
    UNION ALL
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
    WHERE indexrelid::regclass::text !~ '^pg_'
    UNION ALL
    SELECT conrelid::regclass::text, conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^(pg_|information_schema)')
    """
)


class Project:
    """A directory with an Alembic environment in it, and a database."""

    def __init__(self, directory: Path, database: Engine) -> None:
        self.directory = directory
        self.database = database
        self.url = database.url.render_as_string(hide_password=False)

    def alembic(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "alembic", *arguments],
            cwd=self.directory,
            env={**os.environ, "DATABASE_URL": self.url},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"alembic {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def replace(self, path: str, old: str, new: str) -> None:
        file = self.directory / path
        content = file.read_text()
        assert old in content
        file.write_text(content.replace(old, new))

    def objects(self) -> list[tuple[str, str]]:
        """What is in the database, but for what Alembic keeps there itself."""
        with self.database.connect() as connection:
            rows = [(row.object, row.definition) for row in connection.execute(_DESCRIPTION)]
        return sorted(row for row in rows if not row[0].startswith("alembic_version"))

    def migrate(self) -> list[tuple[str, str]]:
        """Go once through all that is done with migrations; what they made in the database."""
        self.alembic("revision", "--autogenerate", "--message", "the beginning")
        self.alembic("upgrade", "head")
        self.alembic("check")  # fails when another autogenerate would find something
        made = self.objects()
        sql = self.alembic("upgrade", "head", "--sql")
        self.alembic("downgrade", "base")
        assert self.objects() == []

        with psycopg.connect(make_url(self.url).set(drivername="postgresql").render_as_string(False)) as connection:
            connection.execute("DROP TABLE alembic_version")
            connection.commit()
            connection.autocommit = True
            connection.execute(sql.encode())
        assert self.objects() == made
        return made


@pytest.fixture
def project(tmp_path: Path, database: Engine) -> Project:
    return Project(tmp_path, database)


@pytest.mark.parametrize(
    ("metadata", "tables", "configure"),
    [
        pytest.param("", "", "", id="defaults"),
        pytest.param("", ", schema='shop'", "include_schemas=True", id="schema-of-the-tables"),
        pytest.param("schema='shop'", "", "include_schemas=True", id="schema-of-the-metadata"),
        pytest.param(f"naming_convention={_CONVENTION}", "", "compare_server_default=True", id="naming-convention"),
    ],
)
def test_an_application_with_our_tables_on_its_metadata(
    project: Project, metadata: str, tables: str, configure: str
) -> None:
    (project.directory / "models.py").write_text(_MODELS.format(metadata=metadata, tables=tables))
    project.alembic("init", "migrations")
    project.replace("alembic.ini", "driver://user:pass@localhost/dbname", project.url.replace("%", "%%"))
    environment = "migrations/env.py"
    project.replace(environment, "target_metadata = None", "import models; target_metadata = models.Base.metadata")
    project.replace(
        environment, "target_metadata=target_metadata", f"target_metadata=target_metadata, **dict({configure})"
    )
    with project.database.begin() as connection:
        connection.execute(text("CREATE SCHEMA shop"))  # Alembic leaves schemas to their owner

    made = project.migrate()

    project.alembic("downgrade", "base")
    run_path(str(project.directory / "models.py"))["Base"].metadata.create_all(project.database)
    assert project.objects() == made


@pytest.mark.parametrize(("template", "driver"), [("sync", "psycopg"), ("async", "asyncpg")])
def test_a_project_made_from_a_template(project: Project, template: str, driver: str) -> None:
    project.url = project.url.replace("+psycopg", f"+{driver}")
    project.alembic("init", "--template", str(template_directory(template)), "migrations")

    made = project.migrate()

    tables = {name for name, definition in made if definition.startswith("r ")}
    assert tables == {"events", "aggregate_heads", "worker_nodes", "consumer_assignments", "consumer_checkpoints"}


def test_a_template_takes_the_url_from_the_ini_file(project: Project) -> None:
    project.alembic("init", "--template", str(template_directory()), "migrations")
    project.replace(
        "alembic.ini", "postgresql+psycopg://user:password@localhost/database", project.url.replace("%", "%%")
    )
    project.url = ""  # as an unset DATABASE_URL
    project.alembic("revision", "--autogenerate", "--message", "the beginning")
    project.alembic("upgrade", "head")
    assert project.objects()


@pytest.mark.parametrize("name", ["generic", "", ".", "../docs", "sync/"])
def test_an_unknown_template_is_an_error_that_names_those_that_are_known(name: str) -> None:
    with pytest.raises(TemplateError, match=r"there are async, sync$"):
        template_directory(name)
