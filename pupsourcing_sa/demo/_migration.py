"""The demo's migration: an Alembic environment, with a revision by autogenerate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pupsourcing_sa.migrations import template_directory
from pupsourcing_sa.migrations.requirements import require_alembic

__all__ = ["migrate"]


def migrate(url: str, directory: Path) -> Path:
    """Create an environment, generate a revision, upgrade to it, and check that no difference is left.

    Args:
        url: URL of the database.
        directory: an empty directory.

    Returns:
        The file of the revision.
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
    """Make the edit that a comment in the template asks for."""
    before, found, after = env.read_text().partition("target_metadata = MetaData()")
    if not found:
        raise LookupError(f"{env} has no line 'target_metadata = MetaData()'. Adapt the demo to the changed template")
    env.write_text(
        f"{before}from pupsourcing_sa.demo.app import Base  # noqa: E402\n\ntarget_metadata = Base.metadata{after}"
    )
