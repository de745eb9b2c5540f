"""``python -m bnncore.cli``: the command without an installed script."""

from __future__ import annotations

import sys

from bnncore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
