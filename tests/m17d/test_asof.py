"""The as-of reader of aggregates: nothing that happens after a time reaches a value that is joined at it."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import polars as pl
import pytest

import ledger
from ledger.asof import KEYS
from ledger.columns import AGGREGATE_MINUTES
from tests.m17d.test_derived_sessions import fill
from tests.m17d.test_greeks_sessions import NEWS
from tests.m17d.test_real_sessions import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

SECOND = 1_000_000_000
DATASETS = [f"{kind}/{what}" for kind in ("us_stocks_sip", "us_options_opra") for what in ("trades_v1", "quotes_v1")]


def copy_files(folder: Path, changed_from_ns: int | None) -> None:
    """The upstream files of a session; from a time on every price and size is another, and every third row is gone."""
    name = f"{NEWS[:4]}/{NEWS[5:7]}/{NEWS}.csv.gz"
    for dataset in DATASETS:
        source, target = DATA / "flatfiles" / dataset / name, folder / "flatfiles" / dataset / name
        target.parent.mkdir(parents=True)
        if changed_from_ns is None:
            shutil.copyfile(source, target)
            continue
        frame = pl.read_csv(source, infer_schema=False)
        late = pl.col("sip_timestamp").cast(pl.Int64) >= changed_from_ns
        prices = [one for one in frame.columns if one.endswith("price")]
        sizes = [one for one in frame.columns if one == "size" or one.endswith("_size")]
        changed = frame.with_row_index().filter(~late | (pl.col("index") % 3 > 0)).drop("index")
        changed = changed.with_columns(
            *(pl.when(late).then((pl.col(one).cast(pl.Float64) * 1.25).round(2).cast(pl.String)).otherwise(one).alias(one) for one in prices),
            *(pl.when(late).then((pl.col(one).cast(pl.Int64) * 3).cast(pl.String)).otherwise(one).alias(one) for one in sizes),
        )  # fmt: skip
        target.write_bytes(gzip.compress(changed.write_csv().encode()))


def filled(folder: Path, changed_from_ns: int | None = None) -> Path:
    """A state filled by all engines from such files."""
    copy_files(folder, changed_from_ns)
    source = f'source = "flatfiles"\nsessions = ["{NEWS}"]\n'
    (folder / "m17.toml").write_text(
        f'state_dir = "ledger.state"\n[calendar]\nyear = {NEWS[:4]}\n'
        f'[engines.treasury]\nsource = "{DATA / "treasury" / "treasury-yields.json"}"\n'
        f"[engines.trade_flatfile]\n{source}[engines.quote]\n{source}[engines.nbbo]\n[engines.greeks]\n[engines.aggregation]\n"
    )
    fill(folder)
    return folder / "ledger.state"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of the unchanged files."""
    return filled(tmp_path_factory.mktemp("real"))


def times(open_ns: int, from_s: int, to_s: int) -> pl.DataFrame:
    """A time every 13 s, and every full minute, of one symbol."""
    seconds = sorted({*range(from_s, to_s + 1, 13), *range(from_s, to_s + 1, 60)})
    return pl.DataFrame({"symbol": "NWSA", "sip_timestamp": [open_ns + at * SECOND for at in seconds]})


def joined(state_path: Path, column: str, from_s: int, to_s: int, **how: object) -> pl.DataFrame:
    """What is known at these times."""
    with ledger.open(state_path, readonly=True) as state:
        return state.join_aggregates(times(state.calendar.times(NEWS).open_ns, from_s, to_s), column, **how).collect()


