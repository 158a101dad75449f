"""Tables and views of PostgreSQL's catalog, with the columns that our statements use."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Boolean, DateTime, FromClause, Integer, Text, column, table
from sqlalchemy.dialects.postgresql import OID

__all__ = ["ACTIVITY", "ATTRIBUTES", "DATABASES", "INHERITANCE", "LOCKS", "PREPARED", "SUBSCRIBED", "catalog_table"]


def catalog_table(name: str, **columns: Any) -> FromClause:
    """Return a table of the catalog. Pass ``None`` for a type that SQLAlchemy lacks, such as xid."""
    return table(name, *(column(key, type_) for key, type_ in columns.items()), schema="pg_catalog")


LOCKS: Final = catalog_table(
    "pg_locks",
    locktype=Text,
    database=OID,
    relation=OID,
    classid=OID,
    objid=OID,
    objsubid=Integer,
    transactionid=None,
    virtualtransaction=Text,
    pid=Integer,
    mode=Text,
    granted=Boolean,
)
ACTIVITY: Final = catalog_table(
    "pg_stat_activity",
    pid=Integer,
    application_name=Text,
    usename=Text,
    state=Text,
    query=Text,
    xact_start=DateTime(timezone=True),
)
ATTRIBUTES: Final = catalog_table("pg_attribute", attrelid=OID, attname=Text, attisdropped=Boolean)
SUBSCRIBED: Final = catalog_table("pg_subscription_rel", srrelid=OID)
INHERITANCE: Final = catalog_table("pg_inherits", inhrelid=OID, inhparent=OID)
PREPARED: Final = catalog_table(
    "pg_prepared_xacts", transaction=None, gid=Text, owner=Text, prepared=DateTime(timezone=True)
)
DATABASES: Final = catalog_table("pg_database", oid=OID, datname=Text)
