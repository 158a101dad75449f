"""The demo from beginning to end, told on a console."""

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
from pupsourcing_sa.demo._database import database
from pupsourcing_sa.demo._load import NaiveFollower, run_load
from pupsourcing_sa.demo._migration import migrate
from pupsourcing_sa.demo.app import Provider, User, register, store
from pupsourcing_sa.demo.writer import create_shared_users

__all__ = ["run_demo"]

_events = store.tables.events

#: What the read model should say, from nothing but the log: where each user's last event left the mailbox.
_EXPECTED = text(
    """
    SELECT split_part(convert_from(payload, 'UTF8')::jsonb ->> 'email', '@', 2) AS domain, count(*) AS users
    FROM (SELECT DISTINCT ON (aggregate_id) payload FROM events
          WHERE aggregate_type = 'User' ORDER BY aggregate_id, aggregate_version DESC) AS latest
    GROUP BY domain ORDER BY domain
    """
)


def run_demo(console: Console, *, events: int, writers: int, database_url: str | None, keep: bool) -> bool:
    """Run the demo.

    Args:
        console: where it is told.
        events: so many events are appended under load.
        writers: by so many processes.
        database_url: a PostgreSQL database to work in; an embedded server by default.
        keep: leave the demo's schema in that database.

    Returns:
        Whether the read model agrees with the log.
    """
    began = time.monotonic()
    with database(database_url, keep=keep) as place, tempfile.TemporaryDirectory() as directory:
        engine = create_engine(place.url)
        try:
            with engine.connect() as connection:
                version = connection.scalar(text("SHOW server_version"))
            _headline(console, 1, f"PostgreSQL {version}", place.description)
            _migrations(console, place.url, Path(directory))
            _one_transaction(console, engine)
            naive = NaiveFollower(engine)
            is_right = _under_load(console, engine, place.url, naive, events=events, writers=writers)
        finally:
            engine.dispose()
    verdict = "[bold green]The read model agrees with the log" if is_right else "[bold red]The read model is WRONG"
    console.print(f"\n{verdict}[/] [dim]({time.monotonic() - began:.1f} s)[/]")
    return is_right


def _headline(console: Console, number: int, title: str, remark: str = "") -> None:
    console.print(f"\n[bold cyan]{number}[/]  [bold]{title}[/]  [dim]{remark}[/]", soft_wrap=True)


def _migrations(console: Console, url: str, directory: Path) -> None:
    _headline(console, 2, "Migrations", "alembic revision --autogenerate, upgrade head, check")
    revision = migrate(url, directory).read_text()
    for table in re.findall(r"op\.create_table\(\s*['\"](\w+)", revision):
        console.print(f"   [green]+[/] {table}")
    console.print("   a second autogenerate finds nothing to do")


def _one_transaction(console: Console, engine: Engine) -> None:
    _headline(console, 3, "One transaction", "a row of an ORM model and an event, or neither")
    with Session(engine) as session:
        create_shared_users(session)
        register(session, "ann", "ann@example.org")
        session.commit()
        _tell(console, "register ann, commit", session)
        register(session, "bob", "bob@example.org")
        session.rollback()
        _tell(console, "register bob, roll back", session)
        try:
            register(session, "ann", "ann@example.net")
        except OptimisticConcurrencyError as error:
            console.print(f"   register ann again         [yellow]{type(error).__name__}[/]: {error}", soft_wrap=True)
        session.rollback()


def _tell(console: Console, what: str, session: Session) -> None:
    users = session.scalar(select(func.count()).select_from(User))
    events = session.scalar(select(func.count()).select_from(_events))
    console.print(f"   {what:<26} {users} users, {events} events")


def _under_load(console: Console, engine: Engine, url: str, naive: NaiveFollower, *, events: int, writers: int) -> bool:
    _headline(
        console,
        4,
        f"{writers} processes append, two nodes of a worker follow",
        "commits out of order, rollbacks, savepoints, conflicts; kill -9",
    )
    naive.start()
    try:
        load = run_load(console, engine, url, events=events, writers=writers)
    finally:
        naive.stop()
    behind = load.projected_in - load.appended_in
    console.print(
        f"   after {load.killed_at:,} events kill -9 ended the node that was at work; "
        f"the other went on {load.taken_over_in:.1f} s later\n"
        f"   the worker was done {behind:.1f} s after the last writer",
        soft_wrap=True,
    )

    _headline(console, 5, "The proof", "the read model, and plain SQL over the log")
    with sessionmaker(engine)() as session:
        expected = {row.domain: row.users for row in session.execute(_EXPECTED)}
        found = {provider.domain: provider.users for provider in session.scalars(select(Provider))}
        positions = set(session.scalars(select(_events.c.global_position)))
    table = Table("domain", "read model", "log", box=None, padding=(0, 3), header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for domain in sorted(expected.keys() | found.keys()):
        mine, truth = found.get(domain, 0), expected.get(domain, 0)
        style = None if mine == truth else "bold red"
        table.add_row(domain, f"{mine:,}", f"{truth:,}", style=style)
    console.print(table)
    rolled_back = max(positions) - len(positions)
    console.print(
        f"   {len(positions):,} events in the log, {rolled_back:,} positions lost to rollbacks\n"
        f"   a follower of [dim]global_position > last[/] missed "
        f"[yellow]{len(positions - naive.seen):,}[/] of them; the worker missed "
        f"[green]{0 if expected == found else 'some'}[/]",
        soft_wrap=True,
    )
    return expected == found
