"""Events of the log with data: decoded once and lazily, raw, and in parts."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import pytest

from pupsourcing_sa import Event, EventRegistry, PersistedEvent, Recorded
from pupsourcing_sa.errors import EventDecodingError, UnknownEventTypeError
from pupsourcing_sa.registry import Upcasted, deterministic_id


@dataclass(frozen=True)
class Moved:
    city: str


@dataclass(frozen=True)
class Noted:
    text: str


@pytest.fixture
def events() -> EventRegistry:
    events = EventRegistry()
    events.register("Moved")(Moved)
    events.register("Noted")(Noted)
    events.retire("Viewed")

    @events.upcast("Changed", from_version=1)
    def _(old: dict[str, Any]) -> list[Upcasted]:
        return [Upcasted("Moved", 1, {"city": city}) for city in old["cities"]]

    return events


def recorded(registry: EventRegistry | None, event_type: str, payload: Any) -> Recorded[Any]:
    return PersistedEvent(
        global_position=7,
        aggregate_version=3,
        aggregate_type="User",
        aggregate_id="u1",
        event_type=event_type,
        payload=payload,
        registry=registry,
    )


def test_data_is_decoded_once_on_first_use(events: EventRegistry) -> None:
    event: Recorded[Moved] = recorded(events, "Moved", {"city": "Bern"})
    assert event.data == Moved("Bern")
    assert event.data is event.data
    assert event.parts() == (event,)
    assert (event.part, event.is_raw) == (0, False)
    assert event.json() == {"city": "Bern"}


def test_unknown_and_retired_types_are_raw(events: EventRegistry) -> None:
    for event_type in ("Viewed", "Foreign"):
        event = recorded(events, event_type, {"n": 1})
        assert event.is_raw
        assert event.json() == {"n": 1}
        with pytest.raises(UnknownEventTypeError, match=event_type):
            _ = event.data


def test_events_of_a_store_without_a_registry_are_raw(events: EventRegistry) -> None:
    unpickled = pickle.loads(pickle.dumps(recorded(events, "Moved", {"city": "Bern"})))
    for event in (recorded(None, "Moved", {"city": "Bern"}), unpickled):
        assert event.is_raw
        assert event.json() == {"city": "Bern"}
        for use in (lambda event=event: event.data, event.parts):
            with pytest.raises(RuntimeError, match="pass registry= to the store"):
                use()


def test_a_payload_that_does_not_match_is_reported_with_the_event(events: EventRegistry) -> None:
    event = recorded(events, "Moved", {"city": 5})
    with pytest.raises(
        EventDecodingError, match=r"^event at 7 \(.{36}\): payload of 'Moved' version 1 at \$.city: "
    ) as caught:
        _ = event.data
    error = caught.value
    assert (error.position, error.event_id, error.event_type, error.event_version) == (7, event.event_id, "Moved", 1)
    assert (error.path, error.problem) == ("$.city", "Expected `str`, got `int`")


@pytest.mark.parametrize("cities", [[], ["Bern", "Basel"]])
def test_an_event_that_was_split_has_parts(events: EventRegistry, cities: list[str]) -> None:
    event = recorded(events, "Changed", {"cities": cities})
    parts = event.parts()
    assert [(part.part, part.data) for part in parts] == [(n, Moved(city)) for n, city in enumerate(cities)]
    assert {(part.event_id, part.global_position) for part in parts} <= {(event.event_id, 7)}
    assert [part.parts() for part in parts] == [(part,) for part in parts]
    assert len(set(parts)) == len(cities)
    with pytest.raises(EventDecodingError, match=f"into {len(cities)} events; use parts"):
        _ = event.data


def test_one_part_of_a_split_is_the_event_itself(events: EventRegistry) -> None:
    event = recorded(events, "Changed", {"cities": ["Bern"]})
    assert event.parts() == (event,)
    assert event.data == Moved("Bern")


def test_a_cause(events: EventRegistry) -> None:
    event = recorded(events, "Moved", {"city": "Bern"})
    with event.as_cause():
        effect = Event(aggregate_type="A", aggregate_id="a", event_type="E", payload={})
    assert effect.causation_id == str(event.event_id)


def test_a_deterministic_id_depends_on_event_part_name_and_number(events: EventRegistry) -> None:
    event = recorded(events, "Changed", {"cities": ["Bern", "Basel"]})
    first, second = event.parts()
    ids = [deterministic_id(event, "charge"), deterministic_id(event, "charge", 1), deterministic_id(event, "1:charge")]
    ids += [deterministic_id(second, "charge"), deterministic_id(recorded(events, "Noted", {}), "charge")]
    assert len(set(ids)) == 5
    assert deterministic_id(first, "charge") == ids[0]
    assert {found.version for found in ids} == {5}
    with pytest.raises(ValueError, match="name must not be empty"):
        deterministic_id(event, "")
    with pytest.raises(ValueError, match="n must be between 0"):
        deterministic_id(event, "charge", -1)


def test_an_error_of_the_class_is_one_of_the_event() -> None:
    events = EventRegistry()

    @events.register("Priced")
    @dataclass(frozen=True)
    class Priced:
        currency: str

        def __post_init__(self) -> None:
            {"EUR": 2}[self.currency]

    event = recorded(events, "Priced", {"currency": "secret"})
    with pytest.raises(EventDecodingError, match=r"the class or its codec raised KeyError") as caught:
        _ = event.data
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
