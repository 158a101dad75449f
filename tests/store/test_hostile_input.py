"""Values that break encodings, quoting, limits and clocks: refused when the event is built, or returned unchanged."""

from __future__ import annotations

import pickle
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, IntEnum, StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from pupsourcing_sa import AnyVersion, Event, Exact, NoStream, OptimisticConcurrencyError, PersistedEvent
from pupsourcing_sa.errors import KeyTooLongError, UnreadableEventError
from tests.fix_store import SESSIONS, Log, Transaction, make_event, make_tables

HOSTILE_TEXTS = [
    "'", '"', "\\", "\\\\'", "%", "%%", "%s", "%(event_ids)s", ":name", "::text", "{}", '{a,"b"}', "{NULL}", "NULL",
    "null", "$1", "$name$", "--", "/*", ";", "a,b", "(a)", " leading and trailing ", "\t\r\n", "\x01\x7f\x85\u2028",
    "\U0001f40d\U0010ffff", "אבג\u202eabc", "e\u0301", "é", "İıſß", "\ufeff", "\uffff", "\\x00", "\\u0000", "''\\'''",
]  # fmt: skip

FIELDS = (
    "aggregate_type", "aggregate_id", "event_type", "event_version", "event_id", "payload", "trace_id",
    "correlation_id", "causation_id", "metadata",
)  # fmt: skip


@pytest.fixture(
    params=[
        pytest.param(kind, marks=() if kind in ("session", "asyncpg-connection") else pytest.mark.exhaustive)
        for kind in SESSIONS
    ]
)
def transaction(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Transaction]:
    log = Log(engine, make_tables(engine), request.param)
    yield log.begin()
    log.close()


def sizes(daily: int, exhaustive: int) -> pytest.MarkDecorator:
    """Run a test with one size every day, and with the other in the exhaustive run."""
    return pytest.mark.parametrize("size", [daily, pytest.param(exhaustive, marks=pytest.mark.exhaustive)])


def assert_equal(appended: Event, found: PersistedEvent) -> None:
    for field in FIELDS:
        assert getattr(found, field) == getattr(appended, field), field
    # Compared in UTC: == is never true between two time zones for an hour that is repeated.
    assert found.created_at == appended.created_at.astimezone(UTC)


def assert_given_back(transaction: Transaction, *events: Event) -> None:
    """Check that both ways to read return the events, at the positions of the result. Leave nothing in the log."""
    first = events[0]
    result = transaction.append(AnyVersion(), events)
    stream = transaction.read_aggregate_stream(first.aggregate_type, first.aggregate_id)
    assert stream.events == result.events
    transaction.commit()
    page = transaction.read_events(
        after=result.global_positions[0] - 1, limit=len(events), aggregate_types={first.aggregate_type}
    )
    assert page == list(stream)
    for appended, found in zip(events, page, strict=True):
        assert_equal(appended, found)
    transaction.execute("DELETE FROM events")
    transaction.execute("DELETE FROM aggregate_heads")
    transaction.commit()


