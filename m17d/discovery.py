"""
Discovery: the folders under ``engines`` are the engines; a config table with a folder's name starts that engine.

Adding an engine edits nothing here. This module must never run an engine.
"""

from __future__ import annotations

import importlib
import pkgutil

import msgspec

import engines
from engines.contract import Engine, EngineEntry
from m17d.config import Config, ConfigError


def discover() -> dict[str, EngineEntry]:
    """Every engine's entry by name, sorted; folders without ``ENGINE`` are no engines."""
    found: dict[str, EngineEntry] = {}
    for module in pkgutil.iter_modules(engines.__path__):
        if not module.ispkg:
            continue
        entry = getattr(importlib.import_module(f"engines.{module.name}"), "ENGINE", None)
        if entry is not None:
            assert entry.name == module.name, f"engines/{module.name} calls itself {entry.name}"
            found[entry.name] = entry
    return dict(sorted(found.items()))


def build(config: Config) -> dict[str, Engine]:
    """
    The configured engines by name, in the order of the config file; nothing is started.

    Raises:
        ConfigError: no engine of that name, or its table has an unknown key or a bad value.
    """
    entries = discover()
    built: dict[str, Engine] = {}
    for name, table in config.engines.items():
        entry = entries.get(name)
        if entry is None:
            known = ", ".join(entries)
            raise ConfigError(f"[engines.{name}]: there is no such engine", f"known engines: {known}")
        module, factory = entry.build.split(":")
        try:
            built[name] = getattr(importlib.import_module(module), factory)(table, config.path(""))
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"[engines.{name}]: {error}", "see the README for the keys of this engine") from error
    return built
