"""The complete text of the revision that autogenerate writes. ``make check`` checks its types.

To accept a change, review the difference, run this with ``PUPSOURCING_ACCEPT=1``, and review the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.fix_alembic import Project

_EXPECTED = Path(__file__).parents[1] / "typing" / "revision.py"


def test_the_first_revision_of_a_guarded_log(new_project: Project) -> None:
    new_project.guard()
    text = new_project.revise("create the event log", "--rev-id", "0001")
    text = re.sub(r"Create Date: .*", "Create Date: 2025-03-01 12:00:00.000000", text)
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    if os.environ.get("PUPSOURCING_ACCEPT"):
        _EXPECTED.write_text(text)
    assert text == _EXPECTED.read_text()
