"""Reports of exceptions without the values that a statement wrote or read.

PostgreSQL, the drivers and SQLAlchemy quote values in their messages, such as the key that exists already. A report
keeps what an operator needs::

    sqlalchemy.exc.IntegrityError: (psycopg.errors.UniqueViolation) SQLSTATE 23505, constraint users_pkey, table users
    [SQL: INSERT INTO users (email) VALUES (%(email)s)]
    [parameters hidden; hide_parameters=False shows them]

- The message of the server is kept if it can only quote names: if the server, the connection or the transaction is the
  problem, or if the parser refused the statement. For any other error, the class of the exception names the condition.
- Messages of the application's own exceptions are kept. If one quotes the whole text of a hidden one, that part is
  replaced.
- The report is an exception of a class with the same name and bases, and has the same traceback. Handlers of `logging`
  and telemetry can use it in place of the original, which is not changed.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from sqlalchemy.exc import MissingGreenlet, MultipleResultsFound, NoResultFound, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import DetachedInstanceError, StaleDataError

from pupsourcing_sa.postgres.errors import diagnostics_of, sqlstate_of

__all__ = ["redacted"]

#: Packages whose exceptions quote values.
_LIBRARIES: Final = frozenset({"asyncpg", "psycopg", "psycopg2", "sqlalchemy"})
#: SQLAlchemy's exceptions without values.
_HARMLESS: Final = (
    DetachedInstanceError,
    MissingGreenlet,
    MultipleResultsFound,
    NoResultFound,
    PoolTimeout,
    StaleDataError,
)
#: Exceptions of Python that name types, attributes and addresses, even if a library raises them.
_HARMLESS_OF_PYTHON: Final = (AttributeError, OSError, TypeError)
#: SQLSTATE classes of the server, the connection and the transaction: their messages quote names at most.
_HARMLESS_CLASSES: Final = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58"})
_INSUFFICIENT_PRIVILEGE: Final = "42501"
#: The names of a diagnostic field in drivers, and in the report.
_FIELDS: Final = {
    "constraint_name": "constraint",
    "schema_name": "schema",
    "table_name": "table",
    "column_name": "column",
    "datatype_name": "type",
    "data_type_name": "type",
}
#: Attributes of an exception that its report has, too. The other ones are None, unless they are True or False.
_KEPT_ATTRIBUTES: Final = frozenset({"code", "sqlstate", "pgcode", "statement", *_FIELDS})


def redacted(error: BaseException, *, hide_parameters: bool = True) -> BaseException:
    """Return a report of the exception, its causes, contexts and members; see the module.

    Returns:
        The exception itself if no value must be hidden.
    """
    chain = list(_chain(error)) if hide_parameters else []
    originals = {id(member.orig) for member in chain if isinstance(member, StatementError)}
    hidden = [member for member in chain if id(member) in originals or _quotes_values(member)]
    if not hidden:
        return error
    texts = {id(member): _report(member) for member in hidden}
    quotations = [(quoted, texts[id(member)]) for member in hidden for quoted in _quotations(member)]
    quotations.sort(key=lambda pair: len(pair[0]), reverse=True)
    copies: dict[int, BaseException] = {}
    for member in chain:
        _copy(member, texts, quotations, copies)
    for member in chain:
        _connect(member, copies, quotations, is_hidden=id(member) in texts)
    return copies[id(error)]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception, and the exceptions that it refers to, each once."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        member = pending.pop(0)
        if isinstance(member, BaseException) and id(member) not in seen:
            seen.add(id(member))
            yield member
            pending += (member.__cause__, member.__context__, getattr(member, "orig", None))
            if isinstance(member, BaseExceptionGroup):
                pending += member.exceptions


def _quotes_values(error: BaseException) -> bool:
    """Return True if the message of a single exception may quote values."""
    if _package(type(error).__module__) in _LIBRARIES:
        return not isinstance(error, _HARMLESS)
    return not isinstance(error, _HARMLESS_OF_PYTHON) and _is_raised_by_library(error)


def _is_raised_by_library(error: BaseException) -> bool:
    """Return True for an exception of Python that a library has raised, or has caught and translated.

    Examples are a LookupError of ``Enum``, and a ValueError that is the cause of asyncpg's DataError.
    """
    outermost = innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    return any(
        frames is not None and _package(frames.tb_frame.f_globals.get("__name__", "")) in _LIBRARIES
        for frames in (outermost, innermost)
    )


def _package(module: str) -> str:
    return module.partition(".")[0]


def _report(error: BaseException) -> str:
    """Return the text that replaces the message of a hidden exception."""
    if not isinstance(error, StatementError):
        return _facts(error) or "message hidden; hide_parameters=False shows it"
    lines = []
    if (orig := error.orig) is not None:
        # SQLAlchemy has few classes for the errors of asyncpg. The cause is the error of asyncpg itself.
        named = orig.__cause__ if _package(type(orig).__module__) == "sqlalchemy" and orig.__cause__ else orig
        lines.append(f"({type(named).__module__}.{type(named).__qualname__}) {_facts(orig)}".rstrip())
    if error.statement:
        lines.append(f"[SQL: {error.statement}]")
    return "\n".join([*lines, "[parameters hidden; hide_parameters=False shows them]"])


def _facts(error: BaseException) -> str:
    """Return what PostgreSQL or the driver says about an error, without values; empty if it says nothing else."""
    state = sqlstate_of(error)
    if not state:
        return _text(error) if _is_about_connection(error) else ""
    diagnostics = diagnostics_of(error)
    facts = [f"SQLSTATE {state}"]
    facts += [f"{label} {value}" for field, label in _FIELDS.items() if (value := getattr(diagnostics, field, None))]
    if _is_harmless(str(state), diagnostics):
        message = getattr(diagnostics, "message_primary", None) or getattr(diagnostics, "message", None)
        facts.insert(0, str(message or _text(error).partition("\n")[0]))
    return ", ".join(facts)


def _is_about_connection(error: BaseException) -> bool:
    """Return True if a driver could not reach the server, or has lost it. The server has sent no SQLSTATE."""
    return _package(type(error).__module__) in _LIBRARIES and any(
        base.__name__ in ("OperationalError", "InterfaceError") for base in type(error).__mro__
    )


def _is_harmless(state: str, diagnostics: Any) -> bool:
    """Return True if the server's message can only quote names and the text of the statement."""
    # A function can raise any SQLSTATE with any message. The name of the language is never translated.
    if "PL/pgSQL" in (getattr(diagnostics, "context", None) or ""):
        return False
    # The parser and the analysis report a position in the statement. Errors in values do not have one.
    position = getattr(diagnostics, "statement_position", None) or getattr(diagnostics, "position", None)
    is_of_parser = state.startswith("42") and position is not None
    return state[:2] in _HARMLESS_CLASSES or state == _INSUFFICIENT_PRIVILEGE or is_of_parser


