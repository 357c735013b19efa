"""Live equals batch: a session through the websocket ends with the digest of its files, whatever happens on the way."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

import ledger
from ledger.columns import Column, Dataset, Flag, Source, Status
from m17d.replay_market import file_of
from tests.m17d.live_market import KEY, digests, files, live, replaying, run_until_idle, write_config
from tests.m17d.test_replay import CONTRACTS, SESSION, WINDOW, write_market

QUOTES = ["AIG", "IBM", *CONTRACTS]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stocks and three contracts, an hour and a half long."""
    folder = tmp_path_factory.mktemp("market")
    write_market(folder)
    return folder


@pytest.fixture(scope="module")
def batch(market: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Digests of the files, by how options become symbols."""
    found = {}
    for option_rows in ("chain", "contract"):
        folder = tmp_path_factory.mktemp(option_rows)
        write_config(folder, SESSION[:4], files(market, SESSION), option_rows)
        done = run_until_idle(folder)
        assert done.returncode == 0, done.stdout + done.stderr
        found[option_rows] = digests(folder, SESSION)
    return found


@pytest.mark.parametrize(
    ("option_rows", "faults"),
    [
        pytest.param("chain", "", marks=pytest.mark.slow),
        ("contract", "abort=700,duplicate=7,garbage=5"),
        pytest.param("contract", "disconnect=900", marks=pytest.mark.slow),
        pytest.param("contract", "late=5:200", marks=pytest.mark.slow),
        pytest.param("chain", "late=3:90,kick=1500,stall=1000:0.05,disconnect=500,abort=450", marks=pytest.mark.slow),
    ],
)
def test_live_equals_batch(
    market: Path, batch: dict[str, dict[str, str]], tmp_path: Path, option_rows: str, faults: str
) -> None:
    """The digest is that of the files; nothing is dropped; cells come from the websocket; gaps are partial."""
    with replaying(market, SESSION, "--speed", "max", *(["--faults", faults] if faults else [])) as replay:
        write_config(tmp_path, SESSION[:4], live(replay.url, quotes=QUOTES, refused_pause_s=0.1), option_rows)
        done = run_until_idle(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    assert digests(tmp_path, SESSION) == batch[option_rows]
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        rows = state.trade.session(state.calendar.session_seq(SESSION))
        for column in (Column.TRADE_REF, Column.QUOTE_REF):
            slots = rows.slots(column, state.universe(SESSION))
            covered = slots["status"] == Status.FILLED
            assert (slots["source"][covered] == Source.WEBSOCKET).all()
            # The first events of the day end the gap before it, which overlaps the first window.
            partial = bool((slots["flags"][:, 2:] & Flag.PARTIAL != 0).any())
            assert partial == any(word in faults for word in ("disconnect", "abort", "kick"))
        records = {record.dataset: record for record in state.sources.for_session(SESSION)}
    assert {record.state.value for record in records.values()} == {"open"}
    assert records["us_stocks_sip/trades_v1"].rows == 800
    assert records["us_stocks_sip/trades_v1"].out_of_session["rows"] > 0
    assert list((tmp_path / "ledger.state" / "temporary").rglob("*.rows")) == []
    assert KEY not in done.stdout + done.stderr


def test_who_trades_outside_the_session_only_belongs_to_it(tmp_path: Path) -> None:
    """Live as in the file: the symbol has an id, its windows have no rows, and nobody says that the cap refused it."""
    write_market(tmp_path)
    path = file_of(tmp_path, Dataset.STOCK_TRADES, SESSION)
    at = WINDOW.open_ns - 600_000_000_000
    early = f"ZZZ,,,11,1,{at},10.5,1,{at},100,1,,0\n"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + early.encode()))
    tables = {"trade_flatfile": files(tmp_path, SESSION)["trade_flatfile"]}
    write_config(tmp_path / "batch", SESSION[:4], tables)
    with replaying(tmp_path, SESSION) as replay:
        write_config(tmp_path / "live", SESSION[:4], {"trade_ws": {"stream": replay.url}})
        for folder in ("batch", "live"):
            done = run_until_idle(tmp_path / folder)
            assert done.returncode == 0, done.stdout + done.stderr
    assert digests(tmp_path / "live", SESSION) == digests(tmp_path / "batch", SESSION)
    with ledger.open(tmp_path / "live" / "ledger.state", readonly=True) as state:
        assert state.symbols.get("ZZZ") in state.universe(SESSION)
        assert not any(record.refused_symbols for record in state.sources.for_session(SESSION))


def test_a_broken_morning_is_whole_the_same_day(market: Path, tmp_path: Path) -> None:
    """
    A websocket that is cut from 10:00 to 10:10 leaves partial windows; REST brings them, and what is made of them.

    The digest of trades, quotes and aggressor is then that of the day that was never cut.
    """
    columns = (Column.TRADE_REF, Column.QUOTE_REF, Column.AGGRESSOR_REF)
    (tmp_path / "no-files").mkdir()
    write_config(tmp_path / "batch", SESSION[:4], {**files(market, SESSION), "nbbo": {}})
    done = run_until_idle(tmp_path / "batch")
    assert done.returncode == 0, done.stdout + done.stderr
    with replaying(market, SESSION, "--speed", "max", "--faults", "cut=10:00-10:10,429=7:0,500=11") as replay:
        rest = {
            "source": "../no-files",
            "rest": replay.url.replace("ws:", "http:"),
            "rest_requests_per_minute": 6000,
            "rest_sessions": 1,
        }
        engines = live(replay.url, quotes=QUOTES)
        engines["quote"].update(rest)
        write_config(tmp_path / "live", SESSION[:4], {**engines, "trade_flatfile": rest, "nbbo": {}})
        done = run_until_idle(tmp_path / "live")
        assert done.returncode == 0, done.stdout + done.stderr

    assert digests(tmp_path / "live", SESSION, columns) == digests(tmp_path / "batch", SESSION, columns)
    with ledger.open(tmp_path / "live" / "ledger.state", readonly=True) as state:
        rows = state.trade.session(state.calendar.session_seq(SESSION))
        cut = np.arange(30, 40)
        for name in ("AIG", "IBM"):
            symbol_id = np.array([state.symbols.resolve(name)])
            for column in columns[:2]:
                slots = rows.slots(column, symbol_id)[0]
                assert (slots["source"][cut] == Source.REST).all()
                assert (slots["source"][50:] == Source.WEBSOCKET).all()
                assert not (slots["flags"] & Flag.PARTIAL).any()
