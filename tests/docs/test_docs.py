"""README and docs: the code runs, links and paths exist, commands have the options shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from pupsourcing_sa.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
FILES_OF_USERS = {"migrations/env.py"}
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python") and page.name != "tutorial.md"],  # test_tutorial.py runs it
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_code_of_a_page_runs(page: Path, database: Engine, tmp_path: Path):
    """Run all blocks of a page in order, in one process with an empty database."""
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks(page, "python")))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env={"PATH": "", "DATABASE_URL": database.url.render_as_string(hide_password=False)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if page.name == "README.md":
        assert done.stdout == "1\n"


def test_the_quickstart_is_short():
    (quickstart,) = blocks(ROOT / "README.md", "python")
    assert len(quickstart.splitlines()) <= 60


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_have_a_target(page: Path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist_and_have_their_options(page: Path, capsys: pytest.CaptureFixture[str]):
    command_line = r"^\$ pupsourcing-sa ((?:consumers|events) [\w-]+|\w+)(.*)$"
    commands = re.findall(command_line, page.read_text(), flags=re.MULTILINE)
    for command, arguments in commands:
        assert main([*command.split(), "--help"]) == 0
        usage = capsys.readouterr().out
        assert all(option in usage for option in re.findall(r"--[\w-]+", arguments))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_paths_exist(page: Path):
    """A path in backticks is relative to the root or to the package."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|md|toml|sql))?)`", text)
    missing = [name for name in names if not any((root / name).exists() for root in (ROOT, ROOT / "pupsourcing_sa"))]
    assert set(missing) <= FILES_OF_USERS


def test_pages_that_the_code_names_exist():
    sources = [
        path for name in ("pupsourcing_sa", "tests", "alembic_templates") for path in (ROOT / name).rglob("*.py")
    ]
    pages = {page for path in sources for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text())}
    assert {page for page in pages - {"docs/page.md"} if not (ROOT / page).exists()} == set()


def test_every_page_is_linked_from_the_index():
    index = "".join((ROOT / page).read_text() for page in ("docs/index.md", "docs/decisions/README.md"))
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs") and page.name != "index.md":
            assert page.name in index, page
