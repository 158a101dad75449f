"""Processes that run one side of a benchmark at the same time. Threads would measure Python's global lock."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

from tests.benchmarks.cases import CASES as STORE_CASES
from tests.benchmarks.cases import Case, Database, Side
from tests.benchmarks.import_cases import IMPORT_CASES
from tests.benchmarks.race_cases import RACE_CASES
from tests.benchmarks.typed_cases import TYPED_CASES
from tests.benchmarks.worker_cases import WORKER_CASES

__all__ = ["CASES", "run_slice", "started"]

CASES: dict[str, Case] = STORE_CASES | TYPED_CASES | IMPORT_CASES | WORKER_CASES | RACE_CASES


@contextmanager
def started(url: str, count: int) -> Iterator[Sequence[Connection]]:
    """Start `count` processes with connections to a database, and yield the pipes to them."""
    context = get_context("spawn")
    pairs = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=_serve, args=(url, theirs), daemon=True) for _, theirs in pairs]
    for process, (_, theirs) in zip(processes, pairs, strict=True):
        process.start()
        theirs.close()  # so that the pipe ends with the process
    try:
        yield [ours for ours, _ in pairs]
    finally:
        for ours, _ in pairs:
            ours.close()
        for process in processes:
            process.join()


def run_slice(writers: Sequence[Connection], case: str, side: int, seconds: float) -> float:
    """Return the events per second of all processes together, on one side of a case."""
    for pipe in writers:
        pipe.send((case, side, seconds))
    for pipe in writers:
        pipe.recv()  # the process has made its arguments
    for pipe in writers:
        pipe.send("go")
    return sum(pipe.recv() for pipe in writers)


def _serve(url: str, pipe: Connection) -> None:
    database = Database(url)
    sides: dict[str, tuple[Side, Side]] = {}
    rates: dict[tuple[str, int], float] = {}  # operations per second, to know how many arguments a slice needs
    while True:
        try:
            case, number, seconds = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if case not in sides:
            sides[case] = CASES[case].sides(database)
        supply, run = sides[case][number]
        arguments = supply(int(rates.get((case, number), 200) * seconds * 1.5) + 20)
        gc.collect()
        pipe.send("ready")
        pipe.recv()
        operations = events = 0
        now = start = time.perf_counter()
        for argument in arguments:
            events += run(argument)
            operations += 1
            now = time.perf_counter()
            if now - start > seconds:
                break
        rates[case, number] = operations / (now - start)
        pipe.send(events / (now - start))
