"""``pupsourcing-sa events snapshot`` and ``events check`` with a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pupsourcing_sa.cli._target import load_registry
from tests.fix_command import Result, isolated_modules, run_in_process

VERSION_1 = """
from dataclasses import dataclass
from typing import Annotated
import msgspec
from pupsourcing_sa import EventRegistry, EventStore
from pupsourcing_sa.registry import Upcasted

events = EventRegistry()

@events.register("Placed")
@dataclass
class Placed:
    total: int
    customer: str = "Zoë"

@events.register("Sized")
@dataclass
class Sized:
    size: Annotated[int, msgspec.Meta(ge=1000)]
"""
#: Version 2 of Placed. The upcaster, and the class Sized, follow.
VERSION_2 = VERSION_1.replace('"Placed"', '"Placed", version=2').replace("total: int", "amount: int")
UPCASTER = """
@events.upcast("Placed", from_version=1)
def _(old):
    return {"amount": old["total"]}
"""
LOADING = """
store = EventStore(registry=events)
def make(): return events
def make_store(): return store
bare = EventStore()
number = 5
"""

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command ``events …`` with the registry of this code."""
    monkeypatch.chdir(tmp_path)
    count = 0

    def run(name: str, code: str, *arguments: str) -> Result:
        nonlocal count
        count += 1
        (tmp_path / f"classes_{count}.py").write_text(code)
        return run_in_process("events", name, "--registry", f"classes_{count}:events", *arguments)

    with isolated_modules(tmp_path):
        yield run


def test_a_snapshot_through_two_versions(run: Run, tmp_path: Path):
    file = tmp_path / "events.json"
    done = run("snapshot", VERSION_1, "-o", "events.json")
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (
        0,
        [
            "events.json: 2 event types, 1 payloads",
            "note: Sized: no example of version 1 is known; write its payload into the file",
        ],
        "",
    )
    first = file.read_text()
    assert json.loads(run("snapshot", VERSION_1).stdout) == json.loads(first)
    edited = json.loads(first)
    edited["events"]["Placed"]["payloads"]["1"] = {"total": 4711}
    edited["events"]["Sized"]["payloads"]["1"] = {"size": 2000}
    file.write_text(json.dumps(edited))
    assert run("check", VERSION_1, "events.json").stdout == "ok: no problems found\n"

    done = run("check", VERSION_2 + UPCASTER, "events.json")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["note: Placed: version 2 is not in the snapshot; take a new one", "ok: no problems found"],
    )
    assert run("snapshot", VERSION_2 + UPCASTER, "-o", "events.json").returncode == 0
    second = json.loads(file.read_text())
    # A payload is never made again: not that of a former version, and not one that was edited.
    assert second["events"]["Placed"]["payloads"]["1"] == {"total": 4711}
    assert second["events"]["Placed"]["payloads"]["2"] == {"amount": 1, "customer": "text"}
    assert second["events"]["Sized"]["payloads"] == {"1": {"size": 2000}}
    assert list(tmp_path.glob(".*")) == []


def test_the_bytes_do_not_depend_on_the_process_or_the_order_of_registration(tmp_path: Path):
    classes = (
        "from tests.registry.classes import *\nfrom pupsourcing_sa import EventRegistry\nevents = EventRegistry()\n"
    )
    names = ["Everything", "AsModel", "AsStruct"]
    texts = set()
    for number in range(2):
        code = classes + "".join(f"events.register({name!r})({name})\n" for name in names)
        (tmp_path / f"order_{number}.py").write_text(code)
        names.reverse()
        command = [sys.executable, "-m", "pupsourcing_sa", "events", "snapshot", "--registry", f"order_{number}:events"]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": str(number)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        texts.add(done.stdout)
    (text,) = texts
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (
            VERSION_1.replace("total: int", "total: str"),
            "problem: Placed: $.total: integer became string; write an upcaster",
        ),
        (
            VERSION_1.replace("total: int", "total: int\n    city: str"),
            "problem: Placed: $.city: it is new and required; give it a default, or write an upcaster",
        ),
        (VERSION_2, "from version 1 to 2; add an upcaster"),
        (
            VERSION_1.replace('"Sized"', '"Sized", version=2'),
            "problem: Sized: there is no upcaster from version 1; write one",
        ),
        (
            VERSION_1.replace('"Sized"', '"Measured"'),
            "problem: Sized: it is no longer registered; register its class, make it an alias of the new name, or "
            "retire() it",
        ),
        (
            VERSION_2 + UPCASTER.replace('["total"]', '["nothing"]'),
            "the upcaster of Placed from version 1 raised KeyError",
        ),
    ],
)
def test_an_incompatible_change(run: Run, tmp_path: Path, code: str, problem: str):
    assert run("snapshot", VERSION_1, "-o", "events.json").returncode == 0
    before = (tmp_path / "events.json").read_text().replace('"total": 1', '"total": 4711')
    (tmp_path / "events.json").write_text(before)
    done = run("check", code, "events.json")
    assert done.returncode == 1
    assert problem in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[-1].startswith("failed: ")
    assert "4711" not in done.stdout + done.stderr, "a value of a payload"

    refused = run("snapshot", code, "-o", "events.json")
    assert refused.returncode == 1
    assert problem in refused.stdout
    assert "events.json is unchanged" in refused.stderr
    assert (tmp_path / "events.json").read_text() == before


def test_a_registry_that_is_not_complete(run: Run):
    done = run("snapshot", VERSION_1.replace('"Placed"', '"Placed", version=3') + UPCASTER)
    assert (done.returncode, done.stdout) == (1, "")
    message = "'Placed' has an upcaster from version 1, but none from version 2; add it"
    assert done.stderr == f"pupsourcing-sa: classes_1:events: {message}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read events.json: No such file or directory"),
        ("<<<<<<< HEAD", "events.json is not JSON: Expecting value: line 1"),
        ("[]", "events.json: the snapshot must have the format 1; take a new one"),
        ('{"format": 1, "events": {"Placed": {}}}', "events.json: the entry of 'Placed' is damaged"),
    ],
)
def test_a_file_that_is_no_snapshot(run: Run, tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "events.json").write_text(content)
        assert run("snapshot", VERSION_1, "-o", "events.json").returncode == 2
        assert (tmp_path / "events.json").read_text() == content
    done = run("check", VERSION_1, "events.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_the_file_cannot_be_written(run: Run):
    done = run("snapshot", VERSION_1, "-o", "nowhere/events.json")
    assert (done.returncode, done.stderr) == (
        2,
        "pupsourcing-sa: cannot write nowhere/events.json: No such file or directory\n",
    )


def test_objects_that_have_a_registry(run: Run, tmp_path: Path):
    (tmp_path / "shop.py").write_text(VERSION_1 + LOADING)
    assert run_in_process("events", "snapshot", "--registry", "shop:events").returncode == 0  # sets the path
    registry = load_registry("shop:events")
    assert all(load_registry(f"shop:{name}") is registry for name in ("store", "make", "make_store"))
    for name, message in {
        "bare": "the store of shop:bare has no registry. Pass registry= to it, or name the EventRegistry",
        "number": "shop:number must be an EventRegistry, a store or a Worker, or a function that returns one, not int",
        "event": "module 'shop' has no attribute 'event'; did you mean events?",
        "": "'shop:' must be a module and one of its attributes, such as shop:events",
    }.items():
        done = run_in_process("events", "check", "--registry", f"shop:{name}", "events.json")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"pupsourcing-sa: {message}\n")
