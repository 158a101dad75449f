"""The command ``pupsourcing-sa`` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = str(Path(sys.executable).with_name("pupsourcing-sa"))


@pytest.fixture
def command(database_url: str, tmp_path: Path) -> Command:
    """Runs the command in an empty directory with DATABASE_URL set; gives its exit status and output."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"DATABASE_URL": database_url, "COLUMNS": "120"} | options.pop("env", {})
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,
        )

    return run
