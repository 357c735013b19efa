"""Symbols: ids in order of first appearance, the cap, and a file that says what is wrong with it."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import (
    AddressError,
    ChecksumMismatch,
    DamagedFile,
    FileVersionMismatch,
    NotALedgerFile,
    SpaceError,
    StateReadOnly,
    SymbolCapReached,
    UnknownSymbol,
)
from ledger.files import HEADER_BYTES, System, encode_header
from ledger.symbols import ENTRY_BYTES, FILE_NAME, SymbolMap, encode_entry

CONTRACT = "O:TWX140621C00070000"


def entry_place(symbol_id: int) -> slice:
    """Where the entry's bytes are in the file."""
    return slice(HEADER_BYTES + symbol_id * ENTRY_BYTES, HEADER_BYTES + (symbol_id + 1) * ENTRY_BYTES)


def test_ids_count_up_in_order_of_first_appearance_and_stay(tmp_path, system):
    """Known symbols and repeats keep their id; a reopened map knows them all."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    given_ids = symbols.allocate(["TWX", "O:TWX", "TWX", CONTRACT])
    assert given_ids.ids == (0, 1, 0, 2) == given_ids.require_all()
    assert given_ids.allocated == ("TWX", "O:TWX", CONTRACT) and given_ids.refused == ()
    assert symbols.allocate([CONTRACT, "AIG"]).ids == (2, 3)
    symbols.close()
    symbols.close()
    again = SymbolMap.open(tmp_path, system, year=2013)
    assert again.names() == list(again) == ["TWX", "O:TWX", CONTRACT, "AIG"]
    assert len(again) == 4 and "AIG" in again and "aig" not in again
    assert [again.resolve(name) for name in again.names()] == [0, 1, 2, 3]
    assert [again.name(symbol_id) for symbol_id in range(4)] == again.names()
    assert again.allocate(["Z"]).ids == (4,)
    again.close()


def test_resolving_never_allocates(tmp_path, system):
    """An unknown symbol is an error, leaves nothing behind, and a wrong case is pointed out."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    symbols.allocate(["BRK.B"])
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(UnknownSymbol) as caught:
        symbols.resolve("brk.b")
    assert "BRK.B" in caught.value.hint
    with pytest.raises(UnknownSymbol):
        symbols.resolve("")
    assert symbols.get("nothing") is None
    for symbol_id in (-1, 1, 70_000):
        with pytest.raises(UnknownSymbol):
            symbols.name(symbol_id)
    assert len(symbols) == 1 and (tmp_path / FILE_NAME).read_bytes() == before
    symbols.close()


def test_globs_are_case_sensitive_and_in_id_order(tmp_path, system):
    """A word without wildcard is itself."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    symbols.allocate(["O:TWX", "TWX", "O:AIG", "twx"])
    assert symbols.glob("O:*") == [0, 2]
    assert symbols.glob("TW?") == [1]
    assert symbols.glob("[Tt]WX") == [1]
    assert symbols.glob("twx") == [3] and symbols.glob("nothing") == []
    assert symbols.glob("*") == [0, 1, 2, 3]
    symbols.close()


def test_the_cap_gives_what_fits_and_names_what_it_refuses(tmp_path, system):
    """The first fit; the others are named once each; known symbols go on."""
    symbols = SymbolMap.create(tmp_path, system, year=2013, symbols_max=3)
    assert symbols.symbols_max == 3
    allocation = symbols.allocate(["A", "B", "C", "D", "A", "E", "D"])
    assert allocation.ids == (0, 1, 2, -1, 0, -1, -1)
    assert allocation.refused == ("D", "E")
    with pytest.raises(SymbolCapReached, match=r"all 3 symbol ids .* refused 2: D, E$") as caught:
        allocation.require_all()
    assert caught.value.facts == {"refused": ["D", "E"], "refused_count": 2, "symbols_max": 3}
    assert "chain" in caught.value.hint
    assert symbols.allocate(["B", "C"]).require_all() == (1, 2)
    symbols.close()
    assert SymbolMap.open(tmp_path, system, year=2013).symbols_max == 3


def test_ten_thousand_symbols_fit_and_no_more(tmp_path, system):
    """All ids of the year, then the cap; the message names ten and counts the rest."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    names = [f"S{number:05d}" for number in range(10_020)]
    allocation = symbols.allocate(names)
    assert allocation.ids[9_999] == 9_999 and allocation.ids[10_000] == -1
    with pytest.raises(SymbolCapReached, match=r"refused 20: S10000, .*S10009 and 10 more"):
        allocation.require_all()
    symbols.close()
    again = SymbolMap.open(tmp_path, system, year=2013, readonly=True)
    assert again.names() == names[:10_000]
    assert (tmp_path / FILE_NAME).stat().st_size == HEADER_BYTES + 10_000 * ENTRY_BYTES


