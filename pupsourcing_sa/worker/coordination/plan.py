"""Which node runs which partition. Pure: what is there goes in, what is to be comes out.

The plan is *sticky*: it begins with what is, and moves a partition only where that evens the nodes out. It is *even*:
when nodes know different consumers, no chain of moves would make a fuller node emptier than it leaves another. And a
partition goes to no node that does not know its consumer.

The evenness is that of an optimal semi-matching, in which no cost-reducing path is left (Harvey, Ladner, Lovász and
Tamir, "Semi-matchings for bipartite graphs and load balancing", 2006).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias
from uuid import UUID

from pupsourcing_sa.worker.partition import Partition

__all__ = ["plan"]

#: A partition, the node that gives it, and the node that takes it.
_Move: TypeAlias = tuple[Partition, "_Node", "_Node"]


class _Node:
    """A node of the plan: what it knows, and what it holds so far."""

    def __init__(self, worker_id: UUID, known: Collection[str]) -> None:
        self.worker_id = worker_id
        self.known = frozenset(known)
        self.load = 0
        self.held: dict[str, set[int]] = {name: set() for name in sorted(self.known)}

    def take(self, partition: Partition) -> None:
        self.held[partition.consumer].add(partition.number)
        self.load += 1

    def give(self, partition: Partition) -> None:
        self.held[partition.consumer].remove(partition.number)
        self.load -= 1

    def best_for(self, other: _Node) -> Partition | None:
        """What is best moved to another node: of the consumer of which that has the smallest share in comparison."""
        shared = [name for name, numbers in self.held.items() if numbers and name in other.known]
        if not shared:
            return None
        name = min(shared, key=lambda name: (len(other.held[name]) - len(self.held[name]), name))
        return Partition(name, max(self.held[name]))


def plan(
    current: Mapping[Partition, UUID | None], nodes: Mapping[UUID, Collection[str]]
) -> dict[Partition, UUID | None]:
    """The node of each partition, ``None`` for those whose consumer no node knows.

    Args:
        current: every partition, with the node that it is assigned to; it may be gone.
        nodes: the live nodes, with the names of the consumers that each knows.
    """
    planned = {worker_id: _Node(worker_id, nodes[worker_id]) for worker_id in sorted(nodes)}
    free: list[Partition] = []
    for partition, worker_id in sorted(current.items(), key=lambda item: item[0]):
        if worker_id in planned and partition.consumer in planned[worker_id].known:
            planned[worker_id].take(partition)
        else:
            free.append(partition)
    for partition in free:
        able = [node for node in planned.values() if partition.consumer in node.known]
        if able:
            min(able, key=lambda node: (node.load, len(node.held[partition.consumer]))).take(partition)
    while moves := _evening_moves(list(planned.values())):
        for partition, source, target in moves:
            source.give(partition)
            target.take(partition)
    assigned = {
        Partition(name, number): node.worker_id
        for node in planned.values()
        for name, numbers in node.held.items()
        for number in numbers
    }
    return {partition: assigned.get(partition) for partition in current}


def _evening_moves(nodes: Sequence[_Node]) -> list[_Move]:
    """The moves along a chain from a fuller node to the emptiest that it reaches, if that has at least two less."""
    by_load = sorted(nodes, key=lambda node: node.load)
    for start in reversed(by_load):
        if start.load < by_load[0].load + 2:
            break
        came_by: dict[UUID, _Move | None] = {start.worker_id: None}
        end = start
        reached = [start]
        for source in reached:  # in the order of their distance; those that it reaches are added
            for target in by_load:
                if target.worker_id not in came_by and (moved := source.best_for(target)) is not None:
                    came_by[target.worker_id] = (moved, source, target)
                    reached.append(target)
                    # Of equals the nearest. A fuller one would have to give again what it was given.
                    end = min(end, target, key=lambda node: node.load)
                if end.load == by_load[0].load:
                    return _back_from(end, came_by)
        if end.load <= start.load - 2:
            return _back_from(end, came_by)
    return []


def _back_from(node: _Node, came_by: Mapping[UUID, _Move | None]) -> list[_Move]:
    moves = []
    while (move := came_by[node.worker_id]) is not None:
        moves.append(move)
        node = move[1]
    return moves