class TestText:
    def test_everywhere(self, transaction: Transaction):
        for text in HOSTILE_TEXTS:
            names = dict.fromkeys(("trace_id", "correlation_id", "causation_id"), text)
            event = make_event(text, aggregate_type=text, event_type=text, payload=text, metadata={text: text}, **names)
            assert_given_back(transaction, event)

    def test_texts_that_look_alike_are_different_aggregates(self, transaction: Transaction):
        for text in ("é", "e\u0301", "É", "é ", " é", "ﬁ", "fi"):
            transaction.append(NoStream(), [make_event(text, aggregate_type="T")])
        assert transaction.read_aggregate_stream("T", "é").version == 1

    def test_a_scope_of_hostile_types(self, transaction: Transaction):
        for text in HOSTILE_TEXTS:
            transaction.append(NoStream(), [make_event("1", aggregate_type=text, event_type=text)])
        transaction.commit()
        for text in HOSTILE_TEXTS:
            for scope in ("aggregate_types", "event_types"):
                found = transaction.read_events(**{scope: [text, "another"]})
                assert [event.aggregate_type for event in found] == [text], scope

    def test_optional_text_may_be_empty_and_is_not_null(self, transaction: Transaction):
        empty = make_event(trace_id="", correlation_id="", causation_id="")
        assert_given_back(transaction, empty, make_event(), make_event(trace_id="NULL"))

    def test_a_key_longer_than_an_index_can_hold(self, transaction: Transaction):
        chance = random.Random(5)

        def text(length: int) -> str:
            return "".join(chance.choices("abcdefghijkl", k=length))

        assert_given_back(transaction, make_event(text(2000)))
        # The second one does not fit into a page, which PostgreSQL detects in another place.
        for name, size in [("aggregate_id", 6000), ("aggregate_id", 50_000), ("aggregate_type", 6000)]:
            event = make_event(**{"aggregate_id": "u1", name: text(size)})
            for append in (
                lambda event: transaction.append(NoStream(), [event]),
                lambda event: transaction.append(NoStream(), [event], idempotent=True),
                lambda event: transaction.append_many([(AnyVersion(), [make_event("u0")]), (NoStream(), [event])]),
            ):
                with pytest.raises(KeyTooLongError, match=f"{name} is too long, with {size} bytes") as caught:
                    append(event)
                assert (caught.value.aggregate_type, caught.value.aggregate_id) == (
                    event.aggregate_type,
                    event.aggregate_id,
                )
                assert (caught.value.name, caught.value.size) == (name, size)
                assert len(str(caught.value)) < 500
                assert caught.value.__cause__.orig.sqlstate == "54000"
                transaction.rollback()
            assert transaction.read_aggregate_stream(event.aggregate_type, event.aggregate_id).is_empty
        with pytest.raises(KeyTooLongError, match="User 'u1': correlation_id is too long"):
            transaction.append(NoStream(), [make_event(), make_event(correlation_id=text(6000))])
        transaction.rollback()
        assert transaction.latest_global_position() == 0

    def test_other_limits_are_not_mistaken_for_it(self, transaction: Transaction):
        transaction.execute("CREATE INDEX ON events (trace_id)")
        transaction.commit()
        trace = "".join(random.Random(5).choices("abcdefghijkl", k=6000))
        with pytest.raises(DBAPIError) as caught:
            transaction.append(NoStream(), [make_event(trace_id=trace)])
        assert caught.value.orig.sqlstate == "54000"


class TestSizes:
    @sizes(5_000_000, 50_000_000)
    def test_a_large_payload(self, transaction: Transaction, size: int):
        payload = random.Random(5).randbytes(size)
        result = transaction.append(NoStream(), [make_event(payload=payload)])
        assert transaction.read_aggregate_stream("User", "u1").events[0].payload == payload
        assert result.events[0].payload is payload

    @sizes(10_000, 100_000)
    def test_many_events_in_one_append(self, transaction: Transaction, size: int):
        events = [make_event(payload=str(number).encode()) for number in range(size)]
        result = transaction.append(NoStream(), events)
        assert result.global_positions == tuple(range(1, size + 1))
        assert (result.from_version, result.to_version) == (0, size)
        transaction.commit()
        page = transaction.read_events(limit=2 * size)
        assert [event.payload for event in page] == [event.payload for event in events]
        assert [event.aggregate_version for event in page] == list(range(1, size + 1))

    def test_many_types_in_a_scope(self, transaction: Transaction):
        transaction.append(NoStream(), [make_event()])
        transaction.commit()
        types = ["User", *(f"type {number}" for number in range(20_000))]
        assert len(transaction.read_events(aggregate_types=types, event_types=["UserRegistered", *types])) == 1

    def test_event_versions(self, transaction: Transaction):
        assert_given_back(transaction, *(make_event(event_version=version) for version in (1, 300, 2**31 - 1)))

    def test_bounds_that_fill_a_bigint(self, transaction: Transaction):
        most = 2**63 - 1
        transaction.append(NoStream(), [make_event()])
        transaction.commit()
        with pytest.raises(OptimisticConcurrencyError):
            transaction.append(Exact(most), [make_event(), make_event()])
        assert len(transaction.read_events(limit=most, up_to=most)) == 1
        assert transaction.read_events(after=most, aggregate_types={"User"}) == []
        assert len(transaction.read_aggregate_stream("User", "u1", from_version=0, to_version=most)) == 1


