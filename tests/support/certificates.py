"""Certificates for receivers: a throw-away authority, and server contexts that are good or bad in one respect."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


class Authority:
    """A certificate authority of its own; `ca_file` is its certificate in PEM."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))

    def server(self, *names: str, expired: bool = False, newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A server that shows a certificate for `names` and speaks TLS up to `newest`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        long_ago = datetime.now(UTC) - timedelta(days=1)
        self._ca.issue_cert(*names, not_after=long_ago if expired else None).configure_cert(context)
        if newest is not None:
            if newest < ssl.TLSVersion.TLSv1_2:
                context.set_ciphers("DEFAULT:@SECLEVEL=0")
                context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = newest
        return context
