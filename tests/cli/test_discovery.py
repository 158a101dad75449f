"""Consumers of installed distributions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pupsourcing_sa import consumer
from pupsourcing_sa.cli._discovery import DiscoveredConsumer, discover_consumers, distinct_consumers
from pupsourcing_sa.cli._errors import UsageError
from tests.fix_distribution import write_distribution

CODE = """
from pupsourcing_sa import consumer

def make(name):
    return consumer(name)(lambda session, event: None)

class Silent:
    name = "silent"

invoices, payments = make("invoices"), make("payments")
everything = [payments, invoices]
other_invoices = make("invoices")
generated = (make(name) for name in ("first", "second"))
number = 5
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution that has the module `billing` and these entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str = "acme-billing", **entry_points: str) -> None:
        (tmp_path / "billing.py").write_text(CODE)
        write_distribution(tmp_path, name, **entry_points)

    yield install
    for module in ("billing", "broken"):
        sys.modules.pop(module, None)


def names(consumers: list[object]) -> list[str]:
    return [consumer.name for consumer in consumers]


def test_a_consumer_and_iterables_of_them(install: Install):
    install(a="billing:invoices", b="billing:generated")
    install("acme-payments", c="billing:payments")
    assert names(distinct_consumers(discover_consumers())) == ["invoices", "first", "second", "payments"]


def test_nothing_is_installed():
    assert discover_consumers() == []


def test_one_object_counts_once(install: Install):
    install(a="billing:invoices", b="billing:everything")
    import billing

    own = DiscoveredConsumer(billing.payments, "myapp:worker")
    assert distinct_consumers([own, *discover_consumers()]) == [billing.payments, billing.invoices]


def test_two_consumers_of_one_name(install: Install):
    install(a="billing:invoices", b="billing:other_invoices")
    with pytest.raises(UsageError) as caught:
        distinct_consumers(discover_consumers())
    assert str(caught.value).startswith(
        "two consumers have the name 'invoices', and so the same checkpoint: "
        "one of entry point a = billing:invoices of acme-billing 1.5 "
        "and one of entry point b = billing:other_invoices of acme-billing 1.5. "
    )

    @consumer("invoices")
    def invoices(session, event): ...

    with pytest.raises(UsageError, match="one of myapp:worker and one of entry point a"):
        distinct_consumers([DiscoveredConsumer(invoices, "myapp:worker"), *discover_consumers()])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("broken:all", "loading {} failed: RuntimeError: not today"),
        ("nowhere:all", "loading {} failed: ModuleNotFoundError: No module named 'nowhere'"),
        ("billing:nothing", "loading {} failed: AttributeError: module 'billing' has no attribute 'nothing'"),
        ("billing:number", "{} must be a consumer or an iterable of consumers: 5 is not a consumer: it needs a name"),
        ("billing:make", "{} must be a consumer or an iterable of consumers: <function make"),
        ("billing:Silent", "{} must be a consumer or an iterable of consumers: a consumer must be an object, not the"),
    ],
)
def test_the_message_names_the_mistake(install: Install, tmp_path: Path, value: str, message: str):
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')")
    install(bad=value)
    with pytest.raises(UsageError) as caught:
        discover_consumers()
    assert str(caught.value).startswith(message.format(f"entry point bad = {value} of acme-billing 1.5"))
