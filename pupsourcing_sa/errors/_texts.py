"""Parts of error messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["UNSUPPORTED", "sequence_statement", "shortened"]

UNSUPPORTED: Final = (
    "Consumers would skip events. Use PostgreSQL 12 or later; a server that only speaks its protocol is not enough"
)


def sequence_statement(table: str) -> str:
    """Return the SQL that moves a log's sequence to the last position in the log, and never back."""
    literal = table.replace("'", "''")
    return (
        f"SELECT setval(log, greatest(pg_sequence_last_value(log), (SELECT max(global_position) FROM {table}))) "
        f"FROM CAST(pg_get_serial_sequence('{literal}', 'global_position') AS regclass) AS log"
    )


def shortened(names: Iterable[str]) -> str:
    """List at most five names."""
    shown = list(names)
    return ", ".join(shown[:5]) + (", …" if len(shown) > 5 else "")
