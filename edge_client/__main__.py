"""``python -m edge_client`` is ``bitfleet-client``."""

from __future__ import annotations

import sys

from edge_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
