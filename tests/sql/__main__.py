"""Write the golden files again: ``make sql``. Review the difference before you commit it."""

from __future__ import annotations

from tests.sql.statements import DIRECTORY, files

for file in DIRECTORY.glob("*.sql"):
    file.unlink()
for name, content in files().items():
    (DIRECTORY / name).write_text(content)
