"""``module:attribute``: the workers that can be named, and the messages for those that cannot."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._target import load_worker

APPLICATION = """
import functools
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker

@consumer("seen")
def seen(session, event): ...

def make(consumers=(seen,)):
    return Worker(sessionmaker(create_engine("postgresql+psycopg://")), EventStore(), consumers)

worker = make()
bound = functools.partial(make, [seen])

class Group:
    worker = worker
    make = staticmethod(make)

def for_tenant(tenant): ...
def for_tenants(*, tenants): ...
async def make_async(): ...
def make_nothing(): ...
def make_empty(): return make([])
def leave(): raise SystemExit(3)
def __getattr__(name):
    if name == "lazy":
        return worker
    if name == "failing":
        raise RuntimeError("no luck")
    raise AttributeError(name)
number = 5
"""


@pytest.fixture(autouse=True)
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules in the working directory."""
    (tmp_path / "myapp").mkdir()
    for name, code in {
        "jobs": APPLICATION,
        "broken": "import nothing_of_that_name",
        "syntax": "def",
        "script": "import sys; sys.exit('done')",
        "failing": "def connect():\n    raise ConnectionError('no\\nserver')\n\nconnect()",
    }.items():
        (tmp_path / "myapp" / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "myapp"]:
        del sys.modules[name]


@pytest.mark.parametrize("attribute", ["worker", "make", "bound", "Group.worker", "Group.make", "lazy"])
def test_an_instance_or_a_factory(attribute: str):
    assert load_worker(f"myapp.jobs:{attribute}").consumers == ("seen",)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("myapp.jobs.worker", "must be a module and one of its attributes, such as myapp.jobs:worker"),
        ("myapp", "must be a module and one of its attributes, such as myapp:worker"),
        ("myapp/jobs.py:make", "must be a module and one of its attributes, such as myapp.jobs:make"),
        ("./myapp/jobs.py", "must be a module and one of its attributes, such as myapp.jobs:worker"),
        ("myapp.jobs.py:make", "must be a module and one of its attributes, such as myapp.jobs:make"),
        ("myapp.jobs:", "must be a module and one of its attributes, such as myapp.jobs:worker"),
        (":worker", "must be a module and one of its attributes, such as myapp.worker:worker"),
        ("", "must be a module and one of its attributes, such as myapp.worker:worker"),
        (".jobs:worker", "must be a module and one of its attributes, such as jobs:worker"),
        ("myapp.jobs:make()", "must be a module and one of its attributes, such as myapp.jobs:make"),
        ("nowhere.jobs:worker", "there is no module 'nowhere' in "),
        ("myapp.nowhere:worker", "there is no module 'myapp.nowhere' in "),
        ("myapp.jobs.deeper:worker", "there is no module 'myapp.jobs.deeper' in "),
        ("myapp.jobs:wroker", "module 'myapp.jobs' has no attribute 'wroker'; did you mean worker?"),
        ("myapp.jobs:app", "module 'myapp.jobs' has no attribute 'app'; did you mean worker?"),
        ("myapp.jobs:Group.work", "module 'myapp.jobs' has no attribute 'Group.work'; did you mean worker?"),
        ("myapp.jobs:number", "myapp.jobs:number must be a Worker or a function that returns one, not int"),
        ("myapp.jobs:make_nothing", "must be a Worker or a function that returns one, not NoneType"),
        ("myapp.jobs:make_async", "must not be a coroutine function"),
        ("myapp.jobs:for_tenant", "must be callable without arguments: missing a required argument: 'tenant'"),
        ("myapp.jobs:for_tenants", "must be callable without arguments: missing a required "),
        ("myapp.jobs:Worker", "must be callable without arguments: missing a required argument: 'session_factory'"),
    ],
)
def test_the_message_names_the_mistake(target: str, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UsageError) as caught:
        load_worker(target)
    assert message in str(caught.value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("target", "message", "last_line"),
    [
        (
            "myapp.broken:worker",
            "importing myapp.broken failed: ModuleNotFoundError: No module named 'nothing_of_that_name'",
            "import nothing_of_that_name",
        ),
        (
            "myapp.failing:worker",
            "importing myapp.failing failed: ConnectionError: no",
            "raise ConnectionError('no\\nserver')",
        ),
        (
            "myapp.syntax:worker",
            "importing myapp.syntax failed: SyntaxError: invalid syntax (syntax.py, line 1)",
            "def",
        ),
        ("myapp.script:worker", "importing myapp.script failed: SystemExit: done", "import sys; sys.exit('done')"),
        ("myapp.jobs:leave", "myapp.jobs:leave() failed: SystemExit: 3", "raise SystemExit(3)"),
        (
            "myapp.jobs:make_empty",
            "myapp.jobs:make_empty() failed: ValueError: consumers must not be empty; pass at least one consumer",
            'raise ValueError("consumers must not be empty; pass at least one consumer")',
        ),
        ("myapp.jobs:failing", "looking for 'failing' in module 'myapp.jobs' failed: RuntimeError: no luck", "raise "),
    ],
)
def test_the_applications_own_error_stays_visible(target: str, message: str, last_line: str):
    with pytest.raises(UsageError) as caught:
        load_worker(target)
    assert str(caught.value) == message
    assert caught.value.exception is not None
    shown = "".join(traceback.format_exception(caught.value.exception))
    assert last_line in shown
    assert shown.count("Error") + shown.count("SystemExit") >= 1
    assert "pupsourcing_sa/cli" not in shown, "frames of this package are of no use to the reader"


def test_a_working_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="the working directory was removed"):
        load_worker("myapp.jobs:worker")
