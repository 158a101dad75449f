"""The program ``pupsourcing-sa`` itself: its help, the installed script, and a missing click."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pupsourcing_sa import __version__
from pupsourcing_sa.cli import main
from tests.fix_command import COMMAND, run_in_process


def test_help():
    for name in ("worker", "status", "doctor", "events", "init", "template-path", "sql", "import", "demo"):
        shown = run_in_process(name, "--help", env={"COLUMNS": "80"})
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith(f"Usage: pupsourcing-sa {name}")
        assert max(map(len, shown.stdout.splitlines())) <= 80
        assert f"\n  {name} " in run_in_process("--help").stdout
    for name in ("list", "show", "snapshot", "check"):
        shown = run_in_process("events", name, "--help", env={"COLUMNS": "80"})
        assert (shown.returncode, shown.stderr) == (0, "")
        assert max(map(len, shown.stdout.splitlines())) <= 80
    shown = run_in_process("worker", "--help").stdout
    assert "PUPSOURCING_BATCH_SIZE" in shown
    assert "\n  pupsourcing-sa worker myapp.worker:make_worker --processes 4 --log-format json\n" in shown
    assert "supervised" not in shown, "an option that users do not type"


def test_the_installed_script(capsys: pytest.CaptureFixture[str]):
    expected = f"pupsourcing-sa {__version__}\n"
    done = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (expected, "")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == expected


def test_help_of_the_module_without_docstrings():
    program = [sys.executable, "-OO", "-m", "pupsourcing_sa", "worker", "--help"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.split() == run_in_process("worker", "--help").stdout.split()


def test_help_into_a_closed_pipe():
    process = subprocess.Popen([COMMAND, "worker", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert (stderr.read(), process.wait()) == (b"", 0)


def test_without_click():
    program = "import sys; sys.modules['click'] = None; from pupsourcing_sa.cli import main; sys.exit(main(['status']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pupsourcing-sa: click is not installed: pip install 'pupsourcing-sa[cli]'\n"