@pytest.mark.parametrize("symbol", ["", " ", "A B", "A\n", "Ä", "A\0", "X" * 28])
def test_symbols_no_entry_can_hold_are_refused_whole(tmp_path, system, symbol):
    """Nothing of that call is allocated."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    with pytest.raises(AddressError, match="cannot be a symbol"):
        symbols.allocate(["GOOD", symbol])
    assert len(symbols) == 0
    assert symbols.allocate(["X" * 27]).ids == (0,)
    symbols.close()
    assert SymbolMap.open(tmp_path, system, year=2013, readonly=True).name(0) == "X" * 27


def test_a_read_only_map_allocates_nothing(tmp_path, system):
    """Known symbols resolve, new ones are a StateReadOnly."""
    SymbolMap.create(tmp_path, system, year=2013).close()
    symbols = SymbolMap.open(tmp_path, system, year=2013, readonly=True)
    with pytest.raises(StateReadOnly):
        symbols.allocate(["A"])
    assert len(symbols) == 0
    symbols.close()


def test_a_damaged_entry_in_the_middle_is_named(tmp_path, system):
    """Flipped, emptied, swapped and doubled entries; the file is not changed."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    symbols.allocate(["A", "B", "C"])
    symbols.close()
    path = tmp_path / FILE_NAME
    good = path.read_bytes()

    def damaged(symbol_id: int, entry: bytes) -> bytes:
        data = bytearray(good)
        data[entry_place(symbol_id)] = entry
        path.write_bytes(data)
        return bytes(data)

    flipped = bytearray(good[entry_place(1)])
    flipped[1] ^= 1
    for symbol_id, entry, reason in (
        (1, bytes(flipped), "is damaged .*checksum"),
        (1, bytes(32), "is empty"),
        (1, good[entry_place(2)], "is damaged .*checksum"),
        (2, good[entry_place(1)], "is damaged .*checksum"),
    ):
        data = damaged(symbol_id, entry)
        for readonly in (True, False):
            with pytest.raises(ChecksumMismatch, match=f"entry {symbol_id} {reason}"):
                SymbolMap.open(tmp_path, system, year=2013, readonly=readonly)
        assert path.read_bytes() == data
    damaged(2, encode_entry(2, "A"))
    with pytest.raises(DamagedFile, match="entries 0 and 2 both hold A"):
        SymbolMap.open(tmp_path, system, year=2013)


def test_an_entry_can_be_edited_while_nobody_has_the_file_open(tmp_path, system):
    """encode_entry makes the bytes a repair needs."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    symbols.allocate(["A", "WRONG", "C"])
    symbols.close()
    data = bytearray((tmp_path / FILE_NAME).read_bytes())
    data[entry_place(1)] = encode_entry(1, "RIGHT")
    (tmp_path / FILE_NAME).write_bytes(data)
    assert SymbolMap.open(tmp_path, system, year=2013, readonly=True).names() == ["A", "RIGHT", "C"]


@pytest.mark.parametrize("written", [1, 5, 28])
def test_a_torn_last_entry_is_unused_again(tmp_path, system, written):
    """The begin of an entry, without its checksum, is cut at open, and its id given to the next symbol."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    symbols.allocate(["A", "B"])
    symbols.close()
    path = tmp_path / FILE_NAME
    data = bytearray(path.read_bytes())
    place = entry_place(1)
    data[place.start + written : place.stop] = bytes(32 - written)
    path.write_bytes(data)
    reader = SymbolMap.open(tmp_path, system, year=2013, readonly=True)
    assert (reader.names(), reader.torn_bytes) == (["A"], min(written, 2))
    symbols = SymbolMap.open(tmp_path, system, year=2013)
    assert symbols.torn_bytes == min(written, 2)
    assert not any(path.read_bytes()[place])
    assert symbols.allocate(["C"]).ids == (1,)
    symbols.close()
    assert SymbolMap.open(tmp_path, system, year=2013, readonly=True).names() == ["A", "C"]


