"""The reference lists the settings, hooks and errors of the code."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

from pupsourcing_sa import errors, telemetry
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.config import default_text

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PACKAGE = Path(telemetry.__file__).parent


def rows(page: str, title: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this title."""
    table = re.search(rf"^\| {title} \|.*\n\|[-|]+\n((?:\|.*\n)+)", (REFERENCE / page).read_text(), re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


def names(page: str, title: str) -> set[str]:
    return {re.findall(r"`([^`]+)`", row[0])[0] for row in rows(page, title)}


def test_every_setting_with_its_default_and_its_text():
    """The text is the one of ``pupsourcing-sa worker --help`` and of the docstring."""
    documented = {
        row[0].strip("`"): (row[1].strip("`"), row[2].removesuffix(" |").replace("`", ""))
        for row in rows("worker.md", "setting")
    }
    assert documented == {
        field.name: (default_text(field.default), field.metadata["help"]) for field in fields(WorkerConfig)
    }


def test_every_hook():
    called = set[str]()
    for module in PACKAGE.rglob("worker/**/*.py"):
        called |= set(re.findall(r'"(worker\.[a-z_]+)"', module.read_text()))
    documented = names("worker.md", "span") | names("worker.md", "event")
    assert called == documented
    assert documented == set(re.findall(r"^``(worker\.[a-z_]+)``", telemetry.__doc__ or "", re.MULTILINE))


def test_every_error_with_its_attributes():
    def attributes(name: str) -> list[str]:
        text = (inspect.getdoc(getattr(errors, name)) or "").partition("Attributes:")[2]  # Python 3.13 removes indents
        return re.findall(r"^ {4}(\w+):", text, re.MULTILINE)

    bases = {"AppendError", "PupsourcingError"}
    documented = {row[0].strip("`"): re.findall(r"`(\w+)`", row[2]) for row in rows("errors.md", "error")}
    assert documented == {name: attributes(name) for name in errors.__all__ if name not in bases}
