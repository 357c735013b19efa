"""Checksums of many records are those of zlib."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from ledger.checksums import checksums


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("count", [1, 2, 2047, 2049])
def test_many_sums_are_those_of_zlib(size: int, count: int) -> None:
    """Whatever the bytes and the starting values, and with few bytes that differ."""
    generator = np.random.default_rng(count)
    records = generator.integers(0, 2**64, (count, size // 8), dtype=np.uint64)
    records[:, 2:4] = 7
    starts = generator.integers(0, 2**32, count)

    expected = [zlib.crc32(record.tobytes()[4:], int(start)) for record, start in zip(records, starts, strict=True)]

    assert checksums(records, starts).tolist() == expected
