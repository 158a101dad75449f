from __future__ import annotations

import copy
import pickle
from enum import Enum
from typing import get_args

import pytest

from pupsourcing_sa import AnyVersion, Exact, ExpectedVersion, NoStream


def test_they_are_values():
    assert NoStream() == Exact(0) == NoStream()
    assert hash(NoStream()) == hash(Exact(0))
    assert AnyVersion() == AnyVersion()
    assert Exact(3) == Exact(3)
    assert len({AnyVersion(), NoStream(), Exact(1), Exact(2), Exact(0), Exact(1)}) == 4
    assert Exact(3) != 3


@pytest.mark.parametrize("expected", [AnyVersion(), NoStream(), Exact(3)], ids=repr)
def test_they_can_be_copied_pickled_and_printed(expected):
    assert pickle.loads(pickle.dumps(expected)) == expected
    assert copy.deepcopy(expected) == expected
    assert eval(repr(expected)) == expected
    with pytest.raises(AttributeError):
        expected.version = 5


@pytest.mark.parametrize(
    ("version", "error"), [(-1, ValueError), (2**63, ValueError), ("1", TypeError), (1.0, TypeError), (True, TypeError)]
)
def test_an_impossible_version(version, error):
    with pytest.raises(error, match="^version must be"):
        Exact(version)


def test_a_version_of_a_subclass_becomes_an_int():
    class Version(int, Enum):
        TWO = 2

    assert Exact(Version.TWO) == Exact(2)
    assert type(Exact(Version.TWO).version) is int
    assert repr(Exact(Version.TWO)) == "Exact(2)"


def test_the_union():
    assert set(get_args(ExpectedVersion)) == {AnyVersion, NoStream, Exact}
