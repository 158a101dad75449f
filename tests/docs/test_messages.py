"""Log messages: README and docs quote them as they are in the code, and the reference lists them all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_docs import NAMES, PAGES, ROOT
from tests.docs.test_reference import rows

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def logged_in(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield the level and the message of every call of a logger. Outages log with the messages that they are given."""
    for path in sorted(directory.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            messages = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if name == "Outage":
                yield from zip(("warning", "info"), messages, strict=False)
            elif name.rpartition(".")[2] in LEVELS and "logger" in name:
                yield from ((name.rpartition(".")[2], message) for message in messages[:1])


def strings_of_the_package() -> set[str]:
    """Return all strings of the package; parts of f-strings are strings of their own."""
    return {
        " ".join(node.value.split())
        for path in (ROOT / "pupsourcing_sa").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_the_reference_lists_the_messages_of_the_worker():
    """It also lists messages that are not constants in the call of the logger; these exist somewhere in the package."""
    documented = {(row[1], row[0].strip("`")) for row in rows("worker.md", "message")}
    assert set(logged_in(ROOT / "pupsourcing_sa" / "worker")) <= documented
    assert {message for _, message in documented} <= strings_of_the_package()


def test_the_reference_lists_the_messages_of_the_command():
    tables = [*rows("worker.md", "supervisor's message"), *rows("worker.md", "command's message")]
    documented = {(row[1], row[0].strip("`")) for row in tables}
    logged = set(logged_in(ROOT / "pupsourcing_sa" / "cli"))
    assert {("error" if level == "exception" else level, message) for level, message in logged} <= documented
    assert {message for _, message in documented} <= strings_of_the_package()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_quoted_messages_exist(page: Path):
    """A quotation of three or more words that begins in lower case is a message."""
    text = re.sub(r"^ *```.*?^ *```$|`[^`]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    quoted = {" ".join(quotation.split()) for quotation in re.findall(r'"([a-z][^"]* [^"]* [^"]*)"', text)}
    assert quoted <= strings_of_the_package()
