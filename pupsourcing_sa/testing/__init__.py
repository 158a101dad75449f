"""Support for tests of applications that use this library."""

from __future__ import annotations

from pupsourcing_sa.testing._postgres import embedded_postgres

__all__ = ["embedded_postgres"]
