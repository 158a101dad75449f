"""Checks of a registry's upcasters: each belongs to a known name, none is missing, and no names form a cycle."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from pupsourcing_sa.registry.upcasting import Step

__all__ = ["checked_steps"]


def checked_steps(
    steps: Mapping[tuple[str, int], Step],
    names: Mapping[str, str],
    versions: Mapping[str, int],
    retired: Collection[str],
) -> dict[tuple[str, int], Step]:
    """Check the steps, and return them with names instead of aliases.

    Args:
        steps: the steps, by stored type and version.
        names: every name and alias, with its name.
        versions: the current version of each name.
        retired: names without a class.

    Raises:
        ValueError: a step is missing, or belongs to an unknown name or to the current version, or names form a cycle.
    """
    checked: dict[tuple[str, int], Step] = {}
    for (stored, version), step in steps.items():
        name = names.get(stored, stored)
        if name not in versions and name not in retired and not step.is_split:
            raise ValueError(
                f"there is an upcaster of {stored!r}, which is not registered; correct the name, or retire() it"
            )
        if name in versions and version >= versions[name]:
            raise ValueError(
                f"{stored!r} has an upcaster from version {version}, but its class has version {versions[name]}; "
                f"register the class with version={version + 1}"
            )
        if (name, version) in checked:
            raise ValueError(f"{name!r} has two upcasters from version {version}, one of them under an alias")
        into = None if step.into is None else frozenset(names.get(other, other) for other in step.into)
        checked[name, version] = replace(step, into=into)
    _refuse_unknown_results(checked, versions, retired)
    _refuse_holes(checked, versions)
    _refuse_cycles(checked)
    return checked


def _refuse_unknown_results(
    steps: Mapping[tuple[str, int], Step], versions: Mapping[str, int], retired: Collection[str]
) -> None:
    known = {*versions, *retired, *(name for name, _ in steps)}
    for (name, _), step in steps.items():
        for other in sorted((step.into or frozenset()) - known):
            raise ValueError(f"the upcaster of {name!r} returns {other!r}, which is not registered")


def _refuse_holes(steps: Mapping[tuple[str, int], Step], versions: Mapping[str, int]) -> None:
    for name, current in versions.items():
        existing = {version for owner, version in steps if owner == name}
        missing = sorted(set(range(min(existing, default=current), current)) - existing)
        if missing:
            raise ValueError(
                f"{name!r} has an upcaster from version {min(existing)}, but none from version {missing[0]}; add it"
            )


def _refuse_cycles(steps: Mapping[tuple[str, int], Step]) -> None:
    """Refuse names that become one another. A cycle of undeclared results is found when it runs."""
    results: dict[str, set[str]] = {}
    for (name, _), step in steps.items():
        results.setdefault(name, set()).update(step.into or ())
    try:
        TopologicalSorter(results).prepare()
    except CycleError as error:
        cycle = " → ".join(map(repr, reversed(error.args[1])))
        raise ValueError(f"upcasters form a cycle: {cycle}; each must lead to a current class") from None
