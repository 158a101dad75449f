"""The log on standard error, as lines of text or of JSON."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pupsourcing_sa.printable import indented

__all__ = ["FORMATS", "LEVELS", "JsonFormatter", "TextFormatter", "configure_logging", "is_json_log", "log_everything"]

_logger = logging.getLogger("pupsourcing_sa.cli")

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

#: Attributes of every record. All others are data of the message. Python 3.12 added ``taskName``.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(log_format: str | None, level: str | None) -> None:
    """Log to standard error.

    Args:
        log_format: ``"text"`` or ``"json"``. By default text, unless the application has configured logging.
        level: one of `LEVELS`, by default info. If it is given, it also limits the library's messages in an application
            that has configured logging.
    """
    number = logging.getLevelNamesMapping()[(level or "info").upper()]
    if level is not None:
        logging.getLogger("pupsourcing_sa").setLevel(number)
    if log_format is None and logging.getLogger().hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    # Do not show debug messages of other libraries.
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)


def is_json_log() -> bool:
    """Return True if the log consists of lines of JSON, so that a message must be one, too."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def log_everything() -> None:
    """Log what Python itself would print to standard error: warnings, and exceptions that end a thread."""
    logging.captureWarnings(True)

    def in_thread(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_type is not SystemExit:
            _logger.error(
                "thread failed", exc_info=failed.exc_value, extra={"thread_name": failed.thread and failed.thread.name}
            )

    def unraisable(failed: Any) -> None:
        _logger.error("exception was ignored", exc_info=failed.exc_value, extra={"object": repr(failed.object)})

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


class TextFormatter(logging.Formatter):
    """``2026-07-25 11:29:05.120 INFO    worker started consumers=["a","b"] process=4711``

    Records of other libraries also have ``logger=``. Further lines, as of a traceback, are indented. Control characters
    are escaped.
    """

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return indented(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        data = _data(record)
        if record.name.partition(".")[0] != "pupsourcing_sa":
            data["logger"] = record.name
        data["process"] = record.process
        return super().formatMessage(record) + "".join(f" {name}={_as_text(value)}" for name, value in data.items())


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time`` (UTC), ``level``, ``logger``, ``process``, ``message``, and the data.

    Data with one of these names gets an underscore appended to its name. ``exception`` is a traceback as text.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": _message(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        for name, value in _data(record).items():
            line[f"{name}_" if name in line else name] = _as_json(value)
        return json.dumps(line)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - logging would print a traceback, which is not JSON
        return str(record.msg)


def _data(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _as_text(value: Any) -> str:
    """Return one word unchanged, and everything else in quotes, so that data cannot imitate a line or another name."""
    value = _as_json(value)
    if isinstance(value, str) and value.isprintable() and value and not set(value) & set(" \"'="):
        return value
    quoted = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return quoted if quoted.isprintable() else json.dumps(value, separators=(",", ":"))


def _as_json(value: Any) -> Any:
    """Return a value that JSON can represent. A logger must not fail because of the data."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # Floats are times in seconds.
        return round(value, 3) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_json(item) for item in value]
    try:
        return str(value)
    except Exception:  # noqa: BLE001
        return f"<{type(value).__name__}>"
