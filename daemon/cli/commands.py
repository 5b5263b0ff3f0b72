"""Every command but `serve` and `demo`."""

from __future__ import annotations

from typing import Final

from daemon.cli.check import check
from daemon.cli.customers import customers
from daemon.cli.events import emit
from daemon.cli.keys import keys
from daemon.cli.listen import listen
from daemon.cli.remote import deliveries, replay, trigger
from daemon.cli.schema import db_url, migrate
from daemon.cli.secrets import secrets
from daemon.cli.subscriptions import subscriptions
from daemon.cli.verify import verify

COMMANDS: Final = (
    migrate, keys, secrets, customers, emit, listen, trigger, deliveries, replay, verify, subscriptions, db_url, check,
)  # fmt: skip
