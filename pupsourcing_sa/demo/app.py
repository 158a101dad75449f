"""The quickstart's application: users register, and a read model counts their mail providers."""

from __future__ import annotations

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pupsourcing_sa import Event, EventStore, EventTables, Exact, NoStream, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.worker import Worker


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[str] = mapped_column(primary_key=True)
    email: Mapped[str]


class Provider(Base):  # the read model
    __tablename__ = "providers"
    domain: Mapped[str] = mapped_column(primary_key=True)
    users: Mapped[int]


store = EventStore(EventTables(Base.metadata))
worker_tables = WorkerTables(Base.metadata)


def user_event(user_id: str, event_type: str, **payload: str) -> Event:
    return Event(aggregate_type="User", aggregate_id=user_id, event_type=event_type, payload=payload)


def register(session: Session, user_id: str, email: str) -> None:
    session.add(User(id=user_id, email=email))
    store.append(session, NoStream(), [user_event(user_id, "UserRegistered", email=email)])


def change_email(session: Session, user_id: str, email: str) -> None:
    version = store.read_aggregate_stream(session, "User", user_id).version
    user = session.get_one(User, user_id)
    store.append(session, Exact(version), [user_event(user_id, "EmailChanged", email=email, was=user.email)])
    user.email = email


@consumer("providers", aggregate_types={"User"})
def count_providers(session: Session, event: PersistedEvent) -> None:
    payload = event.json()
    for email, change in ((payload["email"], 1), (payload.get("was"), -1)):
        if email is not None:
            domain = email.partition("@")[2]
            provider = session.get(Provider, domain) or Provider(domain=domain, users=0)
            provider.users += change
            session.add(provider)


def worker() -> Worker:
    """Return the worker for ``pupsourcing-sa worker pupsourcing_sa.demo.app:worker``."""
    engine = create_engine(os.environ["DATABASE_URL"])
    return Worker(sessionmaker(engine), store, [count_providers], tables=worker_tables)