class TestMetadata:
    def test_any_json(self, transaction: Transaction):
        for value in [
            # JSONB stores decimals. It would return floats above 1e22 as integers, which are not equal to them.
            1e23, -1e23, 1.7976931348623157e308, 1.2345678901234567e16, {"1e23": ["1e+23", '"1e+23', "\\", 1e23]},
            10**30, -(10**300), 2**64, 0.1, 1e-300, 5e-324, 1e16, 1e22, -0.0, 1.0, 1.50,
            True, None, "", [], {}, [[[]]], {"a.b": {"": {" ": 1}}}, {"\U0001f40d": "\U0010ffff", "ä": "\u202e"},
            {"b": 1, "a": {"d": 2, "c": [3, {"f": 4, "e": 5}]}}, "\\u0000", "'\"\\%s:name{}", {1: {True: None}},
        ]:  # fmt: skip
            assert_given_back(transaction, make_event(metadata={"key": value}))

    def test_deep_nesting(self, transaction: Transaction):
        value: Any = 1
        for _ in range(400):
            value = [{"a": value}]
        assert_given_back(transaction, make_event(metadata={"key": value}, payload=value))

    def test_numbers_of_another_program_that_python_refuses(self, transaction: Transaction):
        event = make_event()
        (position,) = transaction.append(NoStream(), [event]).global_positions
        transaction.execute("UPDATE events SET metadata = jsonb_build_object('a', repeat('9', 5000)::numeric)")
        (found,) = transaction.read_aggregate_stream("User", "u1")
        with pytest.raises(UnreadableEventError, match=f"metadata of the event at {position} ") as caught:
            _ = found.metadata
        assert caught.value.event_id == event.event_id

    def test_a_megabyte(self, transaction: Transaction):
        assert_given_back(transaction, make_event(metadata={str(number): "x" * 100 for number in range(10_000)}))


class TestTimes:
    @pytest.mark.parametrize(
        ("time", "name"),
        [
            ("infinity", "infinity"),
            ("-infinity", "-infinity"),
            ("0044-03-15 BC", "outside the years 1 to 9999"),
            ("10000-01-01", "outside the years 1 to 9999"),
        ],
    )
    def test_a_time_of_another_program_is_an_error_that_names_the_event(
        self, transaction: Transaction, time: str, name: str
    ):
        event = make_event()
        (position,) = transaction.append(NoStream(), [event]).global_positions
        transaction.execute(f"UPDATE events SET created_at = '{time}'")
        (found,) = transaction.read_aggregate_stream("User", "u1")
        assert found.json() == event.json()
        assert found == pickle.loads(pickle.dumps(found))
        with pytest.raises(UnreadableEventError, match=name) as caught:
            _ = found.created_at
        error = caught.value
        assert (error.position, error.event_id, error.field) == (position, event.event_id, "created_at")
        assert f"the event at {position} ({event.event_id})" in str(error)

    def test_any_time(self, transaction: Transaction):
        for moment in [
            datetime.min.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
            datetime(1, 1, 2, tzinfo=timezone(timedelta(hours=14))),
            datetime(1582, 10, 10, tzinfo=UTC),
            datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2026, 10, 25, 2, 30, fold=0, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2026, 3, 29, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),  # an hour that was skipped
            datetime(1800, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam")),  # an offset with seconds
            datetime(2020, 1, 1, tzinfo=timezone(timedelta(microseconds=1))),
        ]:
            result = transaction.append(AnyVersion(), [make_event(created_at=moment)])
            (found,) = transaction.read_aggregate_stream("User", "u1", from_version=result.to_version)
            assert found.created_at == moment.astimezone(UTC)
            assert result.events == (found,)

    @pytest.mark.parametrize(
        "moment",
        [
            datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        ],
        ids=str,
    )
    def test_a_time_that_is_none_in_utc_is_refused(self, moment: datetime):
        with pytest.raises(ValueError, match="^created_at "):
            make_event(created_at=moment)


