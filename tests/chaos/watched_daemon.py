"""Run as a program of its own: the daemon, which tells at SIGUSR1 how many Trio tasks it has, as a line of its log."""

from __future__ import annotations

import json
import signal
import sys

import trio

from daemon.__main__ import main


def tell(*_: object) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    sys.stderr.write(json.dumps({"level": "info", "event": "tasks.counted", "tasks": tasks}) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, tell)
    main()
