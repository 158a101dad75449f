"""Processes of this host: the identity of this one, and the proof that another one has ended.

A node that is restarted on the same host need not wait for ``heartbeat_timeout``: it can see that the process of its
predecessor has ended. It must be certain, because processes in other containers have process ids, too:

- Both processes have the same hostname, and belong to the same boot of a kernel and the same PID namespace.
- There is no process with this id, or it started at another time than the node's process.

Only Linux shows this. On other systems, and if anything is unknown, only missing heartbeats show that a node is dead.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from pupsourcing_sa.status.model import read_object

__all__ = ["ProcessIdentity", "has_ended", "this_process"]

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process of a host that runs Linux.

    Attributes:
        host: the hostname, and the ids of the kernel's boot and of the PID namespace in which ``pid`` is valid.
        pid: id of the process.
        started: start of the process, in clock ticks since the boot.
    """

    host: str
    pid: int
    started: int

    @classmethod
    def from_text(cls, text: str) -> ProcessIdentity | None:
        """Return the identity from the text of its JSON object; ``None`` if it cannot be understood."""
        return read_object(cls, json.loads(text))


def this_process() -> ProcessIdentity | None:
    """Return the identity of this process; ``None`` if the system does not tell."""
    pid = os.getpid()
    try:
        # A container may see the /proc of another PID namespace.
        if (_PROC / "self").readlink().name != str(pid):
            return None
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (_PROC / "self/ns/pid").readlink()
        return ProcessIdentity(f"{socket.gethostname()} {boot} {namespace}", pid, _start_of(pid))
    except (OSError, ValueError, IndexError):
        return None


def has_ended(process: ProcessIdentity, this: ProcessIdentity) -> bool:
    """Return True if a process has certainly ended.

    Args:
        process: the other process.
        this: this process.
    """
    if process.host != this.host:
        return False
    try:
        return _start_of(process.pid) != process.started
    except (FileNotFoundError, ProcessLookupError):
        # A system may hide the processes of other users in /proc.
        return not _exists(process.pid)
    except (OSError, ValueError, IndexError):
        return False


def _start_of(pid: int) -> int:
    # The command in parentheses may contain spaces and parentheses. The start is the 22nd field, the 20th after it.
    return int((_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
