"""Runs the example: the body on standard input, the header as argument if there is one."""

import os
import sys

from verify import verify  # pyright: ignore[reportMissingImports] - beside it when it runs

try:
    event = verify(
        sys.stdin.buffer.read(), sys.argv[1] if len(sys.argv) > 1 else None, os.environ["DEALIX_WEBHOOK_SECRET"]
    )
except ValueError as refused:
    sys.exit(f"refused: {refused}")
print("accepted", event["id"])  # noqa: T201 a program for a terminal
