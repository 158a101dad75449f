"""Run the benchmarks and print a table: ``python -m tests.benchmarks [NAME …] [--rounds N] [--seconds S]``.

The store and the baseline run in turn, in short slices. The one that runs first changes from pair to pair. Each pair
yields a ratio, store / baseline. Other load on the machine slows both, so the ratio is what counts. The table shows its
median and quartiles next to the median rates. Nothing is asserted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from statistics import median, quantiles

from sqlalchemy import Engine, create_engine, text

from pupsourcing_sa import AnyVersion
from tests.benchmarks.cases import AGGREGATES, STREAM, make_events, store
from tests.benchmarks.program import describe, own_database, parse
from tests.benchmarks.worker_cases import worker_metadata
from tests.benchmarks.writers import CASES, run_slice, started

_WIDTH = max(map(len, CASES))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="The store beside bare psycopg.")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of slices for each benchmark (default: 15)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a slice (default: 0.3)")
    options, chosen = parse(parser, CASES)
    if options.rounds < 2 or options.seconds <= 0:
        parser.error("--rounds must be 2 or more, for there to be quartiles, and --seconds more than 0")
    with ExitStack() as stack:
        url = stack.enter_context(own_database())
        engine = create_engine(url)
        stack.callback(engine.dispose)
        store.tables.events.metadata.create_all(engine)
        worker_metadata.create_all(engine)
        _print_header(engine, options.rounds, options.seconds)
        writers = {
            count: stack.enter_context(started(url, count)) for count in {CASES[name].writers for name in chosen}
        }
        is_filled = False
        for name in chosen:
            case = CASES[name]
            if not (case.is_reading and is_filled):
                _fill(engine, is_wanted=case.is_reading)
                is_filled = case.is_reading
            _print_row(name, *_measure(writers[case.writers], name, options.rounds, options.seconds))


def _fill(engine: Engine, *, is_wanted: bool) -> None:
    """Empty the log, and fill it for a benchmark that reads."""
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE events, aggregate_heads"))
        for number in range(0, STREAM if is_wanted else 0, 100):
            for aggregate in range(AGGREGATES):
                store.append(connection, AnyVersion(), make_events(str(aggregate), 100, number))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE events, aggregate_heads"))


def _measure(writers: Sequence[Connection], name: str, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """Return the rates of the store and of the baseline, pair by pair."""
    for side in (0, 1, 0, 1):  # prepares statements, warms caches, measures rates
        run_slice(writers, name, side, seconds / 2)
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            rates[side].append(run_slice(writers, name, side, seconds))
    return rates


def _print_header(engine: Engine, rounds: int, seconds: float) -> None:
    print(f"{describe(engine, 'psycopg')}; {rounds} pairs of {seconds:g} s for each row\n")
    print(f"{'events/s, median':{_WIDTH}}  {'ours':>9}  {'psycopg':>9}  ratio    quartiles  goal", flush=True)


def _print_row(name: str, ours: Sequence[float], baseline: Sequence[float]) -> None:
    low, middle, high = quantiles((one / other for one, other in zip(ours, baseline, strict=True)), n=4)
    rates, quartiles = f"{median(ours):9,.0f}  {median(baseline):9,.0f}", f"{low:.2f} – {high:.2f}"
    goal = CASES[name].goal
    print(f"{name:{_WIDTH}}  {rates}  {middle:5.2f}  {quartiles}  {f'{goal:.2f}' if goal else ''}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
