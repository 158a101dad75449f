from __future__ import annotations

from enum import Enum

import pytest

from pupsourcing_sa import Consumer, consumer
from pupsourcing_sa.consumer import Scope, Subscription


def test_a_function_becomes_a_consumer_and_stays_callable():
    @consumer("count", aggregate_types={"User"}, event_types=("A", "B"), partitions=4)
    def count(session, event):
        """Counts."""
        return session, event

    assert isinstance(count, Consumer)
    assert count(1, 2) == (1, 2) == count.handle(1, 2)
    assert (count.__name__, count.__doc__) == ("count", "Counts.")
    assert repr(count) == "<consumer 'count'>"
    found = Subscription.of(count)
    assert found.scope == Scope(("User",), ("A", "B"), partitions=4)


def test_batch_size_and_attempts():
    class OrderView:
        name = "order_view"
        batch_size = 500
        max_attempts = 1

        def handle(self, session, event): ...

    found = Subscription.of(OrderView())
    assert (found.batch_size, found.max_attempts) == (500, 1)
    found = Subscription.of(consumer("count", batch_size=2**31 - 1, max_attempts=5)(lambda session, event: None))
    assert (found.batch_size, found.max_attempts) == (2**31 - 1, 5)
    found = Subscription.of(consumer("count")(lambda session, event: None))
    assert (found.batch_size, found.max_attempts) == (None, None)


def test_values_of_subclasses_become_plain_values():
    class Name(str, Enum):  # noqa: UP042
        COUNT = "count"

    class Number(int, Enum):
        TWO = 2

    options = {"partitions": Number.TWO, "batch_size": Number.TWO, "max_attempts": Number.TWO}
    found = Subscription.of(consumer(Name.COUNT, **options)(lambda session, event: None))
    assert (found.name, found.scope.partitions, found.batch_size, found.max_attempts) == ("count", 2, 2, 2)
    assert type(found.name) is str
    assert {type(found.scope.partitions), type(found.batch_size), type(found.max_attempts)} == {int}


def test_any_object_with_a_name_and_a_handler_is_a_consumer():
    class OrderView:
        name = "order_view"

        def handle(self, session, event): ...

    found = Subscription.of(OrderView())
    assert (found.name, found.scope, found.handle_batch) == ("order_view", Scope(), None)


def test_a_handler_that_cannot_be_called_is_refused_before_it_fails_with_each_event():
    class Batches:
        name = "batches"

        def handle_batch(self, session): ...

    with pytest.raises(
        TypeError, match=r"handler of consumer 'few' must take \(session, event\), not \(session\): too many"
    ):
        consumer("few")(lambda session: None)
    with pytest.raises(
        TypeError, match=r"must take \(session, event\), not \(session, event, more\): missing .* 'more'"
    ):
        consumer("many")(lambda session, event, more: None)
    with pytest.raises(
        TypeError, match=r"handler of consumer 'batches' must take \(session, events\), not \(session\)"
    ):
        Subscription.of(Batches())
    consumer("defaults")(lambda session, event, more=None: None)
    consumer("any")(lambda *arguments: None)
    consumer("of C")(max)


def test_mistakes_are_named():
    class Nameless:
        def handle(self, session, event): ...

    class Idle:
        name = "idle"

    with pytest.raises(TypeError, match=r"needs a name: write @consumer\('user_count'\)"):
        consumer(lambda session, event: None)
    with pytest.raises(TypeError, match="decorates a function"):
        consumer("five")(5)
    with pytest.raises(TypeError, match="needs a name"):
        Subscription.of(Nameless())
    with pytest.raises(TypeError, match=r"write Nameless\(\)"):
        Subscription.of(Nameless)
    with pytest.raises(TypeError, match=r"needs a method handle\(session, event\)"):
        Subscription.of(Idle())
    for given, error, message in [
        ({"name": ""}, ValueError, "name of a consumer must have 1 to 255 printable characters, not ''"),
        ({"name": "  "}, ValueError, "name of a consumer"),
        ({"name": "two\nlines"}, ValueError, "name of a consumer"),
        ({"name": "n" * 256}, ValueError, "name of a consumer"),
        (
            {"name": "a", "aggregate_types": "User"},
            TypeError,
            r"aggregate_types must be a set of str, such as \{'User'\}",
        ),
        ({"name": "a", "event_types": {5}}, TypeError, "event_types must contain str only"),
        ({"name": "a", "event_types": {"\0"}}, ValueError, "event_types must not contain NUL"),
        ({"name": "a", "partitions": 0}, ValueError, "partitions of consumer 'a' must be between 1"),
        ({"name": "a", "partitions": "2"}, TypeError, "partitions of consumer 'a' must be an int, not str"),
        ({"name": "a", "partitions": None}, TypeError, "partitions of consumer 'a' must be an int, not NoneType"),
        ({"name": "a", "batch_size": 0}, ValueError, "batch_size of consumer 'a' must be between 1"),
        ({"name": "a", "batch_size": 2.0}, TypeError, "batch_size of consumer 'a' must be an int or None, not float"),
        ({"name": "a", "max_attempts": 0}, ValueError, "max_attempts of consumer 'a' must be between 1"),
        ({"name": "a", "max_attempts": True}, TypeError, "max_attempts of consumer 'a' must be an int or None"),
        ({"name": "a", "max_attempts": 2**31}, ValueError, "max_attempts of consumer 'a' must be between 1 and 2147"),
    ]:
        with pytest.raises(error, match=message):
            consumer(**given)(lambda session, event: None)


@pytest.mark.parametrize(
    ("attribute", "option"),
    [
        ("aggregate_type", "aggregate_types"),
        ("agregate_types", "aggregate_types"),
        ("aggregateTypes", "aggregate_types"),
        ("event_type", "event_types"),
        ("event_tpyes", "event_types"),
        ("partition", "partitions"),
        ("n_partitions", "partitions"),
        ("BATCH_SIZE", "batch_size"),
        ("batchsize", "batch_size"),
        ("max_attempt", "max_attempts"),
        ("max_atempts", "max_attempts"),
        ("handle_batches", "handle_batch"),
        ("isolation_level", "isolation"),
    ],
)
@pytest.mark.parametrize("place", ["class", "object"])
def test_a_misspelt_option_is_refused(attribute, option, place):
    class OrderView:
        name = "order_view"
        aggregate_types = None  # a base class may have defaults

        def handle(self, session, event): ...

    view = OrderView()
    setattr(OrderView if place == "class" else view, attribute, None)
    with pytest.raises(TypeError, match=f"'order_view' has an attribute '{attribute}'.* rename it to '{option}'"):
        Subscription.of(view)


def test_other_attributes_belong_to_the_application():
    class OrderView:
        name = "order_view"
        aggregate_ids = event_ids = attempts = batches = batch = handler = handle_event = partition_key = None
        _event_type = _max_attempts = None

        def handle(self, session, event): ...

    assert Subscription.of(OrderView()).scope == Scope()


@pytest.mark.parametrize("option", ["aggregate_types", "event_types"])
def test_a_generator_of_types_is_refused(option: str):
    """It would be empty when it is read again, and the consumer would get the whole log."""
    types = (name for name in ["User"])
    with pytest.raises(TypeError, match=f"{option} of consumer 'c' must be a set or a list of str, not generator"):
        consumer("c", **{option: types})(lambda session, event: None)
