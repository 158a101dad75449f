"""The demo's migration: a real Alembic environment, and a revision that autogenerate writes into it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pupsourcing_sa.migrations import template_directory
from pupsourcing_sa.migrations.requirements import require_alembic

__all__ = ["migrate"]


def migrate(url: str, directory: Path) -> Path:
    """Make an environment, generate a revision, upgrade to it, and check that there is nothing left to generate.

    Args:
        url: the database.
        directory: an empty directory.

    Returns:
        The revision's file.
    """
    require_alembic()

    def alembic(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=directory,
            check=False,
            env=os.environ | {"DATABASE_URL": url},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"alembic {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")

    alembic("init", "--template", str(template_directory("sync")), "migrations")
    _use_metadata_of_the_application(directory / "migrations" / "env.py")
    alembic("revision", "--autogenerate", "--message", "create the tables")
    alembic("upgrade", "head")
    alembic("check")
    (revision,) = (directory / "migrations" / "versions").glob("*.py")
    return revision


def _use_metadata_of_the_application(env: Path) -> None:
    """The edit that the template's comment asks for."""
    before, found, after = env.read_text().partition("target_metadata = MetaData()")
    if not found:
        raise LookupError(f"{env} is not the template that the demo knows")
    env.write_text(
        f"{before}from pupsourcing_sa.demo.app import Base  # noqa: E402\n\ntarget_metadata = Base.metadata{after}"
    )
