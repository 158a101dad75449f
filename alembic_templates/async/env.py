"""What ``alembic`` runs: which tables there should be, and how to reach the database."""

import asyncio
import os
from logging.config import fileConfig
from typing import Any

from alembic import context
from sqlalchemy import Connection, MetaData, pool
from sqlalchemy.ext.asyncio import async_engine_from_config

from pupsourcing_sa import EventTables, WorkerTables, migrations

config = context.config

if config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)

# A starting point. With models of your own, use their metadata instead, with our tables on it:
#
#     from myapp.models import Base
#
#     target_metadata = Base.metadata
#
# A table that is in the database but not on this metadata is dropped by the next `alembic revision --autogenerate`.
target_metadata = MetaData()

# Leave out the WorkerTables if no worker uses this database. Where the application calls these itself, with the same
# arguments, the tables are the same.
EventTables(target_metadata)
WorkerTables(target_metadata)

# The operations that migrations have besides Alembic's own, for guards and for logs that another program created.
migrations.register()

options: dict[str, Any] = {
    "target_metadata": target_metadata,
    "autogenerate_plugins": ["alembic.autogenerate.*", "pupsourcing_sa"],
    # When tables are in other schemas than the database's default:
    # "include_schemas": True,
    # To create indexes of a log that is in use, without stopping who appends to it; they get a revision of their own:
    # "process_revision_directives": migrations.concurrent_indexes,
}

if url := os.environ.get("DATABASE_URL"):
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))


def run_migrations_offline() -> None:
    """Print the SQL, as with ``alembic upgrade head --sql``, without a connection."""
    context.configure(
        url=config.get_main_option("sqlalchemy.url"),
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        **options,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_migrations(connection: Connection) -> None:
    context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()


async def run_migrations_online() -> None:
    """Run the migrations in a transaction."""
    # For a log in use: connect_args={"server_settings": {"lock_timeout": "5s"}} has them give up rather than wait.
    engine = async_engine_from_config(
        config.get_section(config.config_ini_section, {}), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    async with engine.connect() as connection:
        await connection.run_sync(run_migrations)
    await engine.dispose()


if context.is_offline_mode():
    run_migrations_offline()
else:
    asyncio.run(run_migrations_online())
