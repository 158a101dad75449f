"""Check for a supported version of Alembic."""

from __future__ import annotations

from importlib.util import find_spec

from pupsourcing_sa.errors import MissingExtraError

__all__ = ["require_alembic"]


def require_alembic() -> None:
    """Raise an error with installation instructions unless Alembic 1.18 or newer is installed.

    Raises:
        MissingExtraError: Alembic is not installed, or is older than 1.18.
    """
    try:
        import alembic
    except ModuleNotFoundError as error:
        if error.name != "alembic":
            raise
        raise MissingExtraError("alembic", "alembic") from error
    version = getattr(alembic, "__version__", None)
    if version is None:
        # This is a namespace package: a directory named alembic, such as one with the application's migrations.
        raise MissingExtraError("alembic", "alembic")
    if find_spec("alembic.runtime.plugins") is None:
        raise MissingExtraError("alembic", "alembic", f"alembic 1.18 or newer is required, but {version} is installed")
