"""`python -m worker` is `sendoff`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs `sendoff`. Ctrl-C ends it with 130, also in the half second that loading takes."""
    try:
        from worker.cli import main as run  # noqa: PLC0415 - see above

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
