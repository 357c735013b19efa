"""
Documents: small files of one JSON value each, replaced whole, which name themselves and are checked when they are read.

What a daemon keeps in the state beside the ledger: which engines are paused, which operations have begun. This module must
never know what a value means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ledger.errors import DamagedFile, StateError
from ledger.files import (
    HEADER_BYTES,
    System,
    decode_header,
    encode_frame,
    encode_header,
    read_frames,
    read_whole,
    write_atomically,
)

PAUSED_FILE: Final = "paused"
PAUSED_KIND: Final = "paused"
MARK_KIND: Final = "mark"
KEYS_FILE: Final = "audit/keys"
KEYS_KIND: Final = "KEYS"
KEYS_VERSION: Final = 1
_VERSION: Final = 1


def write_document(system: System, path: Path, kind: str, value: Any) -> None:
    """Replace the document, durably; raises :class:`SpaceError`, and the old one is there whole then."""
    write_atomically(system, path, encode_header(kind, _VERSION, {}) + encode_frame(json.dumps(value).encode()))


def read_document(system: System, path: Path, kind: str, hint: str | None = None) -> Any:
    """
    The value, None where there is no such file.

    Args:
        hint: what an operator can do about a damaged one.

    Raises:
        NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
        SpaceError: the file system refused.
    """
    data = read_whole(system, path)
    if data is None:
        return None
    try:
        decode_header(data, kind, _VERSION, path)
        payloads, end = read_frames(data, path, start=HEADER_BYTES)
        if len(payloads) != 1 or end != len(data):
            raise DamagedFile(f"{path} does not hold one whole record behind its header", path=str(path))
    except StateError as error:
        error.hint = hint or error.hint
        raise
    return json.loads(payloads[0])
