"""`dealix demo`: the whole product in one terminal, through the interfaces that every user has.

It runs `dealix serve` as a child, talks to it over HTTP and SQL, and receives what comes out as a customer would. It
knows nothing of the daemon's inside, so what it shows is what the daemon does.
"""

from daemon.demo.story import run

__all__ = ["run"]