def test_changing_every_print_from_a_time_on_leaves_every_value_joined_at_it_alone(real: Path, tmp_path: Path) -> None:
    """Trades and quotes of stock and options, from 13:17 on: not a digit differs at 13:17 or before, and later it does."""
    at_s = (3 * 60 + 47) * 60
    with ledger.open(real, readonly=True) as state:
        changed_from_ns = state.calendar.times(NEWS).open_ns + at_s * SECOND
    other = filled(tmp_path, changed_from_ns)
    for column in AGGREGATE_MINUTES:
        before, after = (joined(one, column.value, 0, at_s, short=True) for one in (real, other))
        assert before.equals(after), column
        later = [joined(one, column.value, at_s + 60, 390 * 60, short=True) for one in (real, other)]
        assert not later[0].equals(later[1]), f"{column}: the files did differ"
        known = before[f"{column.value}_available_ns"]
        assert known.null_count() < before.height or AGGREGATE_MINUTES[column] > at_s // 60
        assert (known.drop_nulls() <= before.filter(known.is_not_null())["sip_timestamp"]).all()


def test_each_time_has_the_newest_full_window_that_was_over(real: Path) -> None:
    """Against a search through all rows for every time; the frame's order and columns stay."""
    with ledger.open(real, readonly=True) as state:
        open_ns = state.calendar.times(NEWS).open_ns
        frame = times(open_ns, 0, 390 * 60).sample(fraction=1.0, shuffle=True, seed=5)
        found = state.join_aggregates(
            frame, "aggs_10m", metrics=["calls_dadvv_total", "underlying_price_close"]
        ).collect()
        rows = state.scan("aggs_10m").filter(~pl.col("short")).sort("available_ns").collect()
    assert found.columns == [
        *frame.columns,
        *(f"aggs_10m_{name}" for name in (*KEYS, "calls_dadvv_total", "underlying_price_close")),
    ]
    assert found.select(frame.columns).equals(frame)
    for ts, start, available, price in found.select(
        "sip_timestamp", "aggs_10m_window_start_ns", "aggs_10m_available_ns", "aggs_10m_underlying_price_close"
    ).iter_rows():
        over = rows.filter(pl.col("available_ns") <= ts)
        if over.height:
            last = over.row(-1, named=True)
            assert (start, available, price) == (
                last["window_start_ns"], last["available_ns"], last["underlying_price_close"],
            )  # fmt: skip
        else:
            assert start is None and ts < open_ns + 600 * SECOND


def test_short_windows_are_found_only_when_asked_for(real: Path) -> None:
    """At the close eleven 10-minute windows become available; asked for, the fullest is taken, not the shortest."""
    with_short, without = (joined(real, "aggs_10m", 390 * 60, 390 * 60, short=one) for one in (True, False))
    assert with_short["aggs_10m_covered_minutes"].to_list() == without["aggs_10m_covered_minutes"].to_list() == [10]


def test_old_windows_can_be_left_out_and_unknown_names_are_refused(real: Path) -> None:
    """``max_age_ns`` bounds how long ago a window became available; a wrong column or metric is a sentence."""
    old = joined(real, "aggs_1m", 390 * 60 + 3600, 390 * 60 + 3660)
    assert old["aggs_1m_available_ns"].null_count() == 0
    fresh = joined(real, "aggs_1m", 390 * 60 + 3600, 390 * 60 + 3660, max_age_ns=60 * SECOND)
    assert fresh["aggs_1m_available_ns"].null_count() == fresh.height
    with pytest.raises(ValueError, match="trade_ref is no aggregate: use one of aggs_1m"):
        joined(real, "trade_ref", 0, 60)
    with pytest.raises(ValueError, match="aggs_1m has no puts_delta"):
        joined(real, "aggs_1m", 0, 60, metrics=["puts_delta"])


def test_without_any_window_the_columns_are_null(tmp_path: Path) -> None:
    """A state that was never filled has nothing to say, and says it with the same columns."""
    from ledger.state import create_state

    create_state(tmp_path / "state", year=2013)
    found = joined(tmp_path / "state", "aggs_5m", 0, 60, metrics=["puts_dadvv_total"])
    assert found["aggs_5m_puts_dadvv_total"].null_count() == found.height > 0
