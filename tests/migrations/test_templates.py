"""A complete environment from our templates, by ``alembic init`` and by ``pupsourcing-sa init``."""

from __future__ import annotations

from pathlib import Path

import pytest

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.errors import TemplateError
from pupsourcing_sa.migrations import template_directory
from tests.fix_alembic import Project

_TABLES = {table.name for table in (*EventTables().tables, *WorkerTables().tables)}


@pytest.mark.parametrize(("template", "driver"), [("sync", "psycopg"), ("async", "asyncpg")])
def test_a_project_made_from_a_template(project: Project, template: str, driver: str) -> None:
    project.is_process = template == "sync"  # exactly as users run it
    project.url = project.url.replace("+psycopg", f"+{driver}")
    project.alembic("init", "--template", str(template_directory(template)), "migrations")

    made = project.migrate()

    assert {name for name, definition in made if definition.startswith("r ")} == _TABLES


def test_it_takes_the_url_from_the_ini_file(new_project: Project) -> None:
    new_project.replace(
        "alembic.ini", "postgresql+psycopg://user:password@localhost/database", new_project.url.replace("%", "%%")
    )
    new_project.url = ""  # the same as an unset DATABASE_URL
    new_project.revise("the beginning")
    new_project.alembic("upgrade", "head")
    assert new_project.objects()


def test_everything_in_the_ini_file_that_is_commented_out_works(new_project: Project) -> None:
    """Except the hooks, which need another program."""
    ini = new_project.directory / "alembic.ini"
    lines = ini.read_text().splitlines()
    lines = [line[2:] if " = " in line and line.startswith("# ") and "ruff" not in line else line for line in lines]
    lines.remove("file_template = %%(rev)s_%%(slug)s")  # the first of the two examples
    ini.write_text("\n".join(lines))
    new_project.revise("the beginning")
    (revision,) = (new_project.directory / "migrations" / "versions").glob("2*_the_beginning.py")
    assert "Create Date" in revision.read_text()


def test_what_is_commented_out_in_its_environment_works(new_project: Project) -> None:
    env = "migrations/env.py"
    for line in ('"include_schemas": True', '"process_revision_directives": migrations.concurrent_indexes'):
        new_project.replace(env, f"# {line}", line)
    new_project.revise("the beginning")
    new_project.alembic("upgrade", "head")
    assert new_project.differences() == ""


def test_both_differ_in_the_engine_only() -> None:
    sync, asynchronous = template_directory("sync"), template_directory("async")
    assert (sync / "script.py.mako").read_text() == (asynchronous / "script.py.mako").read_text()
    ini = (asynchronous / "alembic.ini.mako").read_text()
    assert (sync / "alembic.ini.mako").read_text() == ini.replace("postgresql+asyncpg", "postgresql+psycopg")
    ours = [(directory / "env.py").read_text().partition("\n\nconfig =")[2] for directory in (sync, asynchronous)]
    common = [each.partition("\n\n\ndef run_migrations_offline")[0] for each in ours]
    assert common[0] == common[1]


def test_alembic_shows_what_they_are_for(project: Project) -> None:
    """`alembic list_templates` shows the first line of each README."""
    for name in ("sync", "async"):
        synopsis = (template_directory(name) / "README").read_text().splitlines()
        assert len(synopsis) == 1
        assert synopsis[0].endswith("with the event log of pupsourcing-sa.")


@pytest.mark.parametrize("name", ["generic", "", ".", "../docs", "sync/"])
def test_an_unknown_template_is_an_error_that_names_those_that_are_known(name: str) -> None:
    with pytest.raises(TemplateError, match=r"choose one of: async, sync$"):
        template_directory(name)


def test_an_absolute_directory(tmp_path: Path) -> None:
    assert template_directory().is_absolute()
