from __future__ import annotations

pytest_plugins = [
    "tests.fix_alembic",
    "tests.fix_command",
    "tests.fix_postgres",
    "tests.fix_store",
    "tests.fix_worker",
]
