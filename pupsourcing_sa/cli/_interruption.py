"""SIGINT and SIGTERM for ``pupsourcing-sa import``, which must know what is in the log when it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interrupted", "InterruptibleReader"]


class Interrupted(KeyboardInterrupt):
    """A signal ends the import.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number


class InterruptibleReader:
    """A context in which the first signal ends the reading of lines, and the second one ends anything.

    A transaction that is interrupted while it commits may be committed or not. The first signal therefore waits until
    the import reads its next line, between two transactions.
    """

    def __init__(self) -> None:
        self._is_reading = False
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def read(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines.

        Raises:
            Interrupted: a signal was received before or while a line is read.
        """
        iterator = iter(lines)
        while True:
            self._is_reading = True
            if self._received is not None:
                raise Interrupted(self._received)
            line = next(iterator, None)
            self._is_reading = False
            if line is None:
                return
            yield line

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._is_reading or self._received is not None:
            raise Interrupted(number)
        self._received = number
