"""The SQL of every statement, as a reviewer reads it in ``tests/sql/*.sql``. No database is needed."""

from __future__ import annotations

import re
from difflib import unified_diff

import pytest

from tests.sql.statements import DIRECTORY, files, formatted, rendered, statements

FILES = files()


def test_every_golden_file_is_compared():
    assert sorted(path.name for path in DIRECTORY.glob("*.sql")) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_statements_are_the_same_as_in_the_golden_file(name):
    golden = (DIRECTORY / name).read_text()
    difference = unified_diff(golden.splitlines(), FILES[name].splitlines(), f"tests/sql/{name}", "the package", n=10)
    assert FILES[name] == golden, "\n".join([*difference, "If this is intended, run `make sql` and commit the files."])


#: Words that the formatter replaces by others of the same meaning; ``name`` is the tag of a dollar-quoted string.
REPLACED = {"integer", "timestamp", "with", "time", "zone", "now", "name", "numeric"}


def test_formatting_keeps_every_word():
    """The formatter parses SQL and writes it again. A clause that it does not understand must not disappear."""
    for name, statement in statements():
        before, after = (set(re.findall(r"\w+", sql.lower())) for sql in (rendered(statement), formatted(statement)))
        assert before - after <= REPLACED, name
