"""Whether there is an Alembic that serves."""

from __future__ import annotations

from importlib.util import find_spec

from pupsourcing_sa.errors import MissingExtraError

__all__ = ["require_alembic"]


def require_alembic() -> None:
    """Raise an error that says what to install, unless Alembic can be imported and has plugins.

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
    if version is None:  # a directory of that name, such as that of the migrations
        raise MissingExtraError("alembic", "alembic")
    if find_spec("alembic.runtime.plugins") is None:
        raise MissingExtraError("alembic", "alembic", f"alembic 1.18 or newer is needed, and {version} is installed")
