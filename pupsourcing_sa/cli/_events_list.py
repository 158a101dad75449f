"""The command ``pupsourcing-sa events list``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

import click
from sqlalchemy import Connection

from pupsourcing_sa import EventStore
from pupsourcing_sa._checks import MAX_BIGINT
from pupsourcing_sa.cli._console import escape_unprintable
from pupsourcing_sa.cli._database import (
    STORE_TABLES,
    database_url_option,
    existing_log,
    missing_tables_explained,
    open_engine_for,
    table_options,
    timeout_option,
    transaction,
)
from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._event_text import event_as_json, event_as_line, json_text
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.cli._values import moment, whole_number
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.event import PersistedEvent
from pupsourcing_sa.store.log_reader import LogReader

__all__ = ["list_"]

_LIMIT: Final = 20
_PAGE: Final = 1000
#: Seconds between two looks for new events.
_INTERVAL: Final = 0.5

_HELP: Final = """\
List events, the newest ones last.

By default these are the 20 newest events that match all options. With --after, they are the first ones after a
position. Only events up to the stable position are shown: later ones may still change their order.

An aggregate and a correlation id are found by an index. The other options filter the log from its end, or from --after,
until enough events match, so a rare type may take long.

A line has the position, created_at, the aggregate with its version, the event type with its version, and the beginning
of the payload. With --json, a payload that is not JSON is in payload_base64 instead of payload.
"""


@click.command(
    "list",
    cls=Command,
    help=_HELP,
    short_help="List events of the log.",
    examples=[
        "pupsourcing-sa events list --aggregate Order o1",
        "pupsourcing-sa events list --type OrderPlaced --since 2026-01-02T00:00Z --json",
        "pupsourcing-sa events list --follow",
    ],
    exit_status={
        0: "success, even if no event matches",
        1: "the database cannot be reached, or the log cannot be followed",
        2: "wrong usage",
        130: "interrupted (SIGINT)",
    },
)
@option("--aggregate", group="Events", metavar="TYPE ID", nargs=2, help="Events of this aggregate.")
@option("--type", "types", group="Events", metavar="NAME", multiple=True, help="Events of this type; repeatable.")
@option("--correlation", group="Events", metavar="ID", help="Events with this correlation id.")
@option("--since", group="Events", metavar="TIME", type=moment, help="created_at at or after TIME, in ISO 8601.")
@option("--until", group="Events", metavar="TIME", type=moment, help="created_at before TIME.")
@option(
    "--after",
    group="Events",
    metavar="POSITION",
    type=whole_number(0, MAX_BIGINT),
    help="Events after this position, the first ones instead of the newest.",
)
@option(
    "--limit",
    group="Events",
    metavar="N",
    type=whole_number(0, 100_000),
    help="Maximum number of events; with --follow, of those that exist.",
    default_text=f"{_LIMIT}; no limit with --after and --follow",
)
@option("--follow", group="Events", is_flag=True, help="Then show new events, until Ctrl-C.")
@option("--json", "is_json", group="Output", is_flag=True, help="Print one JSON object per line.")
@timeout_option("Give up if a statement takes longer than S seconds.")
@database_url_option
@table_options(STORE_TABLES)
def list_(
    aggregate: tuple[str, str] | None,
    types: tuple[str, ...],
    correlation: str | None,
    since: datetime | None,
    until: datetime | None,
    after: int | None,
    limit: int | None,
    follow: bool,
    is_json: bool,
    timeout: float,
    database_url: str | None,
    schema: str | None,
    **names: str | None,
) -> None:
    """Run the command."""
    if follow and until is not None:
        raise UsageError("--until does not apply to --follow. Leave out one of the two")
    if follow and after is not None and limit is not None:
        raise UsageError("--limit does not apply to --follow with --after, which shows all events. Leave it out")
    if since is not None and until is not None and since >= until:
        raise UsageError("--since must be before --until")
    scope = Scope(aggregate=aggregate, event_types=types or None, correlation_id=correlation, since=since, until=until)
    to_text: Callable[[PersistedEvent], str] = event_as_line
    if is_json:
        to_text = lambda event: json_text(event_as_json(event))  # noqa: E731
    escape_unprintable(sys.stdout)
    engine = open_engine_for(database_url, timeout)
    with engine.connect() as connection, missing_tables_explained():
        listing = _Listing(connection, scope, timeout, schema, names)
        for event in listing.events(after, _LIMIT if limit is None else limit, follow=follow):
            print(to_text(event), flush=follow)


class _Listing:
    """Events of a scope, read in short transactions."""

    def __init__(
        self,
        connection: Connection,
        scope: Scope,
        timeout: float,
        schema: str | None,
        names: dict[str, str | None],
    ) -> None:
        self._connection = connection
        self._scope = scope
        self._timeout = timeout
        with transaction(connection, timeout):
            self._reader: LogReader = EventStore(existing_log(connection, schema, names)).reader

    def events(self, after: int | None, limit: int, *, follow: bool) -> Iterator[PersistedEvent]:
        """Yield the events that exist, then new ones."""
        if not follow or after is None:
            page, stable = self._existing(after, limit)
            yield from page
            after = stable
        while follow:
            page, after, has_more = self._new(after)
            yield from page
            if not has_more:
                time.sleep(_INTERVAL)

    def _existing(self, after: int | None, limit: int) -> tuple[list[PersistedEvent], int]:
        with transaction(self._connection, self._timeout):
            positions = self._reader.positions(self._connection, check_isolation=True)
            is_newest = after is None
            page = self._reader.page(
                self._connection, self._scope, after or 0, positions.stable, limit, backwards=is_newest
            )
        if positions.stable < positions.last:
            print(
                f"note: events after position {positions.stable} are not shown until the transactions that append have "
                "ended",
                file=sys.stderr,
            )
        return page.events[::-1] if is_newest else page.events, positions.stable

    def _new(self, after: int) -> tuple[list[PersistedEvent], int, bool]:
        """Return a page of events, the position to continue after, and True if there may be more."""
        with transaction(self._connection, self._timeout):
            end = max(after, self._reader.end(self._connection, None))
            page = self._reader.page(self._connection, self._scope, after, end, _PAGE)
        return page.events, page.events[-1].global_position if page.has_more else end, page.has_more
