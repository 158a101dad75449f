"""Alembic environments for ``alembic init``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pupsourcing_sa.errors import TemplateError

__all__ = ["template_directory"]

_PACKAGE: Final = Path(__file__).parent.parent


def template_directory(name: str = "sync") -> Path:
    """Return the directory of an Alembic template that includes this library's tables.

    Use it as ``alembic init --template <directory> migrations``.

    Args:
        name: ``"sync"``, or ``"async"`` for an asyncio engine.

    Raises:
        TemplateError: there is no template of this name.
    """
    # A wheel has the templates inside the package; a checkout, and so an editable install, has them beside it.
    candidates = (_PACKAGE / "alembic_templates", _PACKAGE.parent / "alembic_templates")
    templates = next((directory for directory in candidates if directory.is_dir()), candidates[0])
    known = sorted(path.parent.name for path in templates.glob("*/script.py.mako"))
    if name not in known:
        raise TemplateError(f"there is no Alembic template {name!r}; choose one of: {', '.join(known) or 'none'}")
    return templates / name
