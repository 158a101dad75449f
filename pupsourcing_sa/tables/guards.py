"""Guards: triggers that protect a log from SQL that does not use the store.

``append_only``
    refuses UPDATE, DELETE and TRUNCATE, unless the transaction executes
    ``SET LOCAL pupsourcing_sa.allow_rewrite = 'on'``.
``low_water_mark``
    takes the low-water mark before an INSERT, so that the stable position is correct for SQL of other programs.

A guard consists of a statement trigger and its function. Both belong to one log. Never change or remove a released
version: migrations name it, and autogenerate recognizes the version in a database by the text of its function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Table

from pupsourcing_sa.tables.naming import bounded_name

__all__ = ["GUARDED_KEY", "Guard", "current_guard", "current_guards", "find_guard", "is_guarded", "known_guards"]

#: Key in the ``info`` of a log's primary key: True if the log is declared with guards.
GUARDED_KEY: Final = "pupsourcing_sa_guarded"


def is_guarded(log: Table) -> bool:
    """Return True if the log is declared with guards."""
    return bool(log.primary_key.info.get(GUARDED_KEY))


@dataclass(frozen=True, slots=True)
class Guard:
    """A version of a guard: its trigger events and function body, which are the same for every log."""

    name: str
    version: int
    events: str
    #: The same as in ``pg_trigger.tgtype``, in bits: 2 BEFORE, 4 INSERT, 8 DELETE, 16 UPDATE, 32 TRUNCATE.
    trigger_type: int
    body: str

    @property
    def trigger_name(self) -> str:
        return f"pupsourcing_sa_{self.name}"

    def function_name(self, table_name: str) -> str:
        return bounded_name(table_name, self.name)


# No percent signs, which drivers require doubled, and no tabs, which Alembic replaces by spaces.
_APPEND_ONLY_1: Final = """
-- pupsourcing_sa: append_only, version 1
BEGIN
    IF coalesce(current_setting('pupsourcing_sa.allow_rewrite', true), '') <> 'on' THEN
        RAISE restrict_violation USING
            MESSAGE = TG_OP || ' on ' || TG_RELID::regclass || ' is refused: events are appended, and never changed',
            HINT = 'If it has to be: SET LOCAL pupsourcing_sa.allow_rewrite = ''on'', in the same transaction.';
    END IF;
    RETURN NULL;
END
"""

# The trigger takes the same mark as an append by the store. Both record it in the same setting, so that a transaction
# takes one mark only. A statement trigger runs before its statement's first position is issued, so the mark is below
# all of them. One query reads the log and its sequence. Its snapshot is older than the last position, so an event above
# that position was not inserted in between. Planning that query takes 100 µs, so a session that has found the sequence
# not behind the log executes it again only if the sequence has gone back.
_LOW_WATER_MARK_1: Final = """
-- pupsourcing_sa: low_water_mark, version 1
DECLARE
    log text := quote_ident(TG_TABLE_SCHEMA) || '.' || quote_ident(TG_TABLE_NAME);
    sequence regclass;
    last bigint;
    is_behind boolean := false;
BEGIN
    IF coalesce(current_setting('pupsourcing_sa.mark_' || TG_RELID, true), '') = '' THEN
        sequence := pg_get_serial_sequence(log, 'global_position');
        last := pg_sequence_last_value(sequence);
        IF last >= nullif(current_setting('pupsourcing_sa.checked_' || TG_RELID, true), '')::bigint IS NOT TRUE THEN
            EXECUTE 'SELECT last, EXISTS (SELECT FROM ' || log || ' WHERE global_position > last)'
                || ' FROM (SELECT pg_sequence_last_value($1) AS last OFFSET 0) AS issued'
                INTO last, is_behind USING sequence;
        END IF;
        IF is_behind THEN
            RAISE object_not_in_prerequisite_state USING
                MESSAGE = 'the sequence of ' || log || '.global_position is behind the log: new events would get '
                    || 'positions that consumers have already passed',
                HINT = 'SELECT setval(' || quote_literal(sequence)
                    || ', (SELECT max(global_position) FROM ' || log || '));';
        END IF;
        PERFORM set_config('pupsourcing_sa.checked_' || TG_RELID, coalesce(last::text, ''), false);
        last := coalesce(last & 2147483647, -1);
        PERFORM pg_advisory_xact_lock_shared(TG_RELID::integer, last::integer);
        PERFORM set_config('pupsourcing_sa.mark_' || TG_RELID, last::text, true);
    END IF;
    RETURN NULL;
END
"""

#: Every version of every guard, the current one last.
_VERSIONS: Final[dict[str, list[Guard]]] = {
    "append_only": [Guard("append_only", 1, "UPDATE OR DELETE OR TRUNCATE", 2 + 8 + 16 + 32, _APPEND_ONLY_1)],
    "low_water_mark": [Guard("low_water_mark", 1, "INSERT", 2 + 4, _LOW_WATER_MARK_1)],
}


def current_guards() -> list[Guard]:
    """Return the guards of a guarded log in this version of the library."""
    return [versions[-1] for versions in _VERSIONS.values()]


def known_guards() -> list[Guard]:
    """Return every version of every guard."""
    return [guard for versions in _VERSIONS.values() for guard in versions]


def current_guard(name: str) -> Guard:
    """Return the current version of a guard.

    Raises:
        ValueError: there is no such guard.
    """
    return find_guard(name, _VERSIONS[name][-1].version if name in _VERSIONS else 1)


def find_guard(name: str, version: int) -> Guard:
    """Return a version of a guard.

    Raises:
        ValueError: this version of the library does not have it.
    """
    known = {(guard.name, guard.version): guard for guard in known_guards()}
    if (name, version) not in known:
        names = ", ".join(f"{name!r} version {version}" for name, version in known)
        raise ValueError(f"there is no guard {name!r} version {version!r}; this version of pupsourcing_sa has {names}")
    return known[name, version]
