"""A writing process of the demo: ``python -m pupsourcing_sa.demo.writer NAME EVENTS``.

Its transactions do all that makes a naive follower miss events. They commit in another order than that of their
positions. Some roll back, and some roll back to a savepoint. They compete for the same users.
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
    """Commit this number of events, and roll back some others."""
    generator = random.Random(name)
    written = number = 0
    while written < events:
        number += 1
        email = f"{name}-{number}@{generator.choice(_DOMAINS)}"
        with session_factory() as session:
            register(session, f"{name}-{number}", email)
            committed = 1
            if generator.random() < 0.2 and written + 1 < events:
                try:
                    with session.begin_nested():
                        change_email(session, f"shared-{generator.randrange(_SHARED_USERS)}", email)
                        if generator.random() < 0.2:
                            raise _RolledBack
                    committed += 1
                except (OptimisticConcurrencyError, _RolledBack):
                    # Only the savepoint is rolled back.
                    pass
            if generator.random() < 0.1:
                time.sleep(generator.uniform(0, 0.02))
            if generator.random() < 0.05:
                session.rollback()
            else:
                session.commit()
                written += committed


def create_shared_users(session: Session) -> int:
    """Register the users that all writers compete for, and return their number."""
    for number in range(_SHARED_USERS):
        register(session, f"shared-{number}", f"shared-{number}@{_DOMAINS[0]}")
    return _SHARED_USERS


class _RolledBack(Exception):
    """The writer rolls back to the savepoint on purpose."""


if __name__ == "__main__":
    write(sessionmaker(create_engine(os.environ["DATABASE_URL"])), sys.argv[1], int(sys.argv[2]))
