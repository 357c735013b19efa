"""
The replies of the daemon: one frozen struct for every answer, in exactly the shape that `--json` prints.

Times are integer nanoseconds UTC; statuses, sources, payload types and columns are the words of `ledger.columns`; flags are
lists of words; checksums and versions are integers; an operation is a string. A reply carries no tag of its own: the
envelope's ``kind`` names it (see `m17d.protocol`). Optional parts that were not asked for are left out, not null.

This module is half of the protocol's leaf: it must never import anything but msgspec and `ledger.columns`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType, field

from ledger.columns import Column, LedgerKind

ROW_HEADER_FORMAT: Final = "<HHIqq8x"
"""Header of a row in a raw slab: symbol_id, schema_version, minute_idx, start_ts, end_ts; 32 bytes."""
SLOT_FORMAT: Final = "4B3Iq2I"
"""A slot: payload_type, status, source, flags, payload_id, version, checksum, last_updated_ns, inputs, seal; 32 bytes."""
SLOT_FIELDS: Final = 10

CountsByColumn = dict[Column, "Counts"]
CellsByColumn = dict[Column, int]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What every reply shares; never sent itself."""


class Operator(Reply, frozen=True, kw_only=True):
    """Who the kernel says opened the connection, and what that uid is called here (empty where it has no name)."""

    uid: int
    gid: int
    pid: int
    user: str = ""


class HelloReply(Reply, frozen=True, kw_only=True):
    """Who answers, and what the caller may do."""

    version: str
    protocol_min: int
    protocol_max: int
    pid: int
    state_dir: str
    year: int
    exchange: str
    option_rows: str
    operator: Operator
    roles: list[str]


class PingReply(Reply, frozen=True, kw_only=True):
    """The daemon's clock."""

    now_ns: int


class Counts(Reply, frozen=True, kw_only=True):
    """Cells of one column: the first six partition windows x universe, the last three are parts of filled."""

    empty: int = 0
    pending: int = 0
    filled: int = 0
    cleared: int = 0
    not_applicable: int = 0
    not_due: int = 0
    no_data: int = 0
    suspect: int = 0
    stale: int = 0


class EngineState(Reply, frozen=True, kw_only=True):
    """An engine as `status` shows it: state is starting, running, idle, paused, degraded or failed; backlog is in cells."""

    state: str
    detail: str = ""
    backlog: int = 0
    since_ns: int = 0


class SourceReply(Reply, frozen=True, kw_only=True):
    """One upstream file or stream of one dataset and session; state is complete, damaged, waiting, open or absent."""

    dataset: str
    session: str
    state: str
    uri: str = ""
    bytes: int = 0
    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    out_of_session: dict[str, int] = field(default_factory=dict)
    detail: str = ""


class Space(Reply, frozen=True, kw_only=True):
    """
    Room on the state's file system, and for how many more trading days it is enough.

    ``session_bytes`` is what the newest filled sessions (five at most) took on average: rows, artifacts, and their part of
    the mapping files. Null without a filled session: there is no history to go by.
    """

    free_bytes: int = 0
    session_bytes: int | None = None
    runway_days: float | None = None


class StatusReply(Reply, frozen=True, kw_only=True):
    """
    The whole state in one page; ``verdict`` says in words what is wrong now, ``look`` is the command that says why.

    Counts are over sessions in use. ``lags``: minutes that columns lay behind, a sample every half minute and one of now,
    oldest first; columns that did not are left out.
    """

    verdict: str
    version: str
    pid: int
    uptime_s: float
    state_dir: str
    year: int
    symbols: int
    symbols_max: int
    columns: CountsByColumn
    engines: dict[str, EngineState]
    sources: list[SourceReply]
    space: Space = field(default_factory=Space)
    warnings: list[str] = field(default_factory=list)
    lags: dict[Column, list[float]] = field(default_factory=dict)
    look: str = ""


class CoverageReply(Reply, frozen=True, kw_only=True):
    """Cells of a session by column and status; ``by_minute`` is keyed by start_ts as a decimal string."""

    session: str
    windows: int
    symbols: int
    columns: CountsByColumn
    out_of_session: dict[str, dict[str, int]] = field(default_factory=dict)
    by_symbol: dict[str, CountsByColumn] | UnsetType = UNSET
    by_minute: dict[str, CountsByColumn] | UnsetType = UNSET
    by_source: dict[str, CountsByColumn] | UnsetType = UNSET
    quality: dict[str, Any] | UnsetType = UNSET


class SlotReply(Reply, frozen=True, kw_only=True):
    """One cell: its metadata and, where asked for and filled, the record it names (``artifact_uri`` included)."""

    status: str
    source: str
    flags: list[str]
    payload_type: str
    payload_id: int
    version: int
    checksum: int
    inputs: int
    last_updated_ns: int
    payload: dict[str, Any] | UnsetType = UNSET


class RowReply(Reply, frozen=True, kw_only=True):
    """One window of one symbol over both ledgers."""

    symbol: str
    symbol_id: int
    minute_idx: int
    window_id: str
    start_ts: int
    end_ts: int
    slots: dict[Column, SlotReply]


class RowsReply(Reply, frozen=True, kw_only=True):
    """Windows of one symbol in time order; `rows` prints one a line."""

    rows: list[RowReply]


