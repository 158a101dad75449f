"""What the worker logs, as lines of text or of JSON: constant messages, and the data that belongs to them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["JsonFormatter", "TextFormatter", "configure_logging"]

#: What every record has; anything else came in ``extra``. Python 3.12 added ``taskName``.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(log_format: str | None, *, is_quiet: bool) -> None:
    """Log to standard error.

    Args:
        log_format: ``"text"`` or ``"json"``; ``None`` is text, unless the application has configured logging itself.
        is_quiet: warnings and errors only; of ours, also where the application has configured logging itself.
    """
    if is_quiet:
        logging.getLogger("pupsourcing_sa").setLevel(logging.WARNING)
    if log_format is None and logging.getLogger().hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING if is_quiet else logging.INFO, handlers=[handler], force=True)


class TextFormatter(logging.Formatter):
    """``2026-07-25 11:29:05,120 INFO pupsourcing_sa.worker[4711]: worker started consumers=["a","b"]``"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        data = "".join(f" {name}={_as_text(value)}" for name, value in _extras(record).items())
        return super().formatMessage(record) + data


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``process``, ``message``, and the record's data.

    Data that is called like one of these gets an underscore behind its name. An exception is ``exception``, as text.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        for name, value in _extras(record).items():
            line[f"{name}_" if name in line else name] = _as_json(value)
        return json.dumps(line)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _as_text(value: Any) -> str:
    """As it is where it is one word, else in quotes: nothing in it can look like another line or another name."""
    value = _as_json(value)
    if isinstance(value, str) and value.isprintable() and value and not set(value) & set(" \"'="):
        return value
    quoted = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return quoted if quoted.isprintable() else json.dumps(value, separators=(",", ":"))


def _as_json(value: Any) -> Any:
    """What JSON can carry; a logger must not fail for what it is told to log."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else str(value)  # seconds, all of them
    if isinstance(value, Mapping):
        return {str(name): _as_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_json(each) for each in value]
    return str(value)
