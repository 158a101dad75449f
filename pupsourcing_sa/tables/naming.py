"""Names of tables, constraints and indexes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, ForeignKeyConstraint, Index, MetaData, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.schema import SchemaItem
from sqlalchemy.sql.schema import DEFAULT_NAMING_CONVENTION

from pupsourcing_sa._checks import MAX_NAME_BYTES

__all__ = ["Naming", "bounded_name", "dollar_quoted"]


def bounded_name(table: str, suffix: str) -> str:
    """Return ``<table>_<suffix>``, shortened to PostgreSQL's limit by a hash that keeps names distinct."""
    name = f"{table}_{suffix}"
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    end = f"_{hashlib.sha256(name.encode()).hexdigest()[:8]}_{suffix.rpartition('_')[2]}"
    return table.encode()[: MAX_NAME_BYTES - len(end)].decode(errors="ignore") + end


def dollar_quoted(text: str, tag: str) -> str:
    """Return text as a dollar-quoted SQL string, with a tag that does not occur in the text.

    Apostrophes would not be safe: ``schema_translate_map`` inserts the schema's name later, and it may contain one.
    """
    while f"${tag}" in text:
        tag += "_"
    return f"${tag}${text}${tag}$"


class Naming:
    """Names for constraints and indexes of one table, unless the ``MetaData`` has a naming convention for them."""

    def __init__(self, metadata: MetaData, table: str) -> None:
        # Without a naming convention of the application, every MetaData has this default, which names indexes only. An
        # application that chooses the same text has a dict of its own.
        is_chosen = metadata.naming_convention is not DEFAULT_NAMING_CONVENTION
        self._convention: Mapping[Any, Any] = metadata.naming_convention if is_chosen else {}
        self._table = table

    def __call__(self, kind: str, kind_class: type[SchemaItem], suffix: str) -> str | None:
        convention = self._convention.get(kind, self._convention.get(kind_class))
        if convention is None or "%(constraint_name)s" in str(convention):
            return bounded_name(self._table, suffix)
        return None

    def primary_key(self, *columns: str) -> PrimaryKeyConstraint:
        return PrimaryKeyConstraint(*columns, name=self("pk", PrimaryKeyConstraint, "pkey"))

    def unique(self, *columns: str) -> UniqueConstraint:
        return UniqueConstraint(*columns, name=self("uq", UniqueConstraint, f"{'_'.join(columns)}_key"))

    def index(self, *columns: str, **options: Any) -> Index:
        return Index(self("ix", Index, f"{'_'.join(columns)}_idx"), *columns, **options)

    def foreign_key(self, column: str, target: Column[Any], *, ondelete: str) -> ForeignKeyConstraint:
        name = self("fk", ForeignKeyConstraint, f"{column}_fkey")
        return ForeignKeyConstraint([column], [target], name=name, ondelete=ondelete)
