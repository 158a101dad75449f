"""The registry: names, versions, aliases, upcasters, retired types, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pupsourcing_sa.errors import PayloadError, UnknownEventTypeError
from pupsourcing_sa.registry import EventRegistry, Upcasted
from tests.registry.classes import AsDataclass, Later, Line, RefersToALaterClass

if TYPE_CHECKING:
    from fractions import Fraction


@dataclass(frozen=True)
class Placed:
    total: int
    currency: str = "EUR"


@dataclass(frozen=True)
class Moved:
    city: str


@dataclass(frozen=True)
class Noted:
    text: str


def evolved() -> EventRegistry:
    """Return a registry after some years: renamed, extended, split and dropped types."""
    events = EventRegistry()
    events.register("Placed", version=3, aliases={"Created"})(Placed)
    events.register("Moved")(Moved)
    events.register("Noted", version=2)(Noted)
    events.retire("Viewed")
    events.retire("Archived")

    @events.upcast("Placed", from_version=1)
    def _(old: dict[str, Any]) -> dict[str, Any]:
        old["total"] = old.pop("sum")  # a step may change its input
        return old

    @events.upcast("Created", from_version=2)
    def _(old: dict[str, Any]) -> dict[str, Any]:
        return old | {"currency": "USD"}

    @events.upcast("Changed", from_version=1, into={"Moved", "Noted"})
    def _(old: dict[str, Any]) -> list[Upcasted]:
        note = {"words": old["note"]}
        return [Upcasted("Moved", 1, {"city": old["city"]}), Upcasted("Noted", 1, note), Upcasted("Noted", 1, note)]

    @events.upcast("Noted", from_version=1)
    def _(old: dict[str, Any]) -> dict[str, Any]:
        old["text"] = old.pop("words")
        return old

    @events.upcast("Viewed", from_version=1, into=())
    def _(old: dict[str, Any]) -> list[Upcasted]:
        return []

    return events


@pytest.mark.parametrize(
    ("event_type", "version", "payload", "expected"),
    [
        ("Placed", 3, {"total": 5, "currency": "CHF"}, (Placed(5, "CHF"),)),
        ("Placed", 2, {"total": 5}, (Placed(5, "USD"),)),
        ("Placed", 1, {"sum": 5}, (Placed(5, "USD"),)),
        ("Created", 1, {"sum": 5}, (Placed(5, "USD"),)),
        ("Created", 3, {"total": 5}, (Placed(5, "EUR"),)),
        ("Changed", 1, {"city": "Bern", "note": "x"}, (Moved("Bern"), Noted("x"), Noted("x"))),
        ("Viewed", 1, {"anything": 1}, ()),
    ],
)
def test_stored_events_become_objects_of_current_classes(
    event_type: str, version: int, payload: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    events = evolved()
    assert events.decode(event_type, version, json.dumps(payload).encode()) == expected
    assert events.is_known(event_type)


def test_unknown_and_retired_types_have_no_data() -> None:
    events = evolved()
    for event_type, is_retired in (("Archived", True), ("Foreign", False)):
        assert not events.is_known(event_type)
        with pytest.raises(UnknownEventTypeError) as caught:
            events.decode(event_type, 1, b"{}")
        assert (caught.value.event_type, caught.value.is_retired) == (event_type, is_retired)


def test_the_stored_types_of_a_class_include_all_that_may_become_it() -> None:
    events = evolved()
    assert events.stored_types(Placed) == {"Placed", "Created"}
    assert events.stored_types(Moved) == {"Moved", "Changed"}
    assert events.stored_types(Placed, Noted) == {"Placed", "Created", "Noted", "Changed"}
    with pytest.raises(TypeError, match="Line is not registered"):
        events.stored_types(Line)


def test_an_upcaster_without_declared_results_may_become_any_class() -> None:
    events = EventRegistry()
    events.register("Placed", version=2)(Placed)
    events.register("Moved", version=3, aliases={"Gone"})(Moved)
    events.upcast("Placed", from_version=1)(lambda old: old)
    events.upcast("Moved", from_version=1, into={"Gone"})(lambda old: [Upcasted("Moved", 3, old)])
    events.upcast("Moved", from_version=2)(lambda old: [Upcasted("Moved", 3, old)])
    with pytest.raises(ValueError, match="cycle: 'Moved' → 'Moved'"):
        events.check()
    events = EventRegistry()
    events.register("Placed", version=2)(Placed)
    events.register("Moved")(Moved)
    events.upcast("Placed", from_version=1)(lambda old: [Upcasted("Moved", 1, old)])
    assert events.stored_types(Moved) == {"Placed", "Moved"}
    assert events.decode("Placed", 1, b'{"city":"Bern"}') == (Moved("Bern"),)


def test_an_annotated_result_tells_that_an_unregistered_name_becomes_other_events() -> None:
    events = EventRegistry()
    events.register("Moved")(Moved)

    @events.upcast("Changed", from_version=1)
    def _(old: dict[str, Any]) -> list[Upcasted]:
        return [Upcasted("Moved", 1, old)]

    assert events.decode("Changed", 1, b'{"city":"Bern"}') == (Moved("Bern"),)


def test_names_in_several_steps_are_found() -> None:
    events = EventRegistry()
    events.register("Moved")(Moved)
    events.upcast("A", from_version=1, into={"B"})(lambda old: [Upcasted("B", 1, old)])
    events.upcast("B", from_version=1, into={"C"})(lambda old: [Upcasted("C", 7, old)])
    events.upcast("C", from_version=7, into={"Moved"})(lambda old: [Upcasted("Moved", 1, old)])
    assert events.stored_types(Moved) == {"A", "B", "C", "Moved"}
    assert events.decode("A", 1, b'{"city":"Bern"}') == (Moved("Bern"),)


def test_200_versions() -> None:
    events = EventRegistry()
    events.register("Placed", version=201)(Placed)
    for version in range(1, 201):
        events.upcast("Placed", from_version=version)(lambda old: old | {"total": old["total"] + 1})
    assert events.decode("Placed", 1, b'{"total":0}') == (Placed(200),)


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (lambda old: None, "must return a dict or a sequence of Upcasted, not NoneType"),
        (lambda old: 5, "must return a dict or a sequence of Upcasted, not int"),
        (lambda old: "ab", "must return a dict or a sequence of Upcasted"),
        (lambda old: [old], "must return a dict or a sequence of Upcasted"),
        (lambda old: [Upcasted("Placed", 2, "x")], "must return a dict or a sequence of Upcasted"),  # type: ignore[arg-type]
        (lambda old: old["missing"], "raised KeyError"),
        (lambda old: {"total": "ann@example.org"}, r"at \$.total: Expected `int`, got `str`"),
        (lambda old: [Upcasted("Placed", 9, {})], "no upcaster of 'Placed' from version 9 to 2; deploy the code"),
        (lambda old: [Upcasted("Other", 1, {})], "no class for 'Other'"),
        (lambda old: [Upcasted("Placed", 1, old)], "form a cycle"),
    ],
)
def test_a_faulty_upcaster_is_named_in_the_error(step: Callable[[Any], Any], problem: str) -> None:
    events = EventRegistry()
    events.register("Placed", version=2)(Placed)
    events.upcast("Placed", from_version=1)(step)
    with pytest.raises(PayloadError, match=problem) as caught:
        events.decode("Placed", 1, b'{"total":5}')
    assert (caught.value.event_type, caught.value.event_version) == ("Placed", 1)
    assert "ann@" not in str(caught.value)


def test_upcasters_need_a_json_object() -> None:
    events = evolved()
    for payload in (b"\xff", b"[1]", b"5"):
        with pytest.raises(PayloadError, match="JSON"):
            events.decode("Placed", 1, payload)


def test_a_version_without_an_upcaster_is_an_error_with_a_remedy() -> None:
    events = EventRegistry()
    events.register("Placed", version=3)(Placed)
    events.upcast("Placed", from_version=2)(lambda old: old)
    with pytest.raises(PayloadError, match="from version 1 to 3; add an upcaster"):
        events.decode("Placed", 1, b"{}")
    with pytest.raises(PayloadError, match="from version 4 to 3; deploy the code that wrote it"):
        events.decode("Placed", 4, b"{}")


@dataclass(frozen=True)
class Derived(Placed):
    more: int = 0


def test_an_instance_of_another_class_is_refused() -> None:
    events = evolved()
    with pytest.raises(TypeError, match="Derived is not registered, only its base class Placed is"):
        events.encode(Derived(5))
    with pytest.raises(TypeError, match="Line is not registered; decorate it"):
        events.encode(Line("a", 1))


def test_doubles_are_refused() -> None:
    events = evolved()
    for name, aliases, message in (
        ("Placed", (), "'Placed' is registered already;"),
        ("Created", (), "'Created' is registered already, as an alias of 'Placed'"),
        ("New", {"Created"}, "'Created' is registered already, as an alias"),
        ("Archived", (), "'Archived' is retired"),
    ):
        with pytest.raises(ValueError, match=message):
            events.register(name, aliases=aliases)(Line)
    with pytest.raises(ValueError, match="Placed is registered already, as 'Placed'"):
        events.register("New")(Placed)
    with pytest.raises(ValueError, match="'Placed' has an upcaster from version 1 already"):
        events.upcast("Placed", from_version=1)(dict)
    with pytest.raises(ValueError, match="'Created' is registered already, as an alias"):
        events.retire("Created")


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda events: events.upcast("Placd", from_version=1)(dict), "'Placd', which is not registered; correct"),
        (lambda events: events.upcast("Placed", from_version=3)(dict), "from version 3, but its class has version 3"),
        (lambda events: events.upcast("Created", from_version=1)(dict), "'Placed' has two upcasters from version 1"),
        (
            lambda events: events.upcast("Placed", from_version=2, into={"Moved", "Lost"})(list),
            "returns 'Lost', which is not registered",
        ),
    ],
)
def test_wrong_upcasters_are_found_by_the_check(add: Callable[[EventRegistry], object], message: str) -> None:
    events = EventRegistry()
    events.register("Placed", version=3, aliases={"Created"})(Placed)
    events.upcast("Placed", from_version=1)(dict)
    add(events)
    with pytest.raises(ValueError, match=message):
        events.check()


def test_a_hole_is_found_by_the_check() -> None:
    events = EventRegistry()
    events.register("Placed", version=4)(Placed)
    events.upcast("Placed", from_version=1)(dict)
    events.upcast("Placed", from_version=3)(dict)
    with pytest.raises(ValueError, match="from version 1, but none from version 2"):
        events.check()


def test_a_cycle_of_names_is_found_by_the_check() -> None:
    events = EventRegistry()
    events.register("Moved")(Moved)
    events.upcast("A", from_version=1, into={"B"})(list)
    events.upcast("B", from_version=1, into={"A", "Moved"})(list)
    with pytest.raises(ValueError, match="upcasters form a cycle: '[AB]' → '[AB]' → '[AB]'"):
        events.check()


def test_a_registry_in_use_cannot_be_changed() -> None:
    events = evolved()
    events.check()
    for change in (
        lambda: events.register("New")(Line),
        lambda: events.upcast("Moved", from_version=1)(dict),
        lambda: events.retire("New"),
    ):
        with pytest.raises(RuntimeError, match="the registry is in use"):
            change()


@dataclass
class ForTypeCheckersOnly:
    part: Fraction


def test_annotations_may_name_later_classes_but_not_names_for_type_checkers() -> None:
    events = EventRegistry()
    events.register("Refers")(RefersToALaterClass)
    data = RefersToALaterClass(Later(5))
    assert events.decode(*events.encode(data)) == (data,)
    events = EventRegistry()
    events.register("Part")(ForTypeCheckersOnly)
    with pytest.raises(TypeError, match=r"ForTypeCheckersOnly: .*'Fraction'.* outside `if TYPE_CHECKING:`"):
        events.check()


def test_arguments_are_checked() -> None:
    events = EventRegistry()
    with pytest.raises(TypeError, match="name must be a str, not type"):
        events.register(Placed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name must not be empty"):
        events.register("")
    with pytest.raises(ValueError, match="version must be between 1"):
        events.register("A", version=0)
    with pytest.raises(TypeError, match="aliases must be a set of str"):
        events.register("A", aliases="Old")
    with pytest.raises(TypeError, match="codec must be an object with a method bind"):
        events.register("A", codec=object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"register\('A'\) decorates a class"):
        events.register("A")(5)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="an upcaster must be a function"):
        events.upcast("A", from_version=1)(5)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="verify must be a bool"):
        EventRegistry(verify=1)  # type: ignore[arg-type]


class Upper:
    """A codec of an application."""

    def bind(self, cls: type[Any], /) -> Any:
        return self

    def encode(self, data: Line) -> bytes:
        return data.sku.upper().encode()

    def decode(self, payload: bytes) -> Line:
        if payload == b"!":
            raise ValueError("ann@example.org")
        return Line(payload.decode(), 1)

    def decode_json(self, value: Any) -> Line:
        return Line(value["sku"], 1)

    def json_schema(self) -> dict[str, Any]:
        return {}


def test_an_application_can_have_a_codec_of_its_own() -> None:
    events = EventRegistry()
    events.register("Line", codec=Upper())(Line)
    events.register("Other")(AsDataclass)
    assert events.encode(Line("a", 1)) == ("Line", 1, b"A")
    with pytest.raises(PayloadError, match="codec raised ValueError") as caught:
        events.decode("Line", 1, b"!")
    assert "ann@" not in str(caught.value)


def test_an_upcaster_is_not_a_coroutine_function() -> None:
    async def step(old: dict[str, Any]) -> dict[str, Any]:
        return old

    with pytest.raises(TypeError, match="not a coroutine function"):
        EventRegistry().upcast("Placed", from_version=1)(step)  # type: ignore[type-var]


def test_a_class_is_no_event() -> None:
    events = EventRegistry()
    events.register("Placed")(Placed)
    with pytest.raises(TypeError, match=r"an object, not the class Placed; write Placed\(…\)"):
        events.encode(Placed)
