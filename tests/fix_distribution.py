"""An installed distribution with entry points: a directory on the path with its metadata."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_distribution"]


def write_distribution(site: Path, name: str, **consumers: str) -> None:
    """Write the metadata of an installed distribution into ``site``, with an entry point for each consumer."""
    information = site / f"{name.replace('-', '_')}-1.5.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    lines = ["[pupsourcing_sa.consumers]", *(f"{point} = {value}" for point, value in consumers.items())]
    (information / "entry_points.txt").write_text("\n".join(lines))
