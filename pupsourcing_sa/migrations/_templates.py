"""Complete Alembic environments, for ``alembic init``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pupsourcing_sa.errors import TemplateError

__all__ = ["template_directory"]

_PACKAGE: Final = Path(__file__).parent.parent


def template_directory(name: str = "sync") -> Path:
    """A complete Alembic environment for ``alembic init``, with the tables of this library.

    Args:
        name: ``"sync"``, or ``"async"`` for an asyncio engine.

    Returns:
        The directory, to be given as ``alembic init --template <directory> migrations``.

    Raises:
        TemplateError: there is no template of that name.
    """
    # In a wheel they are inside the package; in a checkout, which an editable install uses, beside it.
    candidates = (_PACKAGE / "alembic_templates", _PACKAGE.parent / "alembic_templates")
    templates = next((directory for directory in candidates if directory.is_dir()), candidates[0])
    known = sorted(path.parent.name for path in templates.glob("*/script.py.mako"))
    if name not in known:
        raise TemplateError(f"there is no Alembic template {name!r}; there are {', '.join(known) or 'none'}")
    return templates / name
