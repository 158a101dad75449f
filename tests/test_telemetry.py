"""The hooks: what is called, and that a hook's failure stays its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from pupsourcing_sa.telemetry import NO_TELEMETRY, Hooks


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    @contextmanager
    def span(self, name: str, data: dict[str, Any]) -> Iterator[None]:
        self.calls.append(("enter", name, dict(data)))
        try:
            yield
        except BaseException as error:
            data["error"] = type(error).__name__
            raise
        finally:
            self.calls.append(("leave", name, dict(data)))

    def event(self, name: str, data: dict[str, Any]) -> None:
        self.calls.append(("event", name, data))


def test_a_span_is_left_with_what_was_added():
    recorder = Recorder()
    with Hooks(recorder).span("worker.look", worker="a") as data:
        data["position"] = 5
    assert recorder.calls == [
        ("enter", "worker.look", {"worker": "a"}),
        ("leave", "worker.look", {"worker": "a", "position": 5}),
    ]


@pytest.mark.parametrize("raised", [ZeroDivisionError, KeyboardInterrupt])
def test_a_span_is_left_with_the_exception_which_goes_on(raised: type[BaseException], caplog: pytest.LogCaptureFixture):
    recorder = Recorder()
    with pytest.raises(raised), Hooks(recorder).span("worker.look"):
        raise raised
    assert recorder.calls[-1] == ("leave", "worker.look", {"error": raised.__name__})
    assert caplog.records == []


def test_a_span_that_would_swallow_the_exception_does_not():
    class Swallowing(Recorder):
        @contextmanager
        def span(self, name: str, data: dict[str, Any]) -> Iterator[None]:
            with suppress(ZeroDivisionError):
                yield

    with pytest.raises(ZeroDivisionError), Hooks(Swallowing()).span("worker.look"):
        raise ZeroDivisionError


def test_all_data_has_what_is_common():
    recorder = Recorder()
    hooks = Hooks(recorder, worker="a")
    hooks.event("worker.parked", consumer="b")
    with hooks.span("worker.look") as data:
        data["position"] = 5
    assert recorder.calls == [
        ("event", "worker.parked", {"worker": "a", "consumer": "b"}),
        ("enter", "worker.look", {"worker": "a"}),
        ("leave", "worker.look", {"worker": "a", "position": 5}),
    ]


def test_an_event():
    recorder = Recorder()
    Hooks(recorder).event("worker.parked", consumer="a", partition=0)
    assert recorder.calls == [("event", "worker.parked", {"consumer": "a", "partition": 0})]


class Failing:
    def __init__(self, where: str) -> None:
        self.where = where

    @contextmanager
    def span(self, name: str, data: dict[str, Any]) -> Iterator[None]:
        if self.where == "enter":
            raise LookupError
        yield
        raise LookupError

    def event(self, name: str, data: dict[str, Any]) -> None:
        raise LookupError


@pytest.mark.parametrize("where", ["enter", "leave"])
def test_a_span_that_fails_is_logged_and_the_work_goes_on(where: str, caplog: pytest.LogCaptureFixture):
    done = []
    with Hooks(Failing(where)).span("worker.batch") as data:
        data["events"] = 1
        done.append(True)
    assert done == [True]
    (record,) = caplog.records
    assert (record.levelno, record.__dict__["hook"]) == (logging.ERROR, "worker.batch")


@pytest.mark.parametrize("where", ["enter", "leave"])
def test_a_span_that_fails_does_not_hide_the_error_of_the_work(where: str):
    with pytest.raises(ZeroDivisionError), Hooks(Failing(where)).span("worker.batch"):
        raise ZeroDivisionError


def test_an_event_that_fails_is_logged(caplog: pytest.LogCaptureFixture):
    Hooks(Failing("event")).event("worker.parked")
    assert [record.__dict__["hook"] for record in caplog.records] == ["worker.parked"]


def test_without_telemetry_nothing_happens():
    with NO_TELEMETRY.span("worker.look", worker="a") as data:
        assert data == {"worker": "a"}
    NO_TELEMETRY.event("worker.parked")
