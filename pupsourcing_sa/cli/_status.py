"""The command ``pupsourcing-sa status``."""

from __future__ import annotations

from typing import Any

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the commands to the parser's."""
