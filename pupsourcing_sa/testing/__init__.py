"""What applications need to test what they build on this library."""

from __future__ import annotations

from pupsourcing_sa.testing._postgres import embedded_postgres

__all__ = ["embedded_postgres"]
