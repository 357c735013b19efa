"""Bytes: slots, seals, content hashes and records are what the format says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.columns import Column, Flag, LedgerKind, PayloadKind, Source, Status
from ledger.content import cell_hashes, checksum_of, no_rows_hash, row_hashes
from ledger.layout import BLOCK_BYTES, FILE_BYTES, ROW_DTYPE, SLOT, seal, seals
from ledger.records import NO_ROWS_ID, RECORD_DTYPE, blank, describe, good_mask, is_good, no_rows_record, stamp
from ledger.slots import EMPTY_SLOT, unpack_slot

WORD = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=20))
def test_the_seal_of_many_is_the_seal_of_each(words: list[tuple[int, int, int, int]]) -> None:
    """Numpy and Python compute one seal, whatever the old seal was."""
    array = np.array(words, dtype=np.uint64)

    assert seals(array).tolist() == [seal(w0, w1, w2, w3 & 0xFFFFFFFF) for w0, w1, w2, w3 in words]


@given(st.tuples(WORD, WORD, WORD, st.integers(0, 2**32 - 1)), st.integers(0, 255))
def test_one_flipped_bit_breaks_the_seal(words: tuple[int, int, int, int], bit: int) -> None:
    """Each of the 256 bits is covered."""
    slot = np.array([*words[:3], words[3] | seal(*words) << 32], dtype=np.uint64)
    slot.view(np.uint8)[bit // 8] ^= np.uint8(1 << bit % 8)

    assert int(seals(slot[None])[0]) != int(slot[3]) >> 32


def test_sizes_are_those_of_the_format() -> None:
    """A trade row has 160 bytes, an enrichment row 256, a day 595 and 952 MiB of rows in page-aligned blocks."""
    assert ROW_DTYPE[LedgerKind.TRADE].itemsize * 390 * 10_000 >> 20 == 595
    assert ROW_DTYPE[LedgerKind.ENRICHMENT].itemsize == 256
    assert all(size % 4096 == 0 for size in BLOCK_BYTES.values())
    assert FILE_BYTES[LedgerKind.TRADE] == 4096 + 10_000 * 65_536


def test_zeros_are_the_empty_slot_and_a_torn_slot_is_none() -> None:
    """All-zero bytes seal to zero; anything else without its seal is nothing."""
    assert unpack_slot(bytes(32)) == EMPTY_SLOT
    assert unpack_slot(b"\1" + bytes(31)) is None


def test_a_slot_unpacks_to_its_fields() -> None:
    """Every field comes back, as enums where it is a word."""
    slot = np.zeros(1, dtype=SLOT)
    slot[0] = (2, 2, 3, 9, 77, 5, 1234, 99, 55, 0)
    words = slot.view("<u8").reshape(1, 4)
    words[:, 3] |= seals(words) << np.uint64(32)

    found = unpack_slot(slot.tobytes())

    assert found is not None
    assert (found.status, found.source, found.flags) == (Status.FILLED, Source.FLAT_FILE, Flag.NO_ROWS | Flag.SHORT)
    assert (found.payload_type, found.payload_id, found.version) == (PayloadKind.TRADE, 77, 5)
    assert (found.checksum, found.inputs, found.last_updated_ns) == (1234, 55, 99)


@pytest.mark.parametrize("kind", list(RECORD_DTYPE))
def test_a_stamped_record_is_good_at_its_id_and_nowhere_else(kind: PayloadKind) -> None:
    """The CRC covers the record and its id."""
    records = blank(kind, 4)
    stamp(records, 10)

    assert good_mask(records, 10).all()
    assert not good_mask(records, 11).any()
    assert is_good(records[2].tobytes(), 12)


@pytest.mark.parametrize("kind", list(RECORD_DTYPE))
def test_one_flipped_bit_makes_a_record_bad(kind: PayloadKind) -> None:
    """Every byte of a record is covered, the reserved ones too."""
    records = blank(kind, 1)
    stamp(records, 3)
    for at in range(records.itemsize):
        damaged = records.copy()
        damaged.view(np.uint8)[at] ^= np.uint8(1 << at % 8)
        assert not good_mask(damaged, 3)[0]


def test_equal_rows_hash_equally_wherever_they_stand() -> None:
    """A cell's hash depends on its rows in order and on its window, not on their place in a file."""
    values = row_hashes([np.array([1.5, 2.5, 1.5, 2.5, -0.0]), np.array([1, 2, 1, 2, 3])])
    start = np.array([60, 60, 120], dtype=np.int64)
    found = cell_hashes(PayloadKind.TRADE, start, np.array([0, 2, 2]), np.array([2, 2, 2]), values)

    assert found[0] == found[1] != found[2]
    swapped = cell_hashes(PayloadKind.TRADE, start[:1], np.array([1]), np.array([2]), values)
    assert swapped[0] != found[0]


def test_no_rows_is_a_constant_per_kind() -> None:
    """Its checksum is the first half of its hash, and kinds differ."""
    found = {kind: no_rows_hash(kind) for kind in RECORD_DTYPE}

    assert len(set(found.values())) == len(found)
    record = no_rows_record(PayloadKind.QUOTE)
    assert int(checksum_of(record["content_hash"])[0]) == found[PayloadKind.QUOTE] >> 32
    assert describe(record[0], None)["no_rows"] is True
    assert NO_ROWS_ID == 1


def test_columns_know_their_ledger_and_kind() -> None:
    """The words fit the rows."""
    for column in Column:
        assert column.value in (ROW_DTYPE[column.ledger].names or ())