class BulkReply(Reply, frozen=True, kw_only=True):
    """
    Names the raw slab behind it: ``rows`` rows of ``row_bytes`` each, little-endian, by symbol_id and then minute_idx.

    A row is ``struct.unpack(row_format)``: `ROW_HEADER_FORMAT`, then `SLOT_FORMAT` for each of ``columns``, in this order;
    the header says whose it is. ``symbols`` names the symbol_ids. Symbols without a set cell that session are left out.
    """

    ledger: LedgerKind
    session: str
    rows: int
    row_bytes: int
    row_format: str
    columns: list[Column]
    symbols: dict[int, str]


class GridReply(Reply, frozen=True, kw_only=True):
    """
    Names the raw slab behind it: little-endian u32 counts [groups, columns, cells, 9] of one session, last index fastest.

    The nine numbers are those of `Counts`, in its order. ``groups`` names the groups with their numbers of symbols in the
    session's universe, in order: ``own`` and ``options``, or ``all``. Sessions without any of the symbols are left out.
    """

    session: str
    open_ts: int
    windows: int
    groups: dict[str, int]
    columns: list[Column]
    cells: int


class PayloadReply(Reply, frozen=True, kw_only=True):
    """One record of a mapping file; `payload` prints ``record``."""

    kind: str
    payload_id: int
    record: dict[str, Any]


class LineageCell(Reply, frozen=True, kw_only=True):
    """
    One cell and what it was made from: rows of an artifact and of a source, or further cells. ``rows`` is half-open.

    A raw cell is made from the rows of its source that carry its symbol and whose SIP time lies in its window (in its
    first window also the ``lead_rows`` of the minute before): ``record_count`` rows from ``first_ts`` to ``last_ts``. A
    rate is made from the curve of ``curve_date``. ``retired``: the rows were removed by age.
    """

    column: Column
    symbol: str
    minute_idx: int
    start_ts: int
    status: str
    payload_id: int = 0
    version: int = 0
    checksum: int = 0
    artifact_uri: str = ""
    rows: tuple[int, int] | None = None
    retired: bool = False
    source: SourceReply | None = None
    record_count: int = 0
    lead_rows: int = 0
    first_ts: int = 0
    last_ts: int = 0
    curve_date: str = ""
    recipe: str = ""
    current: bool = True
    inputs: list[LineageCell] = field(default_factory=list)


class LineageReply(Reply, frozen=True, kw_only=True):
    """
    The tree of what one cell was made from; ``complete`` is false where an upstream cell has changed since.

    ``left_out`` is how many input cells it does not show, because there are too many: ask for a shorter window.
    """

    cell: LineageCell
    complete: bool = True
    left_out: int = 0


class Cause(Reply, frozen=True, kw_only=True):
    """
    A root cause and the cells it explains; ``remedy`` is a command to paste, ``first`` and ``last`` are start_ts.

    ``rows`` of filled cells that are of little use: ``rows``, ``usable``, and how many lack what, by flag.
    """

    cause: str
    columns: list[Column]
    cells: int
    symbols: int
    first: int
    last: int
    remedy: str = ""
    detail: str = ""
    rows: dict[str, int] = field(default_factory=dict)


class WhyReply(Reply, frozen=True, kw_only=True):
    """Why the cells of a range are as they are, largest group first; `why` prints the list."""

    groups: list[Cause]


class SymbolReply(Reply, frozen=True, kw_only=True):
    """One symbol; ``underlying`` is itself for a stock or index."""

    symbol: str
    symbol_id: int
    underlying: str


class SymbolsReply(Reply, frozen=True, kw_only=True):
    """Symbols by id; `symbols list` prints the list."""

    symbols: list[SymbolReply]


class SessionReply(Reply, frozen=True, kw_only=True):
    """One exchange trading day; mapped is no, read_only or read_write."""

    session: str
    session_seq: int
    windows: int
    open_ts: int
    close_ts: int
    mapped: str = "no"
    sources: dict[str, str] = field(default_factory=dict)


class SessionsReply(Reply, frozen=True, kw_only=True):
    """Sessions of the year in order; `sessions list` prints the list."""

    sessions: list[SessionReply]


class ArtifactCell(msgspec.Struct, frozen=True, array_like=True):
    """Rows of one cell, sent as an array: ``uri`` indexes `ExportReply.uris`; rows ``[row_start, row_start + row_count)``."""

    uri: int
    symbol_id: int
    minute_idx: int
    row_start: int
    row_count: int
    payload_id: int
    version: int
    source: int
    flags: int


class ExportReply(Reply, frozen=True, kw_only=True):
    """
    Which rows of which artifacts the filled cells of a range name; the reader opens them itself.

    ``uris`` are relative to ``artifact_root``. Each piece stands alone: its cells index its own ``uris``. Rows outside
    the session are named by an artifact's own footer (key ``m17.outside``); ``extended`` are further (uri, symbol_id,
    row_start, row_count) of them. ``contract`` is the glob to filter rows of chains by.
    """

    column: Column
    artifact_root: str
    uris: list[str]
    cells: list[ArtifactCell]
    extended: list[tuple[int, int, int, int]] = field(default_factory=list)
    symbols: dict[int, str] = field(default_factory=dict)
    contract: str | None = None
