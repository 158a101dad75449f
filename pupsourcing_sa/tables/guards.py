"""Guards: what a log's table cannot say of itself, as functions and triggers.

``append_only``
    refuses UPDATE, DELETE and TRUNCATE, unless the transaction has said
    ``SET LOCAL pupsourcing_sa.allow_rewrite = 'on'``.
``low_water_mark``
    takes the low-water mark for whoever inserts, so that the stable position holds for SQL that is not the store's.

Each is a function of the log's own and a statement trigger that calls it. A version, once released, stays here for
ever: migrations name it, and what is in a database is recognised by the function's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Table

from pupsourcing_sa.tables.naming import bounded_name

__all__ = ["GUARDED_KEY", "Guard", "current_guard", "current_guards", "find_guard", "is_guarded", "known_guards"]

#: In the ``info`` of a log's primary key: whether it is to have guards.
GUARDED_KEY: Final = "pupsourcing_sa_guarded"


def is_guarded(log: Table) -> bool:
    """Whether a log is to have guards."""
    return bool(log.primary_key.info.get(GUARDED_KEY))


@dataclass(frozen=True, slots=True)
class Guard:
    """One version of a guard: when its trigger fires, and the text of its function, which is the same for every log."""

    name: str
    version: int
    events: str
    #: How ``pg_trigger.tgtype`` says the same, in bits: 2 BEFORE, 4 INSERT, 8 DELETE, 16 UPDATE, 32 TRUNCATE.
    trigger_type: int
    body: str

    @property
    def trigger_name(self) -> str:
        return f"pupsourcing_sa_{self.name}"

    def function_name(self, table_name: str) -> str:
        return bounded_name(table_name, self.name)


# The texts have no percent signs, which drivers would have doubled, and no tabs, which Alembic replaces.
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

# The same mark as that of the store's own appends, which see by the setting that it is taken, whoever was first. A
# statement trigger runs before the statement's first position is issued, which is what makes it a mark.
_LOW_WATER_MARK_1: Final = """
-- pupsourcing_sa: low_water_mark, version 1
DECLARE
    mark integer;
BEGIN
    IF coalesce(current_setting('pupsourcing_sa.mark_' || TG_RELID, true), '') = '' THEN
        mark := coalesce(
            pg_sequence_last_value(
                pg_get_serial_sequence(
                    quote_ident(TG_TABLE_SCHEMA) || '.' || quote_ident(TG_TABLE_NAME), 'global_position'
                )::regclass
            ) & 2147483647,
            -1
        );
        PERFORM pg_advisory_xact_lock_shared(TG_RELID::integer, mark);
        PERFORM set_config('pupsourcing_sa.mark_' || TG_RELID, mark::text, true);
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
    """The guards that a guarded log has in this version of the library."""
    return [versions[-1] for versions in _VERSIONS.values()]


def known_guards() -> list[Guard]:
    """Every version of every guard."""
    return [guard for versions in _VERSIONS.values() for guard in versions]


def current_guard(name: str) -> Guard:
    """What a guard is in this version of the library.

    Raises:
        ValueError: there is no such guard.
    """
    return find_guard(name, _VERSIONS[name][-1].version if name in _VERSIONS else 1)


def find_guard(name: str, version: int) -> Guard:
    """One version of a guard.

    Raises:
        ValueError: this version of the library knows no such guard.
    """
    known = {(guard.name, guard.version): guard for guard in known_guards()}
    if (name, version) not in known:
        names = ", ".join(f"{name!r} version {version}" for name, version in known)
        raise ValueError(f"there is no guard {name!r} version {version!r}; this version of pupsourcing_sa has {names}")
    return known[name, version]
