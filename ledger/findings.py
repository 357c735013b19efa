"""Findings: what the checker says of a state. This module must never look at one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

RESTORE: Final = "restore the file from a backup"
"""The remedy for a file that only a copy can replace."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: a code, a sentence, the place, and what the operator can do."""

    code: str
    message: str
    where: str
    hint: str


@dataclass(slots=True)
class Checked:
    """What was walked, what was found, and what nothing names."""

    slots: int = 0
    payloads: int = 0
    artifacts: int = 0
    orphan_files: int = 0
    orphan_bytes: int = 0
    orphan_records: int = 0
    bytes: int = 0
    """Read so far of rows, records and artifacts."""
    bytes_total: int = 0
    """How many there are to read, as far as that is known by now."""
    findings: list[Finding] = field(default_factory=list)

    def find(self, code: str, message: str, where: str, hint: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(code, message, where, hint))
