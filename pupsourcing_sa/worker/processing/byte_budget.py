"""The byte budget of a batch: payloads and metadata are in memory together, so their size has a limit.

Most events are small. The budget therefore has two ways to read a page::

                     an event is larger than its share
    by share  ─────────────────────────────────────────▶  measured
    (costs nothing)  ◀─────────────────────────────────   (measures every event of the page)
                     no event of a whole page is

- **By share.** An event may have the budget divided by the batch size. The page ends before the first larger event, so
  it has at most the budget whatever the log contains.
- **Measured.** PostgreSQL adds up the sizes, and the page ends before the event that exceeds the budget.

An event that is larger than the budget is a batch of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pupsourcing_sa.event import PersistedEvent
from pupsourcing_sa.store.pages import ByteLimit, Page

__all__ = ["BoundedPages", "ByteBudget"]


@dataclass(frozen=True, slots=True)
class ByteBudget:
    """The budget of the next batch. Pure: values in, new values out.

    Attributes:
        max_bytes: maximum number of bytes of a batch.
        batch_size: maximum number of events of a batch.
        max_measured: maximum number of events that the next page measures; ``None`` if it is read by share.
    """

    max_bytes: int
    batch_size: int
    max_measured: int | None = None

    @property
    def share(self) -> int:
        """Maximum number of bytes of a small event."""
        return self.max_bytes // self.batch_size

    def after_share(self, *, is_cut: bool) -> ByteBudget:
        """Return the budget after a page that was read by share."""
        return replace(self, max_measured=self.batch_size) if is_cut else self

    def after_measuring(self, sizes: Sequence[int], *, is_cut: bool) -> ByteBudget:
        """Return the budget after a page that was measured.

        Args:
            sizes: bytes of each event.
            is_cut: the next event did not fit.
        """
        if is_cut:
            # To measure a JSONB payload, PostgreSQL reads it. Do not measure many more events than fit.
            return replace(self, max_measured=min(2 * len(sizes), self.batch_size))
        if sizes and max(sizes) <= self.share:
            return replace(self, max_measured=None)
        return replace(self, max_measured=min(2 * (self.max_measured or 1), self.batch_size))


class BoundedPages:
    """Reader of the pages of one partition, within a byte budget. Used by one batch at a time.

    Args:
        max_bytes: maximum number of bytes of a batch.
        batch_size: maximum number of events of a batch.
    """

    def __init__(self, max_bytes: int, batch_size: int) -> None:
        self._budget = ByteBudget(max_bytes, batch_size)

    def read(self, read_page: Callable[..., Page], limit: int) -> Page:
        """Return the next page.

        Args:
            read_page: `LogReader.page` without its last arguments.
            limit: maximum number of events.
        """
        budget = self._budget
        if budget.max_measured is None:
            page = read_page(limit, max_bytes=budget.share, byte_limit=ByteLimit.EACH)
            budget = self._budget = budget.after_share(is_cut=page.is_cut)
            # The first event may be too large. Then the page is measured at once.
            if page.events or not page.is_cut:
                return page
        assert budget.max_measured is not None
        page = read_page(min(limit, budget.max_measured), max_bytes=budget.max_bytes)
        self._budget = budget.after_measuring(list(map(_size, page.events)), is_cut=page.is_cut)
        return page


def _size(event: PersistedEvent) -> int:
    return len(event.payload) + len(event.metadata_json or "")
