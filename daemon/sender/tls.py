"""The one TLS context of all connections to endpoints."""

from __future__ import annotations

import ssl
from pathlib import Path

from daemon.errors import SettingsInvalid


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """A verifying client context: TLS 1.2 at least, the system's authorities and those in `ca_file` (PEM).

    Loading the system's takes some 25 ms of CPU, hence one for all. Raises SettingsInvalid for a bad `ca_file`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ValueError) as e:
            raise SettingsInvalid(f"the file of certificate authorities {ca_file} cannot be used") from e
    return context