def _quotations(error: BaseException) -> Iterator[str]:
    """Yield the texts by which another exception may quote this one."""
    for quote in (str, repr):
        with suppress(Exception):
            if text := quote(error):
                yield text
                # An exception with several arguments quotes each of them by its representation.
                yield repr(text)[1:-1]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - traceback does the same
        return "<exception str() failed>"


def _replaced(text: str, quotations: list[tuple[str, str]]) -> str:
    for quoted, report in quotations:
        text = text.replace(quoted, report)
    return text


def _copy(
    error: BaseException,
    texts: Mapping[int, str],
    quotations: list[tuple[str, str]],
    copies: dict[int, BaseException],
) -> BaseException:
    """Add an exception of an equal class with another text to the copies, without causes and attributes."""
    if id(error) in copies:
        return copies[id(error)]
    text = texts.get(id(error)) or _replaced(_text(error), quotations)
    arguments: tuple[Any, ...] = (text,)
    if isinstance(error, BaseExceptionGroup):
        members = [_copy(member, texts, quotations, copies) for member in error.exceptions]
        arguments = (_replaced(error.message, quotations), members)
    try:
        copy = _new(type(error), type(error), text, arguments)
    except Exception:  # noqa: BLE001 - a class of the application may refuse
        copy = _new(type(error), Exception, text, (text,))
    copies[id(error)] = copy
    return copy


def _new(cls: type[BaseException], base: type[BaseException], text: str, arguments: tuple[Any, ...]) -> BaseException:
    """Return an exception of a new class that has the base, and the name of another class."""
    members = {"__str__": lambda _: text, "__repr__": lambda _: f"{cls.__name__}({text!r})"}
    copied = types.new_class(cls.__name__, (base,), exec_body=lambda namespace: namespace.update(members))
    copied.__module__, copied.__qualname__ = cls.__module__, cls.__qualname__
    copy: BaseException = copied.__new__(copied, *arguments)
    copy.args = arguments
    return copy


def _connect(
    error: BaseException, copies: Mapping[int, BaseException], quotations: list[tuple[str, str]], *, is_hidden: bool
) -> None:
    """Give the copy of an exception the causes, the traceback, the notes and the attributes."""
    copy = copies[id(error)]
    copy.__cause__ = copies.get(id(error.__cause__))
    copy.__context__ = copies.get(id(error.__context__))
    copy.__suppress_context__ = error.__suppress_context__
    copy.__traceback__ = error.__traceback__
    for name, value in vars(error).items():
        if name == "__notes__":
            copy.__notes__ = [_replaced(str(note), quotations) for note in value]
        elif id(value) in copies:
            vars(copy)[name] = copies[id(value)]
        else:
            is_kept = not is_hidden or name in _KEPT_ATTRIBUTES or isinstance(value, bool)
            vars(copy)[name] = value if is_kept else None
