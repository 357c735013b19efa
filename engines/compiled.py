"""
Numba's ``njit``, with compiled code kept where a change of any kernel's source makes it anew.

Numba keeps machine code beside a note of its own source file only. A kernel that calls another one, or that freezes a
constant of another module, would go on running the old code after an update of that module; here the folder of the cache
is named after the content of all of them. Kernels take ``njit`` from here and nowhere else; only workers import this.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

SOURCES: Final = (
    *(f"engines/aggregation/{name}.py" for name in ("density", "dip", "dip_table", "moments", "ordered", "statistics")),
    "engines/feeds/kernel_csv.py",
    *(f"engines/greeks/{name}.py" for name in ("arrays", "curve", "flags", "kernel", "policy", "pricing")),
    *(f"engines/nbbo/{name}.py" for name in ("arrays", "in_force", "kernel", "policy", "sides")),
    *(f"ledger/{name}.py" for name in ("checksums", "columns", "content", "records")),
)
"""The kernels and everything of the house that they import; a test holds it complete."""
_ROOT: Final = Path(__file__).resolve().parents[1]
_KEPT_S: Final = 14 * 86_400.0


def fingerprint() -> str:
    """What the cache's folder is called: a hash of the content of ``SOURCES``."""
    digest = hashlib.blake2b(digest_size=8)
    for name in SOURCES:
        content = (_ROOT / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def cache_folder() -> Path:
    """
    The folder for compiled code, made where it is missing.

    Below ``NUMBA_CACHE_DIR``, ``CACHE_DIRECTORY`` (systemd's), ``XDG_CACHE_HOME`` or ``~/.cache``, whichever is set first;
    where that cannot be written, a folder of this process alone, so that nothing of another user is ever loaded.
    """
    name = fingerprint()
    given = os.environ.get("NUMBA_CACHE_DIR")
    # A worker inherits the folder that its parent chose.
    if given and Path(given).name == name:
        return Path(given)
    caches = os.environ.get("CACHE_DIRECTORY") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    base = Path(given) if given else Path(caches) / "m17" / "numba"
    try:
        (base / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_old(base, name)
        if os.access(base / name, os.W_OK):
            return base / name
    except OSError:
        pass  # a service without a home, a disk that is read-only: compiled code is worth no more than the time it takes
    alone = tempfile.mkdtemp(prefix="m17-numba-")
    atexit.register(shutil.rmtree, alone, ignore_errors=True)
    return Path(alone)


def _remove_old(base: Path, mine: str) -> None:
    """Remove what other versions left behind long ago."""
    for other in base.iterdir():
        is_ours = len(other.name) == len(mine) and all(letter in "0123456789abcdef" for letter in other.name)
        if is_ours and other.name != mine and other.stat().st_mtime < time.time() - _KEPT_S:
            shutil.rmtree(other, ignore_errors=True)


# Numba reads it when it is imported, and again before each compilation when the environment has changed.
os.environ["NUMBA_CACHE_DIR"] = str(cache_folder())

from numba import njit  # noqa: E402 - behind the setting that it reads

__all__ = ["njit"]
