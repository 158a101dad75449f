"""Characters that can deceive the reader of a terminal or of a log."""

from __future__ import annotations

import pytest

from pupsourcing_sa.printable import escaped, indented, one_line

#: C0, DEL, C1, line separators, bidirectional controls, lone surrogates, invisible characters.
HOSTILE = ["\0", "\x1b", "\r", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066", "\ud800", "\u200b"]


@pytest.mark.parametrize("char", HOSTILE, ids=ascii)
def test_hostile_characters_are_escaped(char: str) -> None:
    text = f"a{char}b"
    expected = f"a{ascii(char)[1:-1]}b"
    assert escaped(text) == expected
    assert indented(text) == expected
    assert one_line(text) in (expected, "a b")


def test_other_characters_stay() -> None:
    assert escaped("Müller's \\n 名前 🎉") == "Müller's \\n 名前 🎉"
