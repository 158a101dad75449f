"""The plan of assignments: a pure function from the current assignments and the live nodes to the new assignments.

The plan is

- *capable*: a partition goes only to a node that has its consumer;
- *even*: no chain of moves leads from a node to one that has at least two partitions fewer;
- *sticky*: it starts from the current assignments, and moves a partition only if that makes the load more even.

Evenness is that of an optimal semi-matching, which has no cost-reducing path (Harvey, Ladner, Lovász and Tamir,
"Semi-matchings for bipartite graphs and load balancing", 2006).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias
from uuid import UUID

from pupsourcing_sa.worker.partition import Partition

__all__ = ["plan"]

#: A partition, and the nodes that it moves from and to.
_Move: TypeAlias = tuple[Partition, "_Node", "_Node"]


class _Node:
    """A node of the plan, with its consumers and the partitions it has so far."""

    def __init__(self, worker_id: UUID, consumers: Collection[str]) -> None:
        self.worker_id = worker_id
        self.consumers = frozenset(consumers)
        self.load = 0
        self.partitions: dict[str, set[int]] = {name: set() for name in sorted(self.consumers)}

    def take(self, partition: Partition) -> None:
        self.partitions[partition.consumer].add(partition.number)
        self.load += 1

    def give(self, partition: Partition) -> None:
        self.partitions[partition.consumer].remove(partition.number)
        self.load -= 1

    def best_for(self, other: _Node) -> Partition | None:
        """Return the partition to move to ``other``: one of the consumer whose share differs most between the two."""
        shared = [name for name, numbers in self.partitions.items() if numbers and name in other.consumers]
        if not shared:
            return None
        name = min(shared, key=lambda name: (len(other.partitions[name]) - len(self.partitions[name]), name))
        return Partition(name, max(self.partitions[name]))


def plan(
    current: Mapping[Partition, UUID | None], nodes: Mapping[UUID, Collection[str]]
) -> dict[Partition, UUID | None]:
    """Return the node of each partition; ``None`` if no node has its consumer.

    Args:
        current: every partition with its current node, which need not be alive.
        nodes: the live nodes with the names of their consumers.
    """
    planned = {worker_id: _Node(worker_id, nodes[worker_id]) for worker_id in sorted(nodes)}
    free: list[Partition] = []
    for partition, worker_id in sorted(current.items(), key=lambda item: item[0]):
        if worker_id in planned and partition.consumer in planned[worker_id].consumers:
            planned[worker_id].take(partition)
        else:
            free.append(partition)
    for partition in free:
        able = [node for node in planned.values() if partition.consumer in node.consumers]
        if able:
            min(able, key=lambda node: (node.load, len(node.partitions[partition.consumer]))).take(partition)
    while moves := _evening_moves(list(planned.values())):
        for partition, source, target in moves:
            source.give(partition)
            target.take(partition)
    assigned = {
        Partition(name, number): node.worker_id
        for node in planned.values()
        for name, numbers in node.partitions.items()
        for number in numbers
    }
    return {partition: assigned.get(partition) for partition in current}


def _evening_moves(nodes: Sequence[_Node]) -> list[_Move]:
    """Return a chain of moves from a node to one with at least two partitions fewer, or no moves if there is none."""
    by_load = sorted(nodes, key=lambda node: node.load)
    for start in reversed(by_load):
        if start.load < by_load[0].load + 2:
            break
        arrivals: dict[UUID, _Move | None] = {start.worker_id: None}
        end = start
        reached = [start]
        for source in reached:  # breadth first: the loop appends the nodes that it reaches
            for target in by_load:
                if target.worker_id not in arrivals and (moved := source.best_for(target)) is not None:
                    arrivals[target.worker_id] = (moved, source, target)
                    reached.append(target)
                    # End at the node with the lowest load, and among equal loads at the nearest.
                    end = min(end, target, key=lambda node: node.load)
                if end.load == by_load[0].load:
                    return _chain_to(end, arrivals)
        if end.load <= start.load - 2:
            return _chain_to(end, arrivals)
    return []


def _chain_to(node: _Node, arrivals: Mapping[UUID, _Move | None]) -> list[_Move]:
    moves = []
    while (move := arrivals[node.worker_id]) is not None:
        moves.append(move)
        node = move[1]
    return moves
