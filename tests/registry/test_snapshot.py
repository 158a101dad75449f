"""Snapshots: a file that is committed, and every change of a class since then."""

from __future__ import annotations

import json
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any

import msgspec
import pytest

from pupsourcing_sa.registry import EventRegistry, Upcasted
from pupsourcing_sa.registry.snapshots import check_snapshot, take_snapshot
from tests.registry.classes import AsAttrs, AsDataclass, AsModel, AsStruct, AsTypedDict, Everything, RefersToALaterClass


def registry_of(**types: Any) -> EventRegistry:
    """Return a registry; values are fields of a dataclass, or a tuple (version, fields)."""
    registry = EventRegistry()
    for name, fields in types.items():
        version, given = fields if isinstance(fields, tuple) else (1, fields)
        registry.register(name, version=version)(make_dataclass(name, given.items()))
    return registry


def problems(registry: EventRegistry, snapshot: Any) -> list[str]:
    return [f"{f.event_type}: {f.message}" for f in check_snapshot(registry, snapshot) if f.is_problem]


def written(snapshot: Any) -> Any:
    return json.loads(json.dumps(snapshot))


def test_every_kind_of_class_gets_a_golden_payload_that_it_can_read() -> None:
    registry = EventRegistry()
    for cls in (AsAttrs, AsDataclass, AsModel, AsStruct, AsTypedDict, Everything, RefersToALaterClass):
        registry.register(cls.__name__)(cls)
    snapshot = written(take_snapshot(registry))
    assert all(event["payloads"]["1"] for event in snapshot["events"].values())
    assert snapshot["events"]["AsModel"]["payloads"]["1"]["Kind"] == "text"
    assert snapshot["events"]["Everything"]["payloads"]["1"]["paid"] == {"type": "card", "number": "text"}
    assert not check_snapshot(registry, snapshot)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"total": int, "note": str}, ["Placed: $.note: it is new and required; give it a default"]),
        ({"total": str}, ["Placed: $.total: integer became string", "Placed: the payload of version 1 cannot be"]),
        ({"total": int}, []),
        ({"total": float}, []),
    ],
)
def test_a_change_of_the_same_version(changed: Any, expected: list[str]) -> None:
    snapshot = written(take_snapshot(registry_of(Placed={"total": int})))
    found = problems(registry_of(Placed=changed), snapshot)
    assert len(found) >= len(expected)
    for text in expected:
        assert any(problem.startswith(text) for problem in found), found
    assert bool(found) == bool(expected)


def test_a_new_version_needs_an_upcaster_and_a_lower_one_is_refused() -> None:
    snapshot = written(take_snapshot(registry_of(Placed=(2, {"total": int}))))
    changed = registry_of(Placed=(3, {"amount": int}))
    (problem,) = problems(changed, snapshot)
    assert "from version 2 to 3; add an upcaster" in problem
    changed = registry_of(Placed=(3, {"amount": int}))
    changed.upcast("Placed", from_version=2)(lambda old: {"amount": old["total"]})
    assert not problems(changed, snapshot)
    lower = problems(registry_of(Placed=(1, {"total": int})), snapshot)
    assert lower[0] == "Placed: its version was 2 and is 1 now; versions must not decrease"


def test_payloads_of_older_versions_are_kept_and_decoded() -> None:
    first = written(take_snapshot(registry_of(Placed={"total": int})))
    first["events"]["Placed"]["payloads"]["1"] = {"total": 4711}  # a payload of the application's own
    second = registry_of(Placed=(2, {"amount": int}))
    second.upcast("Placed", from_version=1)(lambda old: {"amount": old["total"]})
    snapshot = written(take_snapshot(second, first))
    assert snapshot["events"]["Placed"]["payloads"] == {"1": {"total": 4711}, "2": {"amount": 1}}
    broken = registry_of(Placed=(2, {"amount": int}))
    broken.upcast("Placed", from_version=1)(lambda old: {"amount": str(old["total"])})
    (problem,) = problems(broken, snapshot)
    assert "payload of version 1 cannot be decoded" in problem


def test_a_name_that_disappears_must_be_an_alias_retired_or_split() -> None:
    snapshot = written(take_snapshot(registry_of(Placed={"total": int}, Moved={"city": str})))
    assert problems(registry_of(Moved={"city": str}), snapshot)[0].startswith("Placed: it is no longer registered")
    renamed = registry_of(Moved={"city": str})
    renamed.register("Ordered", aliases={"Placed"})(make_dataclass("Ordered", [("total", int)]))
    assert not problems(renamed, snapshot)
    kept = take_snapshot(renamed, snapshot)
    assert kept["events"]["Ordered"]["payloads"]["1"] == {"total": 1}
    retired = registry_of(Moved={"city": str})
    retired.retire("Placed")
    assert not problems(retired, snapshot)
    assert take_snapshot(retired, snapshot)["events"]["Placed"]["retired"]
    split = registry_of(Moved={"city": str})
    split.upcast("Placed", from_version=1, into={"Moved"})(lambda old: [Upcasted("Moved", 1, {"city": old["total"]})])
    (problem,) = problems(split, snapshot)
    assert problem.startswith("Placed: the payload of version 1 cannot be decoded")


def test_a_new_type_is_a_note() -> None:
    snapshot = written(take_snapshot(registry_of(Placed={"total": int})))
    (finding,) = check_snapshot(registry_of(Placed={"total": int}, Moved={"city": str}), snapshot)
    assert (finding.event_type, finding.is_problem) == ("Moved", False)


@dataclass
class Constrained:
    size: Annotated[int, msgspec.Meta(ge=1000)]


def test_a_class_without_an_example_has_no_golden_payload() -> None:
    registry = EventRegistry()
    registry.register("Constrained")(Constrained)
    snapshot = take_snapshot(registry)
    assert snapshot["events"]["Constrained"]["payloads"] == {"1": None}
    assert not check_snapshot(registry, snapshot)


@pytest.mark.parametrize("snapshot", [{}, {"format": 2, "events": {}}, {"format": 1, "events": []}])
def test_an_unknown_format_is_refused(snapshot: Any) -> None:
    with pytest.raises(ValueError, match="the snapshot must have the format 1"):
        check_snapshot(registry_of(), snapshot)
