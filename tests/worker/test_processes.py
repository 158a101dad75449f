"""The proof that a process of this host has ended."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from pupsourcing_sa.worker.coordination import processes
from pupsourcing_sa.worker.coordination.processes import ProcessIdentity, has_ended, this_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")

_CHILD = """
from dataclasses import asdict
from pupsourcing_sa.worker.coordination.processes import this_process
from pupsourcing_sa.worker.running import to_text
print(to_text(**asdict(this_process())), flush=True)
input()
"""


@pytest.fixture
def this() -> ProcessIdentity:
    found = this_process()
    assert found is not None
    return found


def test_a_process_has_ended_when_it_is_gone(this: ProcessIdentity):
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        process = ProcessIdentity.from_text(child.stdout.readline())
        assert process is not None
        assert process.pid == child.pid
        assert process.host == this.host
        assert not has_ended(process, this)
        child.kill()
    assert has_ended(process, this)
    assert not has_ended(replace(process, host="another container"), this), "its process ids mean other processes"


def test_the_process_id_was_used_again(this: ProcessIdentity):
    assert not has_ended(this, this), "another worker of this process"
    assert has_ended(replace(this, started=this.started - 1), this), "the former process with this id"


def test_hidden_processes_are_not_taken_for_ended(this: ProcessIdentity, monkeypatch: pytest.MonkeyPatch):
    def hide(pid: int) -> int:
        raise FileNotFoundError(pid)

    monkeypatch.setattr(processes, "_start_of", hide)
    assert not has_ended(this, this)
    assert this_process() is None
