"""``python -m gflv2.integrations.mmdet SCRIPT ARGUMENTS``: a script of mmdet's, as tools/train.py, beside mmcv-lite."""

import runpy
import sys
from pathlib import Path

from gflv2.integrations.mmdet import standin


def main() -> int:
    """Stand in for mmcv's operators, then run the script as ``python SCRIPT ARGUMENTS`` would."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        got = sys.argv[1] if len(sys.argv) > 1 else "nothing"
        print(f"SCRIPT: expected a file such as tools/train.py, got {got}", file=sys.stderr)
        return 2
    standin()
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
