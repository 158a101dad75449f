"""``python -m pupsourcing_sa`` is the command ``pupsourcing-sa``."""

from __future__ import annotations

import sys

from pupsourcing_sa.cli import main

if __name__ == "__main__":
    sys.exit(main())
