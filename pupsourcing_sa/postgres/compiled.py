"""A cache of compiled statements, which are executed without SQLAlchemy Core.

SQLAlchemy 2.0 has no cache key for ON CONFLICT. ``Connection.execute`` therefore compiles an append on each call, which
takes three times as long as the append itself. This module keeps the compiled text and passes it to
``Connection.exec_driver_sql``. SQLAlchemy's transactions, logging, translation of errors and cursor events still apply;
``before_execute`` and ``after_execute``, which receive expressions, are not called. docs/decisions/0006 has the
measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import ClauseElement, Connection, Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from pupsourcing_sa.postgres.connections import UNBUFFERED, fetched

__all__ = ["CompiledStatements"]

#: The limit for applications with a schema per tenant. A text has about 3 kB.
_MAX_TEXTS: Final = 1000


class _Text(NamedTuple):
    """SQL for a driver, with the conversion of parameters that the driver needs."""

    sql: str
    #: Names of the parameters in order, for drivers with positional parameters; ``None`` for named parameters.
    order: tuple[str, ...] | None
    #: Parameters whose values are part of the statement.
    own: dict[str, Any]
    #: Conversions that SQLAlchemy's types apply to parameters for this driver.
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
    """The compiled statements of one owner, for each engine and each ``schema_translate_map`` in use.

    An entry lives as long as the engine's dialect. If two threads compile the same statement at once, the last entry
    stays.
    """

    def __init__(self) -> None:
        self._texts: WeakKeyDictionary[Dialect, dict[object, _Text]] = WeakKeyDictionary()

    def rows(self, connection: Connection, statement: ClauseElement, parameters: dict[str, Any]) -> list[Any]:
        """Execute a statement and return the driver's rows as tuples.

        Args:
            connection: the connection to use.
            statement: a statement that its owner keeps, because the cache finds it by identity.
            parameters: values by name. The dictionary may be passed to the driver and modified.
        """
        dialect = connection.dialect
        translate = connection.get_execution_options().get("schema_translate_map")
        key = (statement, frozenset(translate.items())) if translate else statement
        texts = self._texts.get(dialect)
        if texts is None:
            texts = self._texts.setdefault(dialect, {})
        text = texts.get(key)
        if text is None:
            if len(texts) >= _MAX_TEXTS:
                texts.clear()
            text = texts[key] = _Text.of(statement, dialect, translate)
        return fetched(connection.exec_driver_sql(text.sql, text.arranged(parameters), UNBUFFERED))

    def __reduce__(self) -> tuple[type[CompiledStatements], tuple[()]]:
        # A store can be pickled. The process that loads it compiles again.
        return type(self), ()