def test_a_flipped_bit_in_any_entry_is_refused_and_behind_them_it_is_reported(tmp_path, system):
    """The last entry as well: its id is on rows, and must not be given to another symbol."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    symbols.allocate(["A", "B"])
    symbols.close()
    path = tmp_path / FILE_NAME
    good = path.read_bytes()
    for place in range(HEADER_BYTES, HEADER_BYTES + 2 * ENTRY_BYTES):
        data = bytearray(good)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(ChecksumMismatch, match=f"entry {(place - HEADER_BYTES) // ENTRY_BYTES} is damaged"):
            SymbolMap.open(tmp_path, system, year=2013)
    data = bytearray(good)
    data[HEADER_BYTES + 2 * ENTRY_BYTES + 3] ^= 4
    path.write_bytes(data)
    assert SymbolMap.open(tmp_path, system, year=2013, readonly=True).torn_bytes == 4
    SymbolMap.open(tmp_path, system, year=2013).close()
    assert path.read_bytes() == good


def test_another_files_bytes_are_refused(tmp_path, system):
    """Missing, another kind, another version, another year, cut short, extended."""
    with pytest.raises(DamagedFile, match="missing"):
        SymbolMap.open(tmp_path, system, year=2013)
    SymbolMap.create(tmp_path, system, year=2013).close()
    path = tmp_path / FILE_NAME
    good = path.read_bytes()
    body = good[HEADER_BYTES:]
    facts = {"year": 2013, "symbols_max": 10_000}
    for data, expected in (
        (b"", NotALedgerFile),
        (encode_header("sources", 1, facts) + body, NotALedgerFile),
        (encode_header("symbols", 99, facts) + body, FileVersionMismatch),
        (good[:100] + b"?" + good[101:], ChecksumMismatch),
        (good[:-1], DamagedFile),
        (good + b"\0", DamagedFile),
    ):
        path.write_bytes(data)
        with pytest.raises(expected):
            SymbolMap.open(tmp_path, system, year=2013)
    path.write_bytes(good)
    with pytest.raises(DamagedFile, match="of the year 2013, not of 2014"):
        SymbolMap.open(tmp_path, system, year=2014)


def test_an_allocation_is_whole_and_on_disk_when_it_returns(tmp_path, system):
    """Inside one sector in place, over several by a file of its own: no power cut leaves a hole, or half of it."""
    symbols = SymbolMap.create(tmp_path, system, year=2013)
    system.calls.clear()
    symbols.allocate([f"S{number}" for number in range(16)])
    assert system.calls == ["pwrite", "fdatasync"]
    system.calls.clear()
    symbols.allocate([f"T{number}" for number in range(17)])
    changing = [call for call in system.calls if call in ("pwrite", "fdatasync", "rename", "fsync")]
    assert changing == ["pwrite", "fdatasync", "rename", "fsync"]
    symbols.allocate(["U"])
    symbols.close()
    names = [*(f"S{number}" for number in range(16)), *(f"T{number}" for number in range(17)), "U"]
    assert SymbolMap.open(tmp_path, system, year=2013).names() == names


def test_a_failed_allocation_changes_nothing_at_every_fault(tmp_path, every_fault, system):
    """After any failed call the process and the file agree, and the symbol can be allocated later."""
    for number, failing in enumerate(every_fault()):
        folder = tmp_path / str(number)
        folder.mkdir()
        SymbolMap.create(folder, system, year=2013).close()
        try:
            symbols = SymbolMap.open(folder, failing, year=2013)
        except SpaceError:
            continue
        try:
            symbols.allocate(["A", "B"])
        except SpaceError:
            assert len(symbols) == 0
            assert SymbolMap.open(folder, system, year=2013, readonly=True).names() == []
        failing.fail_at = 0
        assert symbols.allocate(["B", "A", "C"]).require_all() in ((0, 1, 2), (1, 0, 2))
        symbols.close()
        assert SymbolMap.open(folder, system, year=2013, readonly=True).names() == symbols.names()


def test_a_full_disk_is_a_state_full(tmp_path, faulty, system):
    """Making the map reserves its whole size, so allocations cannot run out of space later."""
    with pytest.raises(SpaceError) as caught:
        SymbolMap.create(tmp_path, faulty(2, errno.ENOSPC), year=2013)
    assert caught.value.code == "state_full"
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.lists(st.text("ABC:.1", min_size=1, max_size=3), max_size=10), max_size=6))
def test_any_history_equals_a_dict(tmp_path_factory, batches):
    """Ids are the order of first appearance, whatever the batches, and survive reopening."""
    folder = tmp_path_factory.mktemp("symbols")
    symbols = SymbolMap.create(folder, System(), year=2013)
    model: dict[str, int] = {}
    for batch in batches:
        for symbol in batch:
            model.setdefault(symbol, len(model))
        assert symbols.allocate(batch).require_all() == tuple(model[symbol] for symbol in batch)
    symbols.close()
    assert SymbolMap.open(folder, System(), year=2013, readonly=True).names() == list(model)
