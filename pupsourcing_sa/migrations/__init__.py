"""Alembic support: the event log's tables are part of the application's own migrations.

Autogenerate needs only the tables on ``target_metadata``. `register` adds operations for the guards of a log, and for
adopting a log that another program created. ``env.py`` calls it and lists the plugin::

    from pupsourcing_sa import migrations

    migrations.register()
    context.configure(
        connection=connection,
        target_metadata=target_metadata,
        autogenerate_plugins=["alembic.autogenerate.*", "pupsourcing_sa"],
    )

Only `register` and `concurrent_indexes` require Alembic to be installed.
"""

from __future__ import annotations

from pupsourcing_sa.migrations._concurrent_indexes import concurrent_indexes
from pupsourcing_sa.migrations._filters import all_but
from pupsourcing_sa.migrations._plugin import register
from pupsourcing_sa.migrations._sql_script import sql_script
from pupsourcing_sa.migrations._templates import template_directory

__all__ = ["all_but", "concurrent_indexes", "register", "sql_script", "template_directory"]
