"""Sealed secrets open with their key, in their place, and nowhere else; the key file is made once and kept private."""

from __future__ import annotations

import base64
import os
import secrets
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import Settings, load
from daemon.errors import SealBroken, SettingsInvalid
from daemon.key_file import load_key_ring
from daemon.sealing import KeyRing

HERE = {"table": "subscriptions", "column": "secret", "row": "whk_1"}
KEY = bytes.fromhex("8f1c0c5be33b7e7f4d0d96c1a5c2c9b0a77ce5b2f9de10338a5bb6e4417d02f6")


def settings(data_dir: Path, key: str | None = None) -> Settings:
    environ = {"DEALIX_DATA_DIR": str(data_dir)}
    return load(None, environ if key is None else environ | {"DEALIX_SEALING_KEY": key})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_was_sealed_opens_in_its_place(secret: str) -> None:
    ring = KeyRing(KEY)
    assert ring.open(ring.seal(secret, **HERE), **HERE) == secret


@pytest.mark.threat("N96")
def test_the_secret_is_not_in_what_is_stored_and_two_seals_of_it_differ() -> None:
    ring = KeyRing(KEY)
    first, second = (ring.seal("whsec_canary", **HERE) for _ in range(2))
    assert b"canary" not in first
    assert first != second


@pytest.mark.parametrize("elsewhere", [{"table": "api_keys"}, {"column": "previous_secret"}, {"row": "whk_2"}])
@pytest.mark.threat("N97")
def test_a_seal_copied_to_another_place_does_not_open(elsewhere: dict[str, str]) -> None:
    ring = KeyRing(KEY)
    with pytest.raises(SealBroken, match="sealed for another row"):
        ring.open(ring.seal("x", **HERE), **HERE | elsewhere)


@given(st.data())
def test_any_changed_bit_keeps_a_seal_shut(data: st.DataObject) -> None:
    ring = KeyRing(KEY)
    sealed = bytearray(ring.seal("whsec_x", **HERE))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealBroken):
        ring.open(bytes(sealed), **HERE)


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x02" * 64, b"whsec_in_the_clear"])
def test_what_is_no_seal_is_refused(sealed: bytes) -> None:
    with pytest.raises(SealBroken, match="not a sealed secret"):
        KeyRing(KEY).open(sealed, **HERE)


@pytest.mark.threat("N98")
def test_another_key_is_told_by_its_id_and_an_older_one_in_the_ring_still_opens() -> None:
    old = secrets.token_bytes(32)
    sealed = KeyRing(old).seal("x", **HERE)
    with pytest.raises(SealBroken, match=f"another key .id {sealed[1:9].hex()}"):
        KeyRing(KEY).open(sealed, **HERE)
    ring = KeyRing(KEY, old)
    assert ring.open(sealed, **HERE) == "x"
    assert ring.seal("x", **HERE)[1:9] == KeyRing(KEY).key_ids[0]


@pytest.mark.parametrize(
    "weak",
    [
        bytes(32),
        b"\xff" * 32,
        bytes(range(32)),
        bytes(range(200, 168, -1)),
        b"0123456789abcdef" * 2,
        b"k" * 20 + KEY[:12],
    ],
    ids=["zeros", "ones", "counting", "counting down", "typed", "mostly one letter"],
)
@pytest.mark.threat("N90")
def test_a_key_that_nobody_drew_by_chance_is_refused(weak: bytes, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="not random"):
        load_key_ring(settings(tmp_path, base64.b64encode(weak).decode()))


def test_a_thousand_drawn_keys_are_all_accepted() -> None:
    for _ in range(1000):
        KeyRing(secrets.token_bytes(32))


def test_the_first_start_makes_a_private_key_file_and_the_next_one_reads_it(tmp_path: Path) -> None:
    data_dir = tmp_path / "not" / "there yet"
    sealed = load_key_ring(settings(data_dir)).seal("x", **HERE)
    assert load_key_ring(settings(data_dir)).open(sealed, **HERE) == "x"
    assert (data_dir / "sealing.key").stat().st_mode & 0o777 == 0o600
    assert data_dir.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in data_dir.iterdir()] == ["sealing.key"]


def test_processes_that_start_together_end_up_with_one_key(tmp_path: Path) -> None:
    rings: list[KeyRing] = []
    threads = [threading.Thread(target=lambda: rings.append(load_key_ring(settings(tmp_path)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(rings) == 8
    assert len({ring.key_ids[0] for ring in rings}) == 1


def test_a_configured_key_is_used_and_no_file_is_made(tmp_path: Path) -> None:
    ring = load_key_ring(settings(tmp_path, base64.b64encode(KEY).decode()))
    assert ring.key_ids == KeyRing(KEY).key_ids
    assert not (tmp_path / "sealing.key").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o602])
def test_a_key_file_that_others_may_read_or_write_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    load_key_ring(settings(tmp_path))
    (tmp_path / "sealing.key").chmod(mode)
    with pytest.raises(SettingsInvalid, match="chmod 600"):
        load_key_ring(settings(tmp_path))


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe", base64.b64encode(b"k" * 31), b"A" * 5000])
def test_a_damaged_key_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sealing.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsInvalid, match="32 bytes"):
        load_key_ring(settings(tmp_path))
    assert path.read_bytes() == content


def test_a_link_a_directory_and_a_pipe_are_no_key_files(tmp_path: Path) -> None:
    path = tmp_path / "sealing.key"
    (tmp_path / "target").write_bytes(base64.b64encode(KEY))
    for make in (lambda: path.symlink_to("target"), path.mkdir, lambda: os.mkfifo(path, 0o600)):
        make()
        with pytest.raises(SettingsInvalid, match=r"sealing\.key"):
            load_key_ring(settings(tmp_path))
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
