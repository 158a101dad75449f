"""An application whose handlers hang, each in another way. Tests copy this file and run its workers."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker

url = os.environ["DATABASE_URL"]
sessions, async_sessions = sessionmaker(create_engine(url)), async_sessionmaker(create_async_engine(url))
insert = text("INSERT INTO seen VALUES (1)")


@consumer("hanging")
def asleep(session, event):
    session.execute(insert)
    Path("entered").touch()
    time.sleep(600)


@consumer("hanging")
def busy(session, event):
    session.execute(insert)
    Path("entered").touch()
    while True:
        pass


@consumer("hanging")
async def waiting(session, event):
    await session.execute(insert)
    Path("entered").touch()
    await asyncio.sleep(600)


@consumer("hanging")
async def blocking(session, event):
    await session.execute(insert)
    Path("entered").touch()
    time.sleep(600)


def hang():
    Path("entered").touch()
    time.sleep(600)


@consumer("hanging")
def pooled(session, event):
    session.execute(insert)
    ThreadPoolExecutor().submit(hang).result()


@consumer("hanging")
async def threaded(session, event):
    await session.execute(insert)
    await asyncio.to_thread(hang)


workers = {
    name: Worker(factory, EventStore(), [handler])
    for name, factory, handler in [
        ("asleep", sessions, asleep),
        ("busy", sessions, busy),
        ("waiting", async_sessions, waiting),
        ("blocking", async_sessions, blocking),
        ("pooled", sessions, pooled),
        ("threaded", async_sessions, threaded),
    ]
}
globals().update(workers)
