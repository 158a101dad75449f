"""The Alembic environment: the tables and the database."""

import os
from logging.config import fileConfig
from typing import Any

from alembic import context
from sqlalchemy import MetaData, engine_from_config, pool

from pupsourcing_sa import EventTables, WorkerTables, migrations

config = context.config

if config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)

# When you have models, use their metadata instead:
#
#     from myapp.models import Base
#
#     target_metadata = Base.metadata
#
# The next `alembic revision --autogenerate` drops every table that is in the database but not on this metadata.
target_metadata = MetaData()

# Leave out WorkerTables if no worker uses this database. If the application also makes these calls, with the same
# arguments, it gets the same tables.
EventTables(target_metadata)
WorkerTables(target_metadata)

# Additional operations for migrations: guards, and logs that another program created.
migrations.register()

options: dict[str, Any] = {
    "target_metadata": target_metadata,
    "autogenerate_plugins": ["alembic.autogenerate.*", "pupsourcing_sa"],
    # For tables in other schemas than the database's default schema:
    # "include_schemas": True,
    # To create indexes without blocking appends to a log in use; each new index gets a revision of its own:
    # "process_revision_directives": migrations.concurrent_indexes,
}

if url := os.environ.get("DATABASE_URL"):
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))


def run_migrations_offline() -> None:
    """Print the SQL without a connection: ``alembic upgrade head --sql``."""
    context.configure(
        url=config.get_main_option("sqlalchemy.url"),
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        **options,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    """Run the migrations in a transaction."""
    # For a log in use, connect_args={"options": "-c lock_timeout=5s"} lets a migration fail instead of waiting.
    engine = engine_from_config(
        config.get_section(config.config_ini_section, {}), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
