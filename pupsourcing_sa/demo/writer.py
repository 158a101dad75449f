"""One of the demo's writing processes: ``python -m pupsourcing_sa.demo.writer NAME EVENTS``.

It does to the log what breaks followers of a growing number: its transactions commit in another order than they got
their positions, some roll back, some roll back to a savepoint, and they compete for the same users.
"""

from __future__ import annotations

import os
import random
import sys
import time

from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import OptimisticConcurrencyError
from pupsourcing_sa.demo.app import change_email, register

_DOMAINS = ("example.com", "example.net", "example.org", "mail.example", "post.example", "shop.example")
_SHARED_USERS = 20


def write(session_factory: sessionmaker[Session], name: str, events: int) -> None:
    """Commit so many events, and roll back some others."""
    chance = random.Random(name)
    written = number = 0
    while written < events:
        number += 1
        email = f"{name}-{number}@{chance.choice(_DOMAINS)}"
        with session_factory() as session:
            register(session, f"{name}-{number}", email)
            committed = 1
            if chance.random() < 0.2 and written + 1 < events:
                try:
                    with session.begin_nested():
                        change_email(session, f"shared-{chance.randrange(_SHARED_USERS)}", email)
                        if chance.random() < 0.2:
                            raise _Undone
                    committed += 1
                except (OptimisticConcurrencyError, _Undone):
                    pass  # only the savepoint is rolled back
            if chance.random() < 0.1:
                time.sleep(chance.uniform(0, 0.02))
            if chance.random() < 0.05:
                session.rollback()
            else:
                session.commit()
                written += committed


def create_shared_users(session: Session) -> int:
    """Register the users that all writers compete for; gives their number."""
    for number in range(_SHARED_USERS):
        register(session, f"shared-{number}", f"shared-{number}@{_DOMAINS[0]}")
    return _SHARED_USERS


class _Undone(Exception):
    pass


if __name__ == "__main__":
    write(sessionmaker(create_engine(os.environ["DATABASE_URL"])), sys.argv[1], int(sys.argv[2]))
