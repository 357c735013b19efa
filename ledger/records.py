"""
Fixed-size payload records of the six kinds, and their checksums.

A record is 64 or 128 bytes; its payload_id is its position in the mapping file. The CRC covers the record behind it and
the id, so that a record at the wrong place is found. Numpy encodes a batch at once. This module must never touch a file.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np

from ledger.checksums import checksums
from ledger.columns import AGGREGATE_MINUTES, PayloadKind, Source
from ledger.content import no_rows_hash

SCHEMA_VERSION: Final = 1
ABSENT_TENOR: Final = -(2**31)
"""Marks a tenor that upstream did not publish; never 0, which is a rate."""
TENOR_COUNT: Final = 12
FLAG_COUNT: Final = 20
"""Flags of a row of Greeks that a record counts the rows of, lowest bit first; at most 65,535 of each."""

RECORD_NO_ROWS: Final = 1
"""Record flag: no data is data."""
RECORD_RETIRED: Final = 2
"""Record flag: the artifact was removed by age; the content hash still holds."""

_PREFIX: Final = [
    ("crc", "<u4"),
    ("schema_version", "u1"),
    ("kind", "u1"),
    ("source", "u1"),
    ("record_flags", "u1"),
    ("content_hash", "<u8"),
    ("artifact_id", "<u4"),
    ("row_start", "<u4"),
    ("row_count", "<u4"),
    ("batch_id", "<u4"),
]

RF_RATE_RECORD: Final = np.dtype(
    [
        *_PREFIX,
        ("effective_ts", "<i8"),
        ("next_effective_ts", "<i8"),
        ("curve_id", "<u2"),
        ("reserved_a", "<u2"),
        ("curve_date", "<u4"),
        ("tenor_bps", "<i4", (TENOR_COUNT,)),
        ("reserved", "V24"),
    ]
)
TRADE_RECORD: Final = np.dtype(
    [
        *_PREFIX,
        ("first_ts", "<i8"),
        ("last_ts", "<i8"),
        ("record_count", "<u4"),
        ("compression", "u1"),
        ("reserved", "V11"),
    ]
)
QUOTE_RECORD: Final = np.dtype(
    [
        *_PREFIX,
        ("first_ts", "<i8"),
        ("last_ts", "<i8"),
        ("nbbo_sample_count", "<u4"),
        ("lead_start", "<u4"),
        ("lead_count", "<u4"),
        ("compression", "u1"),
        ("reserved", "V3"),
    ]
)
AGGRESSOR_RECORD: Final = np.dtype(
    [
        *_PREFIX,
        ("minute_ts", "<i8"),
        ("trade_payload_id", "<u4"),
        ("quote_payload_id", "<u4"),
        ("previous_quote_payload_id", "<u4"),
        ("observation_count", "<u4"),
        ("usable_rows", "<u4"),
        ("locked", "<u4"),
        ("crossed", "<u4"),
        ("stale", "<u4"),
        ("missing", "<u4"),
        ("tied", "<u4"),
        ("exact_mid", "<u4"),
        ("unknown_side", "<u4"),
        ("reserved", "V40"),
    ]
)
GREEKS_RECORD: Final = np.dtype(
    [
        *_PREFIX,
        ("minute_ts", "<i8"),
        ("rf_rate_payload_id", "<u4"),
        ("trade_payload_id", "<u4"),
        ("quote_payload_id", "<u4"),
        ("previous_quote_payload_id", "<u4"),
        ("greeks_version", "<u4"),
        ("checksum", "<u4"),
        ("observation_count", "<u4"),
        ("usable_rows", "<u4"),
        ("flags_any", "<u4"),
        ("no_underlying", "<u4"),
        ("no_iv", "<u4"),
        ("flag_rows", "<u2", (FLAG_COUNT,)),
        ("reserved", "V4"),
    ]
)
AGGREGATE_RECORD: Final = np.dtype(
    [
        *_PREFIX,
        ("minute_ts", "<i8"),
        ("window", "u1"),
        ("short", "u1"),
        ("covered_minutes", "<u2"),
        ("source_span_start", "<u4"),
        ("source_span_end", "<u4"),
        ("usable_rows", "<u4"),
        ("option_trades", "<u4"),
        ("left_out", "<u4"),
        ("inputs_start", "<u4"),
        ("inputs_count", "<u4"),
        ("spot_from_last_trade", "<u4"),
        ("null_delta", "<u4"),
        ("left_out_cancelled", "<u4"),
        ("left_out_nonstandard", "<u4"),
        ("left_out_no_spot", "<u4"),
        ("reserved", "V36"),
    ]
)
RECORD_DTYPE: Final = {
    PayloadKind.RF_RATE: RF_RATE_RECORD,
    PayloadKind.TRADE: TRADE_RECORD,
    PayloadKind.QUOTE: QUOTE_RECORD,
    PayloadKind.AGGRESSOR: AGGRESSOR_RECORD,
    PayloadKind.GREEKS: GREEKS_RECORD,
    PayloadKind.AGGREGATE: AGGREGATE_RECORD,
}
assert [RECORD_DTYPE[kind].itemsize for kind in RECORD_DTYPE] == [128, 64, 64, 128, 128, 128]

COMPRESSION_ZSTD: Final = 2
COMPRESSION_WORDS: Final = ("none", "snappy", "zstd")
AGGREGATE_WINDOW: Final = {column: index for index, column in enumerate(AGGREGATE_MINUTES)}
"""AggregateWindow as stored: 0 = 1m .. 5 = 4h."""
AGGREGATE_WINDOW_WORDS: Final = tuple(column.value.removeprefix("aggs_") for column in AGGREGATE_MINUTES)
NO_ROWS_ID: Final = 1
"""The payload_id of the no-rows record; every mapping file begins with it."""
_HIDDEN: Final = frozenset({"crc", "reserved", "reserved_a", "artifact_id", "row_start", "row_count"})


def blank(kind: PayloadKind, count: int) -> np.ndarray:
    """
    Zeroed records of one kind with schema version and kind set.

    Returns:
        structured array [count] of the kind's record dtype.
    """
    records = np.zeros(count, dtype=RECORD_DTYPE[kind])
    records["schema_version"] = SCHEMA_VERSION
    records["kind"] = int(kind)
    return records


def no_rows_record(kind: PayloadKind) -> np.ndarray:
    """The one record that says that a window has no data: window 0, counts 0, no artifact, upstream ids 0."""
    record = blank(kind, 1)
    record["record_flags"] = RECORD_NO_ROWS
    record["content_hash"] = no_rows_hash(kind)
    return record


def stamp(records: np.ndarray, first_id: int) -> None:
    """Set the CRC of each record in place; record i gets payload_id ``first_id + i``."""
    records["crc"] = _checksums(records, np.arange(first_id, first_id + len(records)))


def _checksums(records: np.ndarray, payload_ids: np.ndarray) -> np.ndarray:
    """u32[n], what the CRC of each record must be."""
    words = np.ascontiguousarray(records).view("<u8").reshape(len(records), records.dtype.itemsize // 8)
    return checksums(words, payload_ids)


def is_good(record: bytes, payload_id: int) -> bool:
    """True where the bytes are a record written at ``payload_id`` and undamaged."""
    return int.from_bytes(record[:4], "little") == zlib.crc32(record[4:], payload_id) and record[4] == SCHEMA_VERSION


def good_mask(records: np.ndarray, first_id: int) -> np.ndarray:
    """bool[n], :func:`is_good` for each record of an array that begins at ``first_id``."""
    return good_at(records, np.arange(first_id, first_id + len(records)))


def good_at(records: np.ndarray, payload_ids: np.ndarray) -> np.ndarray:
    """bool[n], :func:`is_good` for each record at its id; about 6 M records/s."""
    good: np.ndarray = records["schema_version"] == SCHEMA_VERSION
    chosen = records if good.all() else records[good]
    good[good] = _checksums(chosen, np.asarray(payload_ids)[good]) == chosen["crc"]
    return good


def describe(record: np.void, uri: str | None) -> dict[str, Any]:
    """
    One record as plain Python values, as the wire and the CLI show it.

    Args:
        record: one element of a record array.
        uri: the artifact's URI relative to the artifact root, None where there is no artifact.

    Returns:
        the record's fields by name with ``kind``, ``source``, ``compression`` and ``window`` as words, and
        ``artifact_uri`` = ``URI#rows=START-END`` (half-open), None where there is no artifact.
    """
    names = record.dtype.names
    assert names is not None
    shown: dict[str, Any] = {}
    for name in names:
        if name in _HIDDEN:
            continue
        value = record[name]
        shown[name] = value.tolist() if isinstance(value, np.ndarray) else value.item()
    shown["kind"] = PayloadKind(shown["kind"]).word
    shown["source"] = Source(shown["source"]).word
    if "compression" in shown:
        shown["compression"] = COMPRESSION_WORDS[shown["compression"]]
    if "window" in shown:
        shown["window"] = AGGREGATE_WINDOW_WORDS[shown["window"]]
        shown["source_span"] = [shown.pop("source_span_start"), shown.pop("source_span_end")]
    if "tenor_bps" in shown:
        shown["tenor_bps"] = [None if bps == ABSENT_TENOR else bps for bps in shown["tenor_bps"]]
    flags = shown.pop("record_flags")
    shown["no_rows"], shown["retired"] = bool(flags & RECORD_NO_ROWS), bool(flags & RECORD_RETIRED)
    shown["artifact_uri"] = None
    if uri is not None:
        start, count = int(record["row_start"]), int(record["row_count"])
        shown["artifact_uri"] = f"{uri}#rows={start}-{start + count}"
    return shown
