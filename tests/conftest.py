from __future__ import annotations

pytest_plugins = ["tests.fix_command", "tests.fix_postgres", "tests.fix_store"]
