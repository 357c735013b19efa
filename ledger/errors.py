"""
Every way the ledger fails, drawn as a tree and grouped by when it happens.

::

    LedgerError                       .code  .hint  .facts
    ├─ StateError                     when opening: the directory cannot be used
    │   ├─ StateLocked                another process holds the directory
    │   ├─ StateMissing               no state directory there
    │   ├─ StateExists                a state directory is already there
    │   ├─ StateMismatch              config and disk disagree (exchange, year, option_rows, cap, layout)
    │   ├─ NotALedgerFile             magic
    │   ├─ FileVersionMismatch        version
    │   ├─ ChecksumMismatch           checksum
    │   └─ DamagedFile                right magic, version and checksum, wrong shape
    ├─ SpaceError                     when the file system refuses
    │   ├─ StateFull                  no space, or a quota
    │   ├─ StateReadOnly              read-only file system, or a sync that failed
    │   └─ StateFault                 any other system call that failed; names call and file
    ├─ AddressError                   when naming a cell
    │   ├─ UnknownSymbol
    │   ├─ MinuteOutOfSession
    │   ├─ UnknownSession
    │   ├─ UnknownPayload
    │   └─ RowsRetired                quotes that were removed by age
    ├─ SlotError                      when writing a cell
    │   ├─ VersionConflict            compare-and-swap: expected and actual differ
    │   ├─ RankConflict               a lower source over a filled higher one
    │   ├─ PayloadKindNotAllowed      the column takes another kind
    │   └─ WouldLoseData              nothing could refill the cells
    └─ CapacityError                  when a numbering is used up
        ├─ SymbolCapReached
        └─ PayloadIdsExhausted

``code`` is the wire code, ``hint`` is what the operator can do, ``facts`` are the values the message was made from.
This module must never import another module of the house but ``ledger.columns``.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class LedgerError(Exception):
    """Root of the tree; never raised itself."""

    code: ClassVar[str] = "ledger"
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.hint: str = self.default_hint if hint is None else hint
        self.facts: dict[str, Any] = facts


class StateError(LedgerError):
    """The state directory cannot be used."""

    code = "state"


class StateLocked(StateError):
    """Another process holds the state directory."""

    code = "state_locked"
    default_hint = "stop the process that holds it, or give this one another state_dir"


class StateMissing(StateError):
    """There is no state directory at the path."""

    code = "state_missing"
    default_hint = "make one with: m17d init --state DIR --year YEAR"


class StateExists(StateError):
    """A state directory is already at the path."""

    code = "state_exists"
    default_hint = "choose another directory, or open this one"


class StateMismatch(StateError):
    """The configuration and the state directory disagree."""

    code = "state_mismatch"
    default_hint = "correct the config file, or give it the state_dir that was made for it; nothing was changed"


class NotALedgerFile(StateError):
    """The file does not begin with the magic of its kind."""

    code = "not_a_ledger_file"
    default_hint = "restore the file from a backup; nothing was written"


class FileVersionMismatch(StateError):
    """The file was written by another version of the format."""

    code = "file_version_mismatch"
    default_hint = "open it with the version of M17 that wrote it; nothing was written"


class ChecksumMismatch(StateError):
    """The checksum of a header or record does not fit its bytes."""

    code = "checksum_mismatch"
    default_hint = "restore the file from a backup, or clear the range and let the engines fill it again"


class DamagedFile(StateError):
    """The file names itself correctly but its shape is wrong (truncated, extended, another file's bytes)."""

    code = "damaged_file"
    default_hint = "restore the file from a backup; nothing was written"


class SpaceError(LedgerError):
    """The file system refused."""

    code = "space"


class StateFull(SpaceError):
    """No space left for the state directory, or its quota is used up."""

    code = "state_full"
    default_hint = "make room on the file system of the state directory; work resumes by itself"


class StateReadOnly(SpaceError):
    """The state directory can no longer be written."""

    code = "state_read_only"
    default_hint = "remount it read-write, or check the disk, then restart m17d; reads go on"


class StateFault(SpaceError):
    """A system call on a state file failed."""

    code = "state_fault"
    default_hint = "check the disk and the kernel log"


class AddressError(LedgerError):
    """The cell that was named does not exist."""

    code = "address"


class UnknownSymbol(AddressError):
    """The symbol has no id this year."""

    code = "unknown_symbol"
    default_hint = "list the symbols with: m17ctl symbols list"


class MinuteOutOfSession(AddressError):
    """The time or minute is not a window of any session of the year."""

    code = "minute_out_of_session"
    default_hint = "list the sessions with: m17ctl sessions list"


class UnknownSession(AddressError):
    """The date is not a session of the year."""

    code = "unknown_session"
    default_hint = "list the sessions with: m17ctl sessions list"


class UnknownPayload(AddressError):
    """No good record has that payload_id."""

    code = "unknown_payload"
    default_hint = "check the state with: m17ctl verify"


class RowsRetired(AddressError):
    """The rows were removed by age; the cells keep their checksum and counts."""

    code = "rows_retired"
    default_hint = "read them again from their source with: m17ctl refill quote_ref RANGE"


class SlotError(LedgerError):
    """The write was refused; the cell is unchanged."""

    code = "slot"


class VersionConflict(SlotError):
    """Compare-and-swap failed: somebody else wrote the cell first."""

    code = "version_conflict"
    default_hint = "read the row again and decide anew"

    def __init__(self, expected: int, actual: int, **facts: Any) -> None:
        super().__init__(
            f"expected version {expected}, the cell has {actual}", expected=expected, actual=actual, **facts
        )
        self.expected = expected
        self.actual = actual


class RankConflict(SlotError):
    """A set from a lower source over a filled higher one."""

    code = "rank_conflict"
    default_hint = "clear the cell first if the lower source is really wanted"


class PayloadKindNotAllowed(SlotError):
    """The column accepts another kind of payload."""

    code = "payload_kind_not_allowed"


class WouldLoseData(SlotError):
    """The cells could not be refilled from anywhere."""

    code = "would_lose_data"
    default_hint = "pass --accept-loss if that is really wanted"


class CapacityError(LedgerError):
    """A numbering is used up."""

    code = "capacity"


class SymbolCapReached(CapacityError):
    """All symbol ids of the year are taken."""

    code = "symbol_cap_reached"
    default_hint = 'narrow symbols in the config, or use option_rows = "chain" in a new state; known symbols go on'


class PayloadIdsExhausted(CapacityError):
    """A mapping file has used all 32-bit ids."""

    code = "payload_ids_exhausted"
    default_hint = "roll to a new state directory: m17d roll"


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY = frozenset({errno.EROFS})


def from_os_error(error: OSError, call: str, path: object) -> SpaceError:
    """
    The ledger's error for a failed system call.

    Args:
        error: what the call raised.
        call: name of the system call, such as ``pwrite``.
        path: the file it was made on.
    """
    text = f"{call} on {path}: {error.strerror or error} (errno {error.errno})"
    facts: dict[str, Any] = {"call": call, "path": str(path), "errno": error.errno}
    if error.errno in _FULL:
        return StateFull(text, **facts)
    if error.errno in _READ_ONLY:
        return StateReadOnly(text, **facts)
    return StateFault(text, **facts)
