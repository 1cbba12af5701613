"""``python -m gflv2`` is the command ``gflv2``."""

from __future__ import annotations

import sys

from gflv2.cli import main

sys.exit(main())
