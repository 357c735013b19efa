"""Sources: one record per dataset and session, the last one holds, and a crash loses nothing that was said."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ledger.columns import Dataset
from ledger.errors import DamagedFile, NotALedgerFile, SpaceError, StateReadOnly
from ledger.files import encode_frame
from ledger.framed import FramedFile
from ledger.sources import FILE_NAME, BadRow, SourceRecord, SourceState, SourceStore, pack_symbols


def record(session: str = "2013-10-07", **changes: object) -> SourceRecord:
    """A complete record with something in every field."""
    whole = SourceRecord(
        dataset=Dataset.STOCK_TRADES,
        session=session,
        state=SourceState.COMPLETE,
        name="flatfiles/us_stocks_sip/trades_v1/2013/10/2013-10-07.csv.gz",
        size=123_456_789_012,
        etag="abc",
        header=["ticker", "price"],
        globs=["AIG", "O:TWX*"],
        parser_version=3,
        rows=1_000,
        rows_in_session=950,
        rejected={"price_missing": 2, "price_negative": 1},
        out_of_session={"rows": 47, "volume": 1234.5},
        first_bad=BadRow(17, "price is missing"),
        quarantined=[BadRow(99, "3 fields, not 9")],
        symbols=pack_symbols([5, 2], [10, 20], [1, 0], [100.5, 0.0]),
        refused_symbols=1,
        refused_names=["ZZZ"],
        start_number=4,
    )
    return msgspec.structs.replace(whole, **changes)


def test_a_record_comes_back_whole_after_a_restart(tmp_path, system):
    """Every field, and None for what was never put."""
    store = SourceStore(tmp_path, system, year=2013)
    assert store.get(Dataset.STOCK_TRADES, "2013-10-07") is None and store.all() == []
    assert store.put(record()) is True
    store.close()
    again = SourceStore(tmp_path, system, year=2013)
    assert (
        again.get("us_stocks_sip/trades_v1", "2013-10-07") == again.get(Dataset.STOCK_TRADES, "2013-10-07") == record()
    )
    found = again.all()[0]
    assert found.state is SourceState.COMPLETE
    assert found.symbol_ids().tolist() == [2, 5]
    assert found.symbol_rows().tolist() == [(2, 20, 0, 0.0), (5, 10, 1, 100.5)]
    again.close()


def test_the_last_record_of_a_key_holds_and_an_equal_one_writes_nothing(tmp_path, system):
    """Equal also when its dicts were filled in another order."""
    store = SourceStore(tmp_path, system)
    store.put(record(state=SourceState.WAITING))
    store.put(record())
    data = (tmp_path / FILE_NAME).read_bytes()
    assert store.put(record()) is False
    assert store.put(record(rejected={"price_negative": 1, "price_missing": 2})) is False
    assert (tmp_path / FILE_NAME).read_bytes() == data
    store.close()
    assert SourceStore(tmp_path, system, readonly=True).all() == [record()]


def test_what_was_put_cannot_be_changed_from_outside(tmp_path, system):
    """The store keeps its own copy."""
    store = SourceStore(tmp_path, system)
    names = ["AIG"]
    store.put(record(globs=names))
    names.append("TWX")
    assert store.get(Dataset.STOCK_TRADES, "2013-10-07") == record(globs=["AIG"])
    store.close()


def test_records_are_ordered_by_session_then_dataset(tmp_path, system):
    """Whatever the order of arrival."""
    store = SourceStore(tmp_path, system)
    for session in ("2013-10-08", "2013-10-07"):
        for dataset in (Dataset.STOCK_TRADES, Dataset.OPTION_TRADES):
            store.put(record(session, dataset=dataset))
    keys = [(found.session, found.dataset) for found in store.all()]
    assert keys == sorted(keys) and len(keys) == 4
    assert [found.dataset for found in store.for_session("2013-10-08")] == sorted(
        [Dataset.OPTION_TRADES, Dataset.STOCK_TRADES]
    )
    assert store.for_session("2013-10-09") == []
    assert store.sessions() == ["2013-10-07", "2013-10-08"]
    store.close()


def test_a_file_of_mostly_dead_records_is_compacted(tmp_path, system):
    """The same records in fewer bytes; opening leaves the file alone; a second time changes nothing."""
    store = SourceStore(tmp_path, system)
    store.put(record("2013-10-08"))
    for rows in range(10):
        store.put(record(rows=rows))
    expected = store.all()
    store.close()
    path = tmp_path / FILE_NAME
    size = path.stat().st_size
    store = SourceStore(tmp_path, system)
    assert path.stat().st_size == size
    store.compact()
    assert store.all() == expected
    compact = path.read_bytes()
    assert len(compact) < size
    store.close()
    store = SourceStore(tmp_path, system)
    store.compact()
    store.close()
    assert path.read_bytes() == compact


def test_a_torn_tail_is_cut_and_damage_before_it_is_not(tmp_path, system):
    """Half of the last record costs that record only; a flipped bit in the first is refused."""
    store = SourceStore(tmp_path, system)
    store.put(record("2013-10-07"))
    store.put(record("2013-10-08"))
    store.close()
    path = tmp_path / FILE_NAME
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    store = SourceStore(tmp_path, system)
    assert [found.session for found in store.all()] == ["2013-10-07"] and store.torn_bytes > 0
    store.put(record("2013-10-09"))
    store.close()
    assert SourceStore(tmp_path, system, readonly=True).sessions() == ["2013-10-07", "2013-10-09"]
    path.write_bytes(data[:4200] + bytes([data[4200] ^ 1]) + data[4201:])
    with pytest.raises(DamagedFile, match="byte 4096 is damaged"):
        SourceStore(tmp_path, system)


def test_files_of_another_kind_year_or_content_are_refused(tmp_path, system):
    """Not ours, of 2014, and a good frame whose record is none."""
    SourceStore(tmp_path, system, year=2014).close()
    with pytest.raises(DamagedFile, match="2014"):
        SourceStore(tmp_path, system, year=2013)
    path = tmp_path / FILE_NAME
    header = path.read_bytes()
    path.write_bytes(header + encode_frame(msgspec.msgpack.encode({"dataset": 5})))
    with pytest.raises(DamagedFile, match="cannot be read"):
        SourceStore(tmp_path, system, year=2014)
    path.unlink()
    FramedFile.open(system, path, "regions", 1, {"year": 2013})[0].close()
    with pytest.raises(NotALedgerFile):
        SourceStore(tmp_path, system, year=2013)


def test_read_only_writes_nothing_not_even_the_file(tmp_path, system):
    """An empty store where there is no file; a put is refused."""
    store = SourceStore(tmp_path, system, readonly=True)
    with pytest.raises(StateReadOnly):
        store.put(record())
    assert store.all() == [] and list(tmp_path.iterdir()) == []
    store.close()


def test_a_failed_put_keeps_the_record_of_before_at_every_fault(tmp_path, every_fault, system):
    """After any failed call, process and file still say what they said; the put works once the fault is gone."""
    for number, failing in enumerate(every_fault()):
        folder = tmp_path / str(number)
        folder.mkdir()
        first = SourceStore(folder, system)
        for rows in range(4):
            first.put(record(rows=rows))
        first.close()
        try:
            store = SourceStore(folder, failing)
        except SpaceError:
            assert SourceStore(folder, system).all() == [record(rows=3)]
            continue
        try:
            store.put(record())
        except SpaceError:
            assert store.all() == [record(rows=3)]
            assert SourceStore(folder, system, readonly=True).all() == [record(rows=3)]
        failing.fail_at = 0
        store.put(record())
        store.close()
        assert SourceStore(folder, system, readonly=True).all() == [record()]


@pytest.mark.parametrize(
    "arrays",
    [
        ([1, 1], [1, 1], [0, 0], [0.0, 0.0]),
        ([1, 2], [1], [0, 0], [0.0, 0.0]),
        ([70_000], [1], [0], [0.0]),
        ([1], [-1], [0], [0.0]),
        ([1], [1 << 32], [0], [0.0]),
        ([[1]], [[1]], [[0]], [[0.0]]),
    ],
)
def test_symbol_counts_that_do_not_fit_are_refused(arrays):
    """Never wrapped or cut silently."""
    with pytest.raises((ValueError, OverflowError)):
        pack_symbols(*(np.array(values) for values in arrays))


def test_symbol_counts_are_18_bytes_each_and_may_be_none():
    """Empty arrays make an empty field."""
    assert len(pack_symbols(range(100), [1] * 100, [0] * 100, [0.5] * 100)) == 1_800
    assert pack_symbols([], [], [], []) == b""
