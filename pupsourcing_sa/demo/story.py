"""The demo from start to end, written to a console."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import OptimisticConcurrencyError
from pupsourcing_sa.demo._database import open_database
from pupsourcing_sa.demo._load import NaiveFollower, run_load
from pupsourcing_sa.demo._migration import migrate
from pupsourcing_sa.demo.app import Provider, User, register, store
from pupsourcing_sa.demo.writer import create_shared_users

__all__ = ["run_demo"]

_events = store.tables.events

#: The correct read model, computed from the log alone: the domain in each user's last event.
_EXPECTED = text(
    """
    SELECT split_part(convert_from(payload, 'UTF8')::jsonb ->> 'email', '@', 2) AS domain, count(*) AS users
    FROM (SELECT DISTINCT ON (aggregate_id) payload FROM events
          WHERE aggregate_type = 'User' ORDER BY aggregate_id, aggregate_version DESC) AS latest
    GROUP BY domain ORDER BY domain
    """
)


def run_demo(console: Console, *, events: int, writers: int, database_url: str | None, keep: bool) -> bool:
    """Run the demo. Return True if the read model agrees with the log.

    Args:
        console: shows the steps and results.
        events: number of events to append under load.
        writers: number of processes that append them.
        database_url: URL of a PostgreSQL database; by default an embedded server is started.
        keep: keep the demo's schema in that database.
    """
    started_at = time.monotonic()
    with open_database(database_url, keep=keep) as database, tempfile.TemporaryDirectory() as directory:
        engine = create_engine(database.url)
        try:
            with engine.connect() as connection:
                version = connection.scalar(text("SHOW server_version"))
            _headline(console, 1, f"PostgreSQL {version}", database.description)
            _migrations(console, database.url, Path(directory))
            _one_transaction(console, engine)
            naive = NaiveFollower(engine)
            is_correct = _under_load(console, engine, database.url, naive, events=events, writers=writers)
        finally:
            engine.dispose()
    verdict = "[bold green]The read model agrees with the log" if is_correct else "[bold red]The read model is WRONG"
    console.print(f"\n{verdict}[/] [dim]({time.monotonic() - started_at:.1f} s)[/]")
    return is_correct


def _headline(console: Console, number: int, title: str, remark: str) -> None:
    console.print(f"\n[bold cyan]{number}[/]  [bold]{title}[/]  [dim]{remark}[/]", soft_wrap=True)


def _migrations(console: Console, url: str, directory: Path) -> None:
    _headline(console, 2, "Migrations", "alembic revision --autogenerate, upgrade head, check")
    revision = migrate(url, directory).read_text()
    for table in re.findall(r"op\.create_table\(\s*['\"](\w+)", revision):
        console.print(f"   [green]+[/] {table}")
    console.print("   a second autogenerate finds no difference")


def _one_transaction(console: Console, engine: Engine) -> None:
    _headline(console, 3, "One transaction", "commits an ORM model and its event together, or neither")
    with Session(engine) as session:
        create_shared_users(session)
        register(session, "ann", "ann@example.org")
        session.commit()
        _report(console, "register ann, commit", session)
        register(session, "bob", "bob@example.org")
        session.rollback()
        _report(console, "register bob, roll back", session)
        try:
            register(session, "ann", "ann@example.net")
        except OptimisticConcurrencyError as error:
            console.print(f"   register ann again         [yellow]{type(error).__name__}[/]: {error}", soft_wrap=True)
        session.rollback()


def _report(console: Console, action: str, session: Session) -> None:
    users = session.scalar(select(func.count()).select_from(User))
    events = session.scalar(select(func.count()).select_from(_events))
    console.print(f"   {action:<26} {users} users, {events} events")


def _under_load(console: Console, engine: Engine, url: str, naive: NaiveFollower, *, events: int, writers: int) -> bool:
    _headline(
        console,
        4,
        f"{writers} processes append events, two worker nodes process them",
        "commits out of order, rollbacks, savepoints, conflicts, kill -9",
    )
    naive.start()
    try:
        load = run_load(console, engine, url, events=events, writers=writers)
    finally:
        naive.stop()
    behind = load.projected_in - load.appended_in
    console.print(
        f"   after {load.killed_at:,} events, kill -9 ended the node that ran the consumer\n"
        f"   the other node took over {load.taken_over_in:.1f} s later\n"
        f"   the worker caught up {behind:.1f} s after the last append",
        soft_wrap=True,
    )

    _headline(console, 5, "The result", "the read model, compared with SQL over the log")
    with sessionmaker(engine)() as session:
        expected = {row.domain: row.users for row in session.execute(_EXPECTED)}
        actual = {provider.domain: provider.users for provider in session.scalars(select(Provider))}
        positions = set(session.scalars(select(_events.c.global_position)))
    table = Table("domain", "read model", "log", box=None, padding=(0, 3), header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for domain in sorted(expected.keys() | actual.keys()):
        users, correct = actual.get(domain, 0), expected.get(domain, 0)
        style = None if users == correct else "bold red"
        table.add_row(domain, f"{users:,}", f"{correct:,}", style=style)
    console.print(table)
    rolled_back = max(positions) - len(positions)
    console.print(
        f"   {len(positions):,} events in the log, {rolled_back:,} positions lost to rollbacks\n"
        f"   events missed by a follower that reads [dim]global_position > last[/]: "
        f"[yellow]{len(positions - naive.seen):,}[/]\n"
        f"   events missed by the worker: [green]{0 if expected == actual else 'some'}[/]",
        soft_wrap=True,
    )
    return expected == actual