def test_any_uuid(transaction: Transaction):
    ids = [
        uuid.UUID(int=0),
        uuid.UUID(int=2**128 - 1),
        uuid.UUID("c232ab00-9414-11ec-b3c8-9f6bdeced846"),
        uuid.uuid3(uuid.NAMESPACE_DNS, "a"),
        uuid.UUID("919108f7-52d1-4320-9bac-f847db4148a8"),
        uuid.uuid5(uuid.NAMESPACE_DNS, "a"),
        uuid.UUID("1ec9414c-232a-6b00-b3c8-9e6bdeced846"),
        uuid.UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
        uuid.UUID("320c3d4d-cc00-875b-8ec9-32d5f69181c0"),
    ]
    assert_given_back(transaction, *(make_event(event_id=event_id) for event_id in ids))


def test_subclasses_of_the_types(transaction: Transaction):
    class Kind(StrEnum):
        USER = "the value"

    class Version(IntEnum):
        LATEST = 100_000

    event = make_event(Kind.USER, aggregate_type=Kind.USER, event_type=Kind.USER, trace_id=Kind.USER)
    other = make_event(Kind.USER, aggregate_type="the value", event_version=Version.LATEST)
    assert_given_back(transaction, event, other, make_event("the value", aggregate_type="the value", event_version=1))


class Kind(str, Enum):  # noqa: UP042
    USER = "the value"


class Number(int, Enum):
    ONE = 1


def test_members_of_enumerations_as_arguments(transaction: Transaction):
    """psycopg would send their names."""
    event = make_event(Kind.USER, aggregate_type=Kind.USER, event_type=Kind.USER, correlation_id=Kind.USER)
    more = make_event(Kind.USER, aggregate_type=Kind.USER, event_version=Number.ONE)
    first = transaction.append(NoStream(), [event])
    second = transaction.append(Exact(Number.ONE), [more])
    stream = transaction.read_aggregate_stream(
        Kind.USER, Kind.USER, from_version=Number.ONE, to_version=Number.ONE, limit=Number.ONE
    )
    assert stream.events == first.events
    assert (stream.aggregate_type, stream.aggregate_id) == ("the value", "the value")
    transaction.commit()
    assert transaction.read_events(after=Number.ONE, limit=Number.ONE) == list(second.events)
    assert transaction.read_events(up_to=Number.ONE, aggregate_types=[Kind.USER]) == list(first.events)
    assert transaction.read_events(event_types=[Kind.USER], correlation_id=Kind.USER) == list(first.events)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAME = TEXT.filter(bool)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "event_type": NAME,
            "payload": st.binary(max_size=50) | JSON,
            "event_version": st.integers(1, 2**31 - 1),
            "event_id": st.uuids(allow_nil=True),
            "metadata": st.dictionaries(TEXT, JSON, max_size=3),
            "trace_id": st.none() | TEXT,
            "correlation_id": st.none() | TEXT,
            "causation_id": st.none() | TEXT,
            "created_at": st.datetimes(
                min_value=datetime(1, 1, 3),  # noqa: DTZ001
                max_value=datetime(9999, 12, 30),  # noqa: DTZ001
                timezones=st.timezones() | st.just(UTC),
            ),
        }
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda values: values["event_id"],
)


@sizes(25, 200)
def test_of_any_event_what_is_read_equals_what_was_appended(transaction: Transaction, size: int):
    @settings(max_examples=size, deadline=None, database=None)
    @given(aggregate=st.tuples(NAME, NAME), events=EVENTS)
    def check(aggregate: tuple[str, str], events: list[dict[str, Any]]) -> None:
        kind, name = aggregate
        assert_given_back(transaction, *(Event(aggregate_type=kind, aggregate_id=name, **event) for event in events))

    check()
