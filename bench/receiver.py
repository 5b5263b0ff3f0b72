"""The receiver, built from receiver.c where that is newer, and its certificate where it speaks TLS."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import click
import trustme

SOURCE: Final = Path(__file__).with_name("receiver.c")
PROGRAMS: Final = Path(__file__).with_name("out")
FLAGS: Final = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
TLS_FLAGS: Final = ("-DTLS", "-lssl", "-lcrypto")
HEADERS: Final = Path("/usr/include/openssl/ssl.h")


def tls_is_possible() -> bool:
    """Whether OpenSSL's headers are there: libssl-dev, which nothing else here needs."""
    return HEADERS.exists()


def built(*, tls: bool) -> Path:
    """The program. Two that build at once are fine: the rename decides."""
    program = PROGRAMS / ("receiver-tls" if tls else "receiver")
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise click.ClickException("a C compiler is needed: apt install gcc libc6-dev")
    if tls and not tls_is_possible():
        raise click.ClickException("OpenSSL's headers are needed for TLS: apt install libssl-dev")
    PROGRAMS.mkdir(exist_ok=True)
    fresh = program.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, *FLAGS, "-o", fresh, SOURCE, *(TLS_FLAGS if tls else ())], check=True)
    fresh.rename(program)
    return program


def certify(folder: Path, hosts: int) -> tuple[Path, Path]:
    """A throw-away authority's file, and one with its certificate for the first `hosts` addresses and the key."""
    authority, server = folder / "ca.pem", folder / "server.pem"
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(authority))
    ca.issue_cert(*(f"127.0.0.{n + 1}" for n in range(hosts))).private_key_and_cert_chain_pem.write_to_path(str(server))
    return authority, server
