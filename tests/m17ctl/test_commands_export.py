"""Export: exactly the rows that the cells name, in their order, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.columns import Column
from m17ctl.artifacts import Run, read_blocks, schema_of
from m17d.protocol import ExportRequest, Range
from m17d.replies import ArtifactCell, ExportReply
from tests.m17ctl.fakes import m17ctl

WORDS = ("export", "trade_ref", "--session", "2013-10-07")


def _artifact(root: Path, name: str, rows: int, **more: pl.Series) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "ticker": [f"O:TWX1310{at % 3}1C00070000" for at in range(rows)],
            "price": [float(at) for at in range(rows)],
            **more,
        }
    )
    (root / name).parent.mkdir(exist_ok=True)
    frame.write_parquet(root / name, row_group_size=7)
    return frame


def _cell(uri: int, start: int, count: int, minute: int = 0) -> ArtifactCell:
    return ArtifactCell(
        uri=uri,
        symbol_id=1,
        minute_idx=minute,
        row_start=start,
        row_count=count,
        payload_id=1,
        version=1,
        source=3,
        flags=0,
    )


def _piece(root: Path, uris: list[str], cells: list[ArtifactCell], **more: object) -> ExportReply:
    return ExportReply(column=Column.TRADE_REF, artifact_root=str(root), uris=uris, cells=cells, **more)  # type: ignore[arg-type]


def _read(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_ndjson(path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".ndjson"])
def test_the_rows_are_those_of_the_cells_in_their_order(tmp_path: Path, suffix: str) -> None:
    """Two pieces, two artifacts, gaps, a cell without rows, one artifact twice."""
    a = _artifact(tmp_path, "trade/a.parquet", 50)
    b = _artifact(tmp_path, "trade/b.parquet", 20)
    pieces = [
        _piece(tmp_path, ["trade/a.parquet"], [_cell(0, 30, 5), _cell(0, 35, 2), _cell(0, 40, 0)]),
        _piece(tmp_path, ["trade/b.parquet", "trade/a.parquet#rows=3-4"], [_cell(0, 19, 1), _cell(1, 3, 1)]),
    ]
    out = tmp_path / f"out{suffix}"
    ran = m17ctl(lambda request: pieces, "--json", *WORDS, "--symbols", "O:TWX", "--out", str(out))
    assert ran.asked == [ExportRequest(column=Column.TRADE_REF, range=Range(session="2013-10-07", symbols="O:TWX"))]
    assert ran.code == 0
    written = json.loads(ran.out)
    assert (written["rows"], written["cells"], written["artifacts"]) == (9, 5, 2)
    assert _read(out).equals(pl.concat([a[30:37], b[19:20], a[3:4]]))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [out.name]


def test_extended_rows_come_last_and_contract_filters_by_glob(tmp_path: Path) -> None:
    """Both are asked of the daemon; the rows of a chain are filtered on this side."""
    frame = _artifact(tmp_path, "a.parquet", 30)
    piece = _piece(tmp_path, ["a.parquet"], [_cell(0, 0, 6)], extended=[(0, 1, 27, 3)])
    out = tmp_path / "out.parquet"
    words = (*WORDS, "--extended", "--contract", "O:TWX13101*", "--out", str(out))
    ran = m17ctl(piece, *words)
    assert ran.asked == [
        ExportRequest(column=Column.TRADE_REF, range=Range(session="2013-10-07", contract="O:TWX13101*"), extended=True)
    ]
    assert ran.code == 0
    expected = pl.concat([frame[0:6], frame[27:30]]).filter(pl.col("ticker").str.starts_with("O:TWX13101"))
    assert _read(out).equals(expected)
    assert ran.out == f"{out}: 3 rows of 1 cells, {out.stat().st_size} B\n"


def test_artifacts_of_different_columns_are_exported_as_one(tmp_path: Path) -> None:
    """What a file does not have is null in its rows."""
    _artifact(tmp_path, "a.parquet", 3)
    _artifact(tmp_path, "b.parquet", 3, participant=pl.Series([1, 2, 3]))
    out = tmp_path / "out.parquet"
    m17ctl(_piece(tmp_path, ["a.parquet", "b.parquet"], [_cell(0, 0, 1), _cell(1, 0, 1)]), *WORDS, "--out", str(out))
    assert _read(out)["participant"].to_list() == [None, 1]


def test_rows_outside_the_session_alone_are_exported_too(tmp_path: Path) -> None:
    """A symbol that traded only before the open has no cell with rows."""
    frame = _artifact(tmp_path, "a.parquet", 5)
    out = tmp_path / "out.ndjson"
    piece = _piece(tmp_path, ["a.parquet"], [], extended=[(0, 1, 1, 2)])
    assert m17ctl(piece, *WORDS, "--extended", "--out", str(out)).code == 0
    assert _read(out).equals(frame[1:3])


@pytest.mark.parametrize("trouble", ["missing", "short", "garbage"])
def test_an_artifact_that_cannot_be_read_leaves_no_file(tmp_path: Path, trouble: str) -> None:
    """The older export of that name stays as it was."""
    _artifact(tmp_path, "a.parquet", 5)
    if trouble == "missing":
        (tmp_path / "a.parquet").unlink()
    elif trouble == "garbage":
        (tmp_path / "a.parquet").write_bytes(b"PAR1 no longer")
    out = tmp_path / "out.csv"
    out.write_text("old")
    piece = _piece(tmp_path, ["a.parquet"], [_cell(0, 0, 6 if trouble == "short" else 5)])
    ran = m17ctl(piece, "--json", *WORDS, "--out", str(out))
    assert (ran.code, ran.out) == (1, "")
    error = json.loads(ran.err)["error"]
    assert error["code"] == "damaged_file"
    assert "a.parquet" in error["message"]
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_written_is_said_before_the_daemon_is_asked(tmp_path: Path) -> None:
    """A suffix that is none, a folder that is not there."""
    piece = _piece(tmp_path, [], [])
    assert m17ctl(piece, *WORDS, "--out", str(tmp_path / "out.xlsx")).code == 2
    nowhere = m17ctl(piece, *WORDS, "--out", str(tmp_path / "no" / "out.csv"))
    assert (nowhere.code, nowhere.asked) == (6, [])


def test_nothing_to_export_exits_6_and_writes_nothing(tmp_path: Path) -> None:
    """An empty file would look like an answer."""
    _artifact(tmp_path, "a.parquet", 5)
    out = tmp_path / "out.csv"
    assert m17ctl(_piece(tmp_path, ["a.parquet"], [_cell(0, 0, 0)]), *WORDS, "--out", str(out)).code == 6
    chosen = _piece(tmp_path, ["a.parquet"], [_cell(0, 0, 5)])
    assert m17ctl(chosen, *WORDS, "--contract", "O:AIG*", "--out", str(out)).code == 6
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), min_size=1, max_size=12), st.data())
def test_any_runs_give_their_rows(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Overlapping, backward, repeated, far apart: whatever was named, in that order, however it is cut into reads."""
    folder = tmp_path_factory.mktemp("artifacts")
    frame = _artifact(folder, "a.parquet", 140)
    runs = [Run(str(folder / "a.parquet"), start, rows) for start, rows in wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m17ctl.artifacts._BLOCK_ROWS", data.draw(st.integers(1, 60)))
        patch.setattr("m17ctl.artifacts._GAP_ROWS", data.draw(st.integers(0, 30)))
        got = pl.concat(list(read_blocks(runs, schema_of(runs))))
    assert got.equals(pl.concat([frame[run.start : run.start + run.rows] for run in runs]))
