"""Statements as the drivers take them: compiled once, and executed past Core.

SQLAlchemy 2.0 has no cache key for ON CONFLICT, so that ``Connection.execute`` compiles an append anew each time, which
takes three times as long as the append. So the text is kept here, and executed by ``Connection.exec_driver_sql``: still
with SQLAlchemy's transactions, logging, translation of errors and events of the cursor, but neither
``before_execute`` nor ``after_execute``, which are for expressions. docs/decisions/0006 has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import ClauseElement, Connection, Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from pupsourcing_sa.postgres.connections import UNBUFFERED, fetched

__all__ = ["CompiledStatements"]

#: For an application with a schema for each of many tenants; a text has about 3 kB.
_MOST_TEXTS: Final = 1000


class _Text(NamedTuple):
    """What a driver takes, and how it wants its parameters."""

    sql: str
    #: For drivers that number the parameters; ``None`` for those that name them.
    order: tuple[str, ...] | None
    #: Parameters that the statement brings itself.
    own: dict[str, Any]
    #: What SQLAlchemy's types do to values for this driver.
    processors: tuple[tuple[str, Callable[[Any], Any]], ...]

    @classmethod
    def of(cls, statement: ClauseElement, dialect: Dialect, translate: Any) -> _Text:
        options = {"schema_translate_map": translate, "render_schema_translate": True} if translate else {}
        compiled = statement.compile(dialect=dialect, **options)
        assert isinstance(compiled, SQLCompiler)
        binds = compiled.bind_names.items()
        processors = ((name, bind.type.dialect_impl(dialect).bind_processor(dialect)) for bind, name in binds)
        return cls(
            compiled.string,
            tuple(compiled.positiontup or ()) if compiled.positional else None,
            {name: bind.effective_value for bind, name in binds if not bind.required},
            tuple((name, process) for name, process in processors if process is not None),
        )

    def arranged(self, parameters: dict[str, Any]) -> dict[str, Any] | tuple[Any, ...]:
        if self.own:
            parameters = self.own | parameters
        for name, process in self.processors:
            parameters[name] = process(parameters[name])
        return parameters if self.order is None else tuple([parameters[name] for name in self.order])


class CompiledStatements:
    """The texts of their owner's statements, for each engine and each ``schema_translate_map`` in use.

    They live as long as the engine's dialect. Threads may compile the same statement at once; the last one is kept.
    """

    def __init__(self) -> None:
        self._texts: WeakKeyDictionary[Dialect, dict[object, _Text]] = WeakKeyDictionary()

    def rows(self, connection: Connection, statement: ClauseElement, parameters: dict[str, Any]) -> list[Any]:
        """Execute a statement and give its rows as tuples of the driver.

        Args:
            connection: a connection.
            statement: one that is kept by its owner, to be found again.
            parameters: by name; a driver may get the very dictionary.
        """
        dialect = connection.dialect
        translate = connection.get_execution_options().get("schema_translate_map")
        key = (statement, frozenset(translate.items())) if translate else statement
        texts = self._texts.get(dialect)
        if texts is None:
            texts = self._texts.setdefault(dialect, {})
        text = texts.get(key)
        if text is None:
            if len(texts) >= _MOST_TEXTS:
                texts.clear()
            text = texts[key] = _Text.of(statement, dialect, translate)
        return fetched(connection.exec_driver_sql(text.sql, text.arranged(parameters), UNBUFFERED))

    def __reduce__(self) -> tuple[type[CompiledStatements], tuple[()]]:
        return type(self), ()  # a store can be pickled; what is compiled is of this process
