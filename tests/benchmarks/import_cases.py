"""The benchmark of the import: lines whose aggregates alternate, beside a bare COPY of the same rows.

The lines have an event id, a time and a payload of about 200 bytes. The import decodes, checks and appends them. The
baseline copies their rows, ready-made as text, into the columns of the log; it writes no heads.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import uuid4

from sqlalchemy.orm import sessionmaker

from pupsourcing_sa.jsonlines import import_events, parse_event
from tests.benchmarks.cases import Case, Database, Side, make_events, store

__all__ = ["IMPORT_CASES"]

#: Number of lines, and of the aggregates that alternate in them.
_LINES, _AGGREGATES = 5000, 300
#: Maximum number of imports in a slice. Making their lines takes longer than to import them.
_OPERATIONS = 5
_COLUMNS = (
    "aggregate_type, aggregate_id, aggregate_version, event_id, event_type, event_version, payload, metadata,"
    " created_at"
)


def _lines() -> list[bytes]:
    prefix, now = uuid4().hex, datetime.now(UTC).isoformat()
    fields = [
        {
            "aggregate_type": event.aggregate_type,
            "aggregate_id": f"{prefix}-{number % _AGGREGATES}",
            "event_type": event.event_type,
            "event_id": str(event.event_id),
            "payload": event.json(),
            "metadata": dict(event.metadata),
            "created_at": now,
        }
        for number, event in enumerate(make_events("a", _LINES))
    ]
    return [json.dumps(line).encode() for line in fields]


def _text_of_rows(lines: list[bytes]) -> bytes:
    rows = []
    for number, event in enumerate(map(parse_event, lines)):
        metadata = (event.metadata_json or r"\N").replace("\\\\", "\\\\\\\\")
        row = (event.aggregate_type, event.aggregate_id, number // _AGGREGATES + 1, event.event_id, event.event_type)
        rows.append((*row, event.event_version, rf"\\x{event.payload.hex()}", metadata, event.created_at))
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def _import(database: Database) -> tuple[Side, Side]:
    factory = sessionmaker(database.engine)

    def copy(text: bytes) -> int:
        with database.psycopg.cursor() as cursor, cursor.copy(f"COPY events ({_COLUMNS}) FROM STDIN") as copying:
            copying.write(text)
        database.psycopg.commit()
        return _LINES

    def supply(count: int) -> list[list[bytes]]:
        return [_lines() for _ in range(min(count, _OPERATIONS))]

    return (
        Side(supply, lambda lines: import_events(factory, store, lines)),
        Side(lambda count: list(map(_text_of_rows, supply(count))), copy),
    )


IMPORT_CASES: dict[str, Case] = {"import, beside COPY": Case(_import, goal=0.25)}
