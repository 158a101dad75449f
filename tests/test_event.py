from __future__ import annotations

import pickle
import uuid
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, IntEnum
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupsourcing_sa import AppendResult, Event, PersistedEvent, Stream
from tests.fix_store import make_event

EVERYTHING = {
    "aggregate_type": "User",
    "aggregate_id": "u1",
    "event_type": "UserRegistered",
    "payload": {"email": "ann@example.org"},
    "event_version": 3,
    "event_id": uuid.UUID(int=5),
    "metadata": {"user": {"id": 5}, "ip": "::1"},
    "trace_id": "t",
    "correlation_id": "c",
    "causation_id": "k",
    "created_at": datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC),
}


def persisted(**given) -> PersistedEvent:
    return PersistedEvent(**EVERYTHING | {"global_position": 7, "aggregate_version": 2} | given)


class TestPayload:
    def test_bytes_are_stored_as_they_are(self):
        for payload in (b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")):
            assert make_event(payload=payload).payload == b"\x00\xff"

    @pytest.mark.parametrize("payload", [{"ä": [1, 2.5, None, True]}, [], "text", 5, None, ""])
    def test_anything_else_becomes_json(self, payload):
        event = make_event(payload=payload)
        assert type(event.payload) is bytes
        assert event.json() == payload

    def test_it_is_encoded_once(self):
        payload = {"a": 1}
        event = make_event(payload=payload)
        payload["a"] = 2
        assert event.payload == b'{"a":1}'


class TestRefusals:
    @pytest.mark.parametrize("field", ["aggregate_type", "aggregate_id", "event_type"])
    @pytest.mark.parametrize(
        ("value", "error"),
        [("", ValueError), ("a\0", ValueError), ("\ud800", ValueError), (5, TypeError), (None, TypeError)],
    )
    def test_required_text(self, field, value, error):
        with pytest.raises(error, match=f"^{field} "):
            Event(**EVERYTHING | {field: value})

    @pytest.mark.parametrize("field", ["trace_id", "correlation_id", "causation_id"])
    @pytest.mark.parametrize(("value", "error"), [("a\0", ValueError), (uuid.uuid4(), TypeError)])
    def test_optional_text(self, field, value, error):
        with pytest.raises(error, match=f"^{field} "):
            Event(**EVERYTHING | {field: value})

    @pytest.mark.parametrize(
        ("field", "value", "error"),
        [
            ("event_version", 0, ValueError),
            ("event_version", 2**31, ValueError),
            ("event_version", "1", TypeError),
            ("event_version", True, TypeError),
            ("event_id", str(uuid.UUID(int=5)), TypeError),
            ("created_at", datetime(2026, 1, 1), ValueError),  # noqa: DTZ001
            ("created_at", "2026-01-01", TypeError),
            ("payload", {"a": datetime.now(UTC)}, TypeError),
            ("payload", float("nan"), ValueError),
            ("payload", "\ud800", ValueError),
            ("metadata", [1], TypeError),
            ("metadata", None, TypeError),
            ("metadata", {1: 2}, TypeError),
            ("metadata", {"a": object()}, TypeError),
            ("metadata", {"a": float("inf")}, ValueError),
            ("metadata", {"a": "\0"}, ValueError),
            ("metadata", {"\0": 1}, ValueError),
        ],
    )
    def test_everything_else(self, field, value, error):
        with pytest.raises(error, match=f"^{field} "):
            Event(**EVERYTHING | {field: value})

    def test_what_contains_itself(self):
        circle: list[object] = []
        circle.append(circle)
        with pytest.raises(ValueError, match=r"^payload must be JSON"):
            make_event(payload=circle)

    def test_a_backslash_before_u0000_is_no_nul(self):
        assert make_event(metadata={"a": "\\u0000"}).metadata == {"a": "\\u0000"}


class Kind(str, Enum):  # noqa: UP042
    USER = "user"


class NulKind(str, Enum):  # noqa: UP042
    BAD = "a\0"

    def __contains__(self, text):
        return False


class Version(int, Enum):
    TWO = 2


class Level(IntEnum):
    TWO = 2


class Moment(datetime):
    """A datetime like those of pendulum: its differences and its text are its own."""

    def __sub__(self, other):
        raise AssertionError

    def astimezone(self, tz=None):
        raise AssertionError

    def isoformat(self, sep="T", timespec="auto"):
        return "a moment"


class FineMoment(datetime):
    """A datetime like those of pandas: it has nanoseconds."""

    def __eq__(self, other):
        return isinstance(other, FineMoment)

    __hash__ = datetime.__hash__


class NotATime(datetime):
    year = float("nan")


class Id(uuid.UUID):
    def __str__(self):
        return "an id"


class Bytes(bytes):
    def __bytes__(self):
        return self


class TestSubclasses:
    """Values of subclasses become plain values when the event is built."""

    @pytest.mark.parametrize("make", [Event, persisted], ids=["Event", "PersistedEvent"])
    @pytest.mark.parametrize(
        ("field", "value", "plain"),
        [
            *((name, Kind.USER, "user") for name in ("aggregate_type", "aggregate_id", "event_type")),
            *((name, Kind.USER, "user") for name in ("trace_id", "correlation_id", "causation_id")),
            ("event_version", Version.TWO, 2),
            ("event_version", Level.TWO, 2),
            ("event_id", Id(int=7), uuid.UUID(int=7)),
            ("payload", Bytes(b"a"), b"a"),
            ("created_at", Moment(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ],
    )
    def test_each_field(self, make, field, value, plain):
        event = make(**EVERYTHING | {field: value})
        assert type(getattr(event, field)) is type(plain)
        assert getattr(event, field) == plain
        assert event == make(**EVERYTHING | {field: plain})

    @pytest.mark.parametrize(
        ("field", "value", "plain"),
        [
            ("event_version", Version.TWO, 2),
            ("event_id", Id(int=7), uuid.UUID(int=7)),
            ("created_at", Moment(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
        ],
    )
    def test_what_the_store_sends_has_the_plain_value(self, field, value, plain):
        assert Event(**EVERYTHING | {field: value}).append_json == Event(**EVERYTHING | {field: plain}).append_json

    @pytest.mark.parametrize("field", ["global_position", "aggregate_version"])
    def test_positions_and_versions(self, field):
        assert type(getattr(persisted(**{field: Version.TWO}), field)) is int

    @pytest.mark.parametrize("fold", [0, 1])
    def test_the_time_zone_and_the_fold_are_kept(self, fold):
        berlin = ZoneInfo("Europe/Berlin")
        event = make_event(created_at=Moment(2026, 10, 25, 2, 30, fold=fold, tzinfo=berlin))
        assert event.created_at.tzinfo is berlin
        assert event.created_at.fold == fold
        assert f"T0{fold}:30:00+00:00" in event.append_json

    @pytest.mark.parametrize("moment", [FineMoment(2026, 1, 1, tzinfo=UTC), NotATime(2026, 1, 1), Moment(2026, 1, 1)])
    def test_a_time_that_no_datetime_equals_is_refused(self, moment):
        with pytest.raises(ValueError, match="^created_at must "):
            make_event(created_at=moment)

    def test_methods_of_the_subclass_do_not_pass_a_check(self):
        with pytest.raises(ValueError, match="^aggregate_id must not contain NUL"):
            make_event(NulKind.BAD)


class TestDefaults:
    def test_ids_are_uuid7_and_sort_by_time(self):
        ids = [make_event().event_id for _ in range(1000)]
        assert len(set(ids)) == 1000
        assert {(each.version, each.variant) for each in ids} == {(7, uuid.RFC_4122)}
        milliseconds = [each.int >> 80 for each in ids]
        assert milliseconds == sorted(milliseconds)
        now = datetime.now(UTC).timestamp() * 1000
        assert abs(milliseconds[-1] - now) < 5000

    def test_the_rest(self):
        event = make_event()
        assert event.event_version == 1
        assert event.metadata == {}
        assert (event.trace_id, event.correlation_id, event.causation_id) == (None, None, None)
        assert abs(event.created_at - datetime.now(UTC)) < timedelta(seconds=5)


class TestValues:
    @pytest.mark.parametrize(
        "make", [lambda **given: Event(**EVERYTHING | given), persisted], ids=["Event", "PersistedEvent"]
    )
    def test_they_are_equal_by_value_hashable_picklable_and_immutable(self, make):
        event = make()
        assert event == make()
        assert hash(event) == hash(make())
        assert event != make(event_id=uuid.uuid4())
        assert event != make(metadata={})
        assert event != make(created_at=datetime.now(UTC))
        assert event != "event"
        assert pickle.loads(pickle.dumps(event)) == event
        with pytest.raises(AttributeError, match="immutable"):
            event.event_type = "Other"
        with pytest.raises(AttributeError, match="immutable"):
            del event.payload
        with pytest.raises(TypeError):
            event.metadata["a"] = 1

    @pytest.mark.parametrize("event", [Event(**EVERYTHING), persisted()], ids=["Event", "PersistedEvent"])
    def test_the_repr_names_the_event_and_keeps_its_payload_to_itself(self, event):
        assert "UserRegistered" in repr(event)
        assert "'u1'" in repr(event)
        assert str(event.event_id) in repr(event)
        assert "ann@example.org" not in repr(event)
        assert "::1" not in repr(event)

    def test_a_persisted_event_has_the_fields_of_the_event(self):
        event = persisted()
        assert (event.global_position, event.aggregate_version) == (7, 2)
        for name, value in EVERYTHING.items():
            if name != "payload":
                assert getattr(event, name) == value
        assert event.json() == EVERYTHING["payload"]

    @pytest.mark.parametrize(("field", "value"), [("global_position", 0), ("aggregate_version", 0)])
    def test_a_persisted_event_is_checked(self, field, value):
        with pytest.raises(ValueError, match=f"^{field} "):
            persisted(**{field: value})

    @given(st.datetimes(timezones=st.just(timezone(timedelta(hours=3)))))
    def test_any_time_survives(self, created_at):
        assert persisted(created_at=created_at).created_at == created_at

    def test_a_result_makes_its_events(self):
        given = (make_event(), make_event())
        result = AppendResult((4, 9), 2, 4, given)
        assert [event.global_position for event in result.events] == [4, 9]
        assert [event.aggregate_version for event in result.events] == [3, 4]
        assert [event.event_id for event in result.events] == [event.event_id for event in given]
        assert pickle.loads(pickle.dumps(result)) == result

    def test_a_stream(self):
        empty, full = Stream("User", "u1", ()), Stream("User", "u1", (persisted(),))
        assert (empty.version, empty.is_empty, len(empty), list(empty)) == (0, True, 0, [])
        assert (full.version, full.is_empty, len(full), list(full)) == (2, False, 1, [persisted()])
        assert full == Stream("User", "u1", (persisted(),))
