"""Alembic: the event log's tables are in the application's own migrations.

Tables on ``target_metadata`` are all that autogenerate needs. `register` adds what tables cannot say: the guards of a
log, and what it takes to adopt a log that another program created. ``env.py`` calls it and lists the plugin::

    from pupsourcing_sa import migrations

    migrations.register()
    context.configure(
        connection=connection,
        target_metadata=target_metadata,
        autogenerate_plugins=["alembic.autogenerate.*", "pupsourcing_sa"],
    )

Nothing here needs Alembic to be installed but `register` and `concurrent_indexes`.
"""

from __future__ import annotations

from pupsourcing_sa.migrations._concurrent_indexes import concurrent_indexes
from pupsourcing_sa.migrations._filters import all_but
from pupsourcing_sa.migrations._plugin import register
from pupsourcing_sa.migrations._sql_script import sql_script
from pupsourcing_sa.migrations._templates import template_directory

__all__ = ["all_but", "concurrent_indexes", "register", "sql_script", "template_directory"]
