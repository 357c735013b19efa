"""
What the view remembers between runs: symbol, span, window and priority for each state directory.

One small JSON file under ``$XDG_STATE_HOME/m17`` (``~/.local/state/m17``). A file that cannot be read is as none; one that cannot be
written is said once. This module must never hold anything of the state itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

_STATES_MAX: Final = 32
DEFAULT_PRIORITY: Final = 100


class Settings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is remembered of one state."""

    symbol: str | None = None
    first_session: str = ""
    last_session: str = ""
    """What was looked at; minutes are not remembered."""
    window: str | None = None
    priority: Annotated[int, Meta(ge=0, le=1000)] = DEFAULT_PRIORITY
    recent: list[str] = []
    """Symbols that were looked at, the last first."""


class _File(msgspec.Struct, kw_only=True):
    states: dict[str, Settings] = {}


def settings_path(environment: dict[str, str] | None = None) -> Path:
    """Where settings are kept."""
    values = os.environ if environment is None else environment
    base = values.get("XDG_STATE_HOME") or str(Path(values.get("HOME", "~")).expanduser() / ".local" / "state")
    return Path(base) / "m17" / "tui.json"


def load(path: Path, state_dir: str) -> Settings:
    """What is remembered of a state; defaults where nothing is, or the file is not ours."""
    return _read(path).states.get(state_dir, Settings())


def save(path: Path, state_dir: str, settings: Settings) -> None:
    """
    Remember; the file is replaced whole, so that two views leave one of their two files.

    Raises:
        OSError: it cannot be written.
    """
    file = _read(path)
    file.states.pop(state_dir, None)
    file.states = {**dict(list(file.states.items())[-_STATES_MAX + 1 :]), state_dir: settings}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")
    part.replace(path)


def _read(path: Path) -> _File:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError):
        return _File()
