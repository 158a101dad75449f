"""Text from events, exceptions and other programs, made safe for a terminal and for a log of lines.

An id or a message may have control characters, which can clear a screen or imitate a line of the log, and bidirectional
ones, which change the order of what is shown. They are replaced by escapes such as ``\\x1b`` and ``\\u202e``.
"""

from __future__ import annotations

from typing import Final

__all__ = ["escaped", "indented", "one_line"]

_INDENT: Final = "    "


def escaped(text: str) -> str:
    r"""Escape line breaks and all other characters that cannot be printed, including lone surrogates.

    >>> print(escaped("a\nb\x1b[2J"))
    a\nb\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def indented(text: str) -> str:
    r"""Escape each line, and indent all but the first, so that none of them looks like a line of the log.

    >>> print(indented("a\nb"))
    a
        b
    """
    return f"\n{_INDENT}".join(map(escaped, text.split("\n")))


def one_line(text: str, max_length: int | None = None) -> str:
    r"""Return the text on one line, escaped, with single spaces, and shortened to a maximum length.

    >>> one_line("a\n  b", 2)
    'a…'
    """
    line = escaped(" ".join(text.split()))
    return line if max_length is None or len(line) <= max_length else line[: max_length - 1] + "…"
