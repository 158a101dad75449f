"""The tutorial works as it is written: its files, its programs and its commands, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine

from tests.docs.test_docs import ROOT

#: Commands that the test runs. Others set up the environment, or start servers.
_COMMANDS = ("pupsourcing-sa ", "alembic ")
_FILE = re.compile(r"# (?P<path>\w+/\w+\.py)(?:, (?P<change>at the end|instead of: (?P<old>.*)))?\n")


def test_the_tutorial(database: Engine, tmp_path: Path):
    page = (ROOT / "docs/tutorial.md").read_text()
    steps = re.findall(r"^```(python|console)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    programs = Path(sys.executable).parent
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "DATABASE_URL": database.url.render_as_string(hide_password=False),
        "COLUMNS": "200",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        # The worker of the tutorial runs in another terminal. Without it, `status` reports a problem.
        assert done.returncode == (3 if arguments[-1].endswith(" status") else 0), (arguments, done.stdout, done.stderr)
        return done.stdout

    outputs = {}
    for language, text in steps:
        if language == "console":
            commands = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
            for command in commands:
                if command.startswith(_COMMANDS) and " worker " not in command:
                    outputs[command] = run("sh", "-c", command)
        elif (file := _FILE.match(text)) is not None:
            _write(tmp_path / file["path"], text[file.end() :], file["change"], file["old"])
        else:
            run(sys.executable, "-W", "error", "-c", text)
    assert "OrderShipped" in outputs["pupsourcing-sa events list"]
    assert "customers" in outputs["pupsourcing-sa status"]
    assert "OrderPlaced v1: 1 events, 1 decoded" in "".join(outputs.values())


def _write(path: Path, text: str, change: str | None, old: str | None) -> None:
    if change is None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    elif old is None:
        path.write_text(f"{path.read_text()}\n\n{text}")
    else:
        assert path.read_text().count(f"\n{old}\n") == 1
        path.write_text(path.read_text().replace(f"\n{old}\n", f"\n{text}"))
