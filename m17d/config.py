"""
The config file: one TOML, read once, unknown keys refused, frozen.

Each engine's table is kept raw here and read by the engine's own config struct; relative paths are relative to the
file. This module must never open the state or a socket.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ledger.columns import OptionRows

SOCKET_NAME: Final = "m17d.sock"


class ConfigError(Exception):
    """The config file cannot be used; the message says what and where, the hint what to do."""

    code = "bad_config"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RunnerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[runner]``: how much works at once."""

    workers: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Worker processes; None = the cores."""
    fetchers: Annotated[int, Meta(ge=1, le=64)] = 2
    """Processes beside the workers for what waits for a network: downloads, listings, REST."""
    flush_interval_ms: Annotated[int, Meta(ge=10, le=600_000)] = 1000
    supersede_min_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.9
    """Share of a live or REST window's rows that a better source must bring to take its cell; 0 = any."""
    auto_recompute_sessions: Annotated[int, Meta(ge=0)] = 5
    """How many of the newest sessions are remade unasked when a recipe changes."""
    patience_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    """How long a run until idle waits for a source that does not answer, from its first failure in a row on."""


class CalendarConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[calendar]``: which year of which exchange."""

    year: Annotated[int, Meta(ge=1990, le=2100)]
    exchange: str = "XNYS"


class SocketConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[socket]``: where requests come in and who may make them."""

    path: str | None = None
    mode: str = "0660"
    group: str | None = None
    operate_users: list[str] = []
    operate_groups: list[str] = []


class RetentionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[retention]``: how long what nothing names any more is kept, in days; None is for ever."""

    superseded_days: Annotated[int, Meta(ge=0)] = 7
    quotes_days: Annotated[int, Meta(ge=1)] | None = None


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[metrics]``: ways out for numbers besides ``m17ctl metrics``; none is open by default."""

    textfile: str | None = None
    listen: Annotated[str, Meta(pattern=r"^(127\.0\.0\.1|localhost|\[::1\]):\d+$")] | None = None
    interval_s: Annotated[float, Meta(ge=1)] = 15.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    state_dir: str
    calendar: CalendarConfig
    option_rows: OptionRows = OptionRows.CHAIN
    roots: str | None = None
    """A root table in place of the packaged one."""
    runner: RunnerConfig = RunnerConfig()
    socket: SocketConfig = SocketConfig()
    retention: RetentionConfig = RetentionConfig()
    metrics: MetricsConfig = MetricsConfig()
    engines: dict[str, dict[str, Any]] = {}
    base: str = ""
    """Folder of the file; set when it is read."""
    file: str = ""
    """The file itself; set when it is read."""

    def path(self, text: str) -> Path:
        """A path of the config, absolute; relative ones are relative to the file."""
        return Path(self.base) / Path(text).expanduser()

    @property
    def state_path(self) -> Path:
        """The state directory."""
        return self.path(self.state_dir)

    @property
    def socket_path(self) -> Path:
        """The socket; in the state directory unless ``socket.path`` says otherwise."""
        return self.path(self.socket.path) if self.socket.path else self.state_path / SOCKET_NAME

    @property
    def workers(self) -> int:
        """Worker processes."""
        return self.runner.workers or len(os.sched_getaffinity(0))


def read_config(path: str | os.PathLike[str]) -> Config:
    """
    Read a config file.

    Raises:
        ConfigError: missing, not TOML, an unknown key or a bad value; the message names file and key.
    """
    file = Path(path)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", "give the path of a config file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}", "correct the file; it must be TOML in UTF-8") from error
    for key in ("base", "file"):
        if key in table:
            raise ConfigError(f"{file}: Object contains unknown field `{key}`", "remove the key")
    try:
        return msgspec.convert({**table, "base": str(file.resolve().parent), "file": str(file.resolve())}, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}", "see the README for every key and its values") from error
