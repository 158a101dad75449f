"""Snapshots of event classes: their schemas and example payloads, to find changes that break stored events."""

from __future__ import annotations

from pupsourcing_sa.registry.snapshots.snapshot import SnapshotFinding, check_snapshot, take_snapshot

__all__ = ["SnapshotFinding", "check_snapshot", "take_snapshot"]
