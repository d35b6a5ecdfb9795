"""Entry point: ready for Ctrl-C before the slower imports of the command line."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing has been started or written yet; leave at once."""
    os.write(2, b"error interrupted\n")
    os._exit(130)


def main() -> None:
    """Run the command line and exit with its code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from qwtv2_edge.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
