"""The result of an operation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["OperationResult"]


@dataclass(frozen=True, slots=True)
class OperationResult:
    """The change that an operation has made to a consumer.

    Attributes:
        consumer: name of the consumer.
        operation: name of the method.
        before: the consumer's rows before, by table: ``"checkpoints"`` and ``"assignments"``. Each row is a dictionary
            of plain values by column.
        after: the same after the operation.
    """

    consumer: str
    operation: str
    before: dict[str, list[dict[str, Any]]]
    after: dict[str, list[dict[str, Any]]]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return asdict(self)
