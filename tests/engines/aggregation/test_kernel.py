"""The aggregates of a session: against the second implementation in ``reference``, and on the edges."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from engines.aggregation.columns import COUNTS, METRICS
from engines.aggregation.inputs import OptionTrades, SessionInputs, UnderlyingTrades
from engines.aggregation.kernel import WINDOWS, WindowTable, aggregate_session, aggregate_starts
from engines.aggregation.policy import AggregationPolicy
from tests.engines.aggregation.reference import aggregate, box_cox_likelihood, statistics_of
from tests.engines.aggregation.synthetic_session import SESSION_OPEN_NS, session

_COLUMN = {name: place for place, name in enumerate(METRICS)}


def _take(trades: OptionTrades, rows: np.ndarray) -> OptionTrades:
    return OptionTrades(*(getattr(trades, name)[rows] for name in trades.__slots__))


def _take_underlying(trades: UnderlyingTrades, rows: np.ndarray) -> UnderlyingTrades:
    return UnderlyingTrades(*(getattr(trades, name)[rows] for name in trades.__slots__))


def _assert_row(table: WindowTable, start: int, expected: dict[str, float]) -> None:
    got = dict(zip(METRICS, table.metrics[start], strict=True))
    assert list(expected) == list(METRICS)
    for name, value in expected.items():
        place = f"{name} of [{start}, +{table.window_minutes})"
        if math.isnan(value):
            assert math.isnan(got[name]), place
        else:
            # Skew and signed sums can cancel to nearly nothing: there the digits of the terms are what counts.
            scale = 1.0 if name.endswith("_skew") else abs(expected.get(name.replace("_signed", ""), 0.0))
            if name.endswith(("_total", "_mean")):
                scale = max(scale, abs(value))
            else:
                scale = scale if name.endswith("_skew") else abs(value)
            assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-9 * scale), place


def _assert_equal(tables: dict[int, WindowTable], inputs: SessionInputs, minutes: int, starts: tuple[int, ...]) -> None:
    for window, table in tables.items():
        for start in starts:
            _assert_row(table, start, aggregate(inputs, minutes, window, start))


@pytest.mark.parametrize(
    ("option_rows", "underlying_rows", "holes"), [(60, 40, 0.1), (700, 300, 0.05), (3000, 900, 0.02)]
)
def test_random_session_equals_the_second_implementation(option_rows: int, underlying_rows: int, holes: float) -> None:
    """Every metric of windows all over the session agrees to 1e-9 with numpy and scipy."""
    inputs = session(option_rows, underlying_rows, holes=holes)
    _assert_equal(aggregate_session(inputs, 390), inputs, 390, (0, 3, 117, 250, 389))


def test_early_close_clips_windows_and_flags_them_short() -> None:
    """On a day of 210 minutes windows end at the close, and the keys say so."""
    inputs = session(400, 200, minutes=210, seed=2)
    tables = aggregate_session(inputs, 210)
    _assert_equal(tables, inputs, 210, (0, 100, 209))
    four_hours = tables[240]
    assert four_hours.short.all() and four_hours.covered_minutes[0] == 210
    assert four_hours.window_end_ns[0] == SESSION_OPEN_NS + 210 * 60_000_000_000
    half_hour = tables[30]
    assert not half_hour.short[180] and half_hour.short[181] and half_hour.covered_minutes[209] == 1
    assert_array_equal(half_hour.available_ns, half_hour.window_end_ns)


def test_empty_session_is_all_null_with_zero_counts() -> None:
    """Without a single row there are windows, and nothing in them."""
    inputs = session(0, 0)
    for table in aggregate_session(inputs, 390).values():
        assert np.isnan(table.metrics).all() and not table.counts.any() and not table.source_span.any()


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_handful_of_trades_equals_the_second_implementation(rows: int) -> None:
    """One to four trades: the statistics that need more are null."""
    inputs = session(rows, rows, seed=rows)
    starts = tuple({int(minute) for minute in inputs.options.minute} | {0, 389})
    _assert_equal(aggregate_session(inputs, 390), inputs, 390, starts)


def test_equal_values_have_no_spread_and_no_shape() -> None:
    """All trades alike: stddev 0, skew, kurtosis, cv and bc null, one peak, p-value 1."""
    inputs = session(60, 60, minutes=5, seed=3)
    options = inputs.options
    same = {
        name: np.full_like(getattr(options, name), getattr(options, name)[0]) for name in ("size", "delta", "gamma")
    }
    options = replace(options, **same, spot=np.full(60, 0.1), is_call=np.ones(60, dtype=np.bool_))
    inputs = replace(inputs, options=options)
    tables = aggregate_session(inputs, 5)
    _assert_equal(tables, inputs, 5, (0, 4))
    row = dict(zip(METRICS, tables[5].metrics[0], strict=True))
    assert (
        row["calls_dadvv_stddev"] == 0.0 and row["calls_dadvv_kde_peaks"] == 1.0 and row["calls_dadvv_dip_pval"] == 1.0
    )
    assert math.isnan(row["calls_dadvv_cv"]) and math.isnan(row["calls_dadvv_bc"])


def test_calls_that_were_given_away_have_no_dollar_value() -> None:
    """A sum of 0 is null, as it always was; the trades count all the same."""
    inputs = session(60, 60, minutes=5, seed=3)
    inputs = replace(inputs, options=replace(inputs.options, price=np.zeros(60)))
    tables = aggregate_session(inputs, 5)
    _assert_equal(tables, inputs, 5, (0, 4))
    row = dict(zip(METRICS, tables[5].metrics[0], strict=True))
    assert math.isnan(row["calls_dollar_value"]) and row["calls_above_intrinsic_pct"] == 0.0


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e70])
def test_huge_and_tiny_values_stay_equal_to_the_second_implementation(scale: float) -> None:
    """Values far from one keep their digits as long as their fourth powers are numbers; beyond, the moment is null."""
    inputs = session(80, 10, minutes=3, seed=4)
    inputs = replace(inputs, options=replace(inputs.options, size=inputs.options.size * scale))
    tables = aggregate_session(inputs, 3, (3,))
    expected = aggregate(inputs, 3, 3, 0)
    names = ("total", "minimum", "maximum", "mean", "stddev", "iqr", "mad", "mode", "dip_pval", "kde_peaks", "cv")
    for name in names:
        column = f"calls_gadvv_{name}"
        assert tables[3].metrics[0, _COLUMN[column]] == pytest.approx(expected[column], rel=1e-9), column


def test_zeros_and_ties_equal_the_second_implementation() -> None:
    """Null deltas count as zeros, round sizes tie: the discrete samples agree too."""
    inputs = session(500, 50, minutes=20, seed=5, holes=0.0)
    options = inputs.options
    coarse = replace(
        options,
        delta=np.where(np.arange(500) % 3 == 0, np.nan, np.round(options.delta, 1)),
        gamma=np.full(500, np.nan),
        spot=np.full(500, 100.0),
        size=np.minimum(options.size, 5.0),
    )
    inputs = replace(inputs, options=coarse)
    tables = aggregate_session(inputs, 20, (1, 5, 10))
    _assert_equal(tables, inputs, 20, (0, 7, 15, 19))
    assert tables[10].counts[0, COUNTS.index("null_delta")] > 0
    assert not np.signbit(tables[10].metrics[0, _COLUMN["calls_signed_gadvv_minimum"]])


def test_without_underlying_trades_only_trades_with_a_mid_go_in() -> None:
    """The stock's columns are null; option trades without a mid are left out and counted."""
    inputs = session(300, 0, minutes=10, seed=6, holes=0.2)
    tables = aggregate_session(inputs, 10, (10,))
    _assert_equal(tables, inputs, 10, (0, 9))
    counts = dict(zip(COUNTS, tables[10].counts[0], strict=True))
    assert counts["underlying_trades"] == 0 and counts["left_out_no_spot"] > 0 and counts["spot_from_last_trade"] == 0
    parts = ("puts", "calls", "left_out_cancelled", "left_out_nonstandard", "left_out_no_spot")
    assert sum(int(counts[name]) for name in parts) == 300


def test_only_puts_leaves_the_calls_null() -> None:
    """A session of puts has no call metrics at all."""
    inputs = session(200, 50, minutes=10, seed=7)
    inputs = replace(inputs, options=_take(inputs.options, ~inputs.options.is_call))
    tables = aggregate_session(inputs, 10, (1, 10))
    _assert_equal(tables, inputs, 10, (0, 5))
    calls = [place for name, place in _COLUMN.items() if name.startswith("calls_")]
    assert np.isnan(tables[10].metrics[:, calls]).all()


def test_only_nonstandard_options_are_left_out_and_counted() -> None:
    """Adjusted deliverables never enter a sample."""
    inputs = session(50, 20, minutes=10, seed=8)
    inputs = replace(inputs, options=replace(inputs.options, standard=np.zeros(50, dtype=np.bool_)))
    table = aggregate_session(inputs, 10, (10,))[10]
    options = [place for name, place in _COLUMN.items() if not name.startswith("underlying")]
    assert np.isnan(table.metrics[:, options]).all()
    assert table.counts[0, COUNTS.index("left_out_nonstandard")] == 50 and not table.counts[0, 2:8].any()


def test_spot_of_last_resort_is_the_last_trade_not_later_than_the_option_trade() -> None:
    """Same minute or the one before, at or before the trade's own nanosecond, never after it."""
    minute_ns = 60_000_000_000
    times = np.array([10, 500, minute_ns + 7]) + SESSION_OPEN_NS
    flags = np.ones(3, dtype=np.bool_)
    under = UnderlyingTrades(
        np.array([0, 0, 1], dtype=np.uint16), times, np.array([50.0, 60.0, 70.0]), np.ones(3), flags, ~flags
    )
    base = session(5, 0, minutes=5, seed=9).options
    option_times = SESSION_OPEN_NS + np.array([9, 500, minute_ns + 6, minute_ns + 7, 3 * minute_ns])
    options = replace(
        base,
        minute=np.array([0, 0, 1, 1, 3], dtype=np.uint16),
        timestamp_ns=option_times,
        spot=np.full(5, np.nan),
        delta=np.ones(5),
        size=np.ones(5),
        is_call=np.ones(5, dtype=np.bool_),
    )
    table = aggregate_session(SessionInputs(SESSION_OPEN_NS, under, options), 5, (1,))[1]
    totals = table.metrics[:, _COLUMN["calls_dadvv_total"]]
    assert_array_equal(totals, [6000.0, 13000.0, np.nan, np.nan, np.nan])
    assert_array_equal(table.counts[:, COUNTS.index("left_out_no_spot")], [1, 0, 0, 1, 0])
    assert_array_equal(table.counts[:, COUNTS.index("spot_from_last_trade")], [1, 2, 0, 0, 0])


def test_eligible_prints_leave_cancelled_ones_out_and_take_prices_from_eligible_ones() -> None:
    """Under ``eligible`` the rows that count are those of a session without the cancelled prints."""
    inputs = session(400, 300, minutes=30, seed=10, holes=0.1)
    policy = AggregationPolicy(prints="eligible")
    table = aggregate_session(inputs, 30, (30,), policy)[30]
    under = inputs.underlying
    cleaned = replace(
        inputs,
        underlying=_take_underlying(under, ~under.cancelled),
        options=_take(inputs.options, ~inputs.options.cancelled & ~np.isnan(inputs.options.spot)),
    )
    expected = aggregate(cleaned, 30, 30, 0)
    priced = under.price[~under.cancelled & under.sets_price]
    for name in ("underlying_dollar_value_total", "underlying_dollar_value_kurtosis"):
        assert table.metrics[0, _COLUMN[name]] == pytest.approx(expected[name], rel=1e-12)
    prices = table.metrics[0, :4]
    assert_array_equal(prices, [priced[0], priced.max(), priced.min(), priced[-1]])
    assert table.counts[0, COUNTS.index("left_out_cancelled")] == inputs.options.cancelled.sum()
    assert table.counts[0, COUNTS.index("underlying_left_out_cancelled")] == under.cancelled.sum()


def test_window_depends_on_its_rows_alone_bit_for_bit() -> None:
    """Some starts, other rows outside the window, other window lengths beside it: the same bytes."""
    inputs = session(4000, 1000, seed=11, holes=0.02)
    whole = aggregate_session(inputs, 390)
    chosen = (0, 1, 2, 40, 41, 300, 389)
    some = aggregate_starts(inputs, 390, chosen)
    for window in WINDOWS:
        for name in ("metrics", "counts", "source_span", "window_start_ns", "short"):
            assert_array_equal(getattr(some[window], name), getattr(whole[window], name)[list(chosen)])
    near = (inputs.options.minute >= 99) & (inputs.options.minute < 130)
    near_under = (inputs.underlying.minute >= 99) & (inputs.underlying.minute < 130)
    part = replace(
        inputs, options=_take(inputs.options, near), underlying=_take_underlying(inputs.underlying, near_under)
    )
    alone = aggregate_starts(part, 390, (100,), (30,))[30]
    assert_array_equal(alone.metrics[0], whole[30].metrics[100])
    assert_array_equal(alone.counts[0], whole[30].counts[100])


def test_changing_a_row_changes_only_the_windows_that_hold_it() -> None:
    """One option trade more in minute 200: windows that cover it differ, all others keep their bytes."""
    inputs = session(2000, 500, seed=12)
    size = inputs.options.size.copy()
    row = int(np.searchsorted(inputs.options.minute, 200))
    size[row] += 1.0
    changed = replace(inputs, options=replace(inputs.options, size=size))
    minute = int(inputs.options.minute[row])
    for window, table in aggregate_session(inputs, 390).items():
        other = aggregate_session(changed, 390, (window,))[window]
        same = np.array(
            [np.array_equal(a, b, equal_nan=True) for a, b in zip(table.metrics, other.metrics, strict=True)]
        )
        starts = np.arange(390)
        assert_array_equal(~same, (starts <= minute) & (starts > minute - window))


def test_source_span_names_the_rows_of_the_window() -> None:
    """Spans are half-open row ranges of the inputs, left-out rows included."""
    inputs = session(500, 200, minutes=60, seed=13, holes=0.1)
    table = aggregate_session(inputs, 60, (10,))[10]
    first, last, option_first, option_last = table.source_span[20]
    assert set(inputs.underlying.minute[first:last]) <= set(range(20, 30))
    assert option_last - option_first == ((inputs.options.minute >= 20) & (inputs.options.minute < 30)).sum()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("price", np.nan, "price of row 3"),
        ("size", np.inf, "size of row 3"),
        ("minute", 0, "row 3 has an earlier minute"),
        ("minute", 390, "minute 390"),
        ("side", 7, "side has codes"),
    ],
)
def test_bad_rows_are_refused_by_name(field: str, value: float, words: str) -> None:
    """What would be misread silently is an error that says which row of what."""
    inputs = session(4, 4, seed=14)
    array = getattr(inputs.options, field).copy()
    array[:] = 5 if field == "minute" else array
    array[3] = value
    with pytest.raises(ValueError, match=words):
        aggregate_session(replace(inputs, options=replace(inputs.options, **{field: array})), 390)


def test_starts_and_windows_must_ascend() -> None:
    """Arguments out of order or out of the session are errors."""
    inputs = session(4, 4)
    for starts in ((3, 2), (5, 5), (-1,), (390,)):
        with pytest.raises(ValueError, match="starts"):
            aggregate_starts(inputs, 390, starts)
    for windows in ((), (5, 1), (0,)):
        with pytest.raises(ValueError, match="windows"):
            aggregate_session(inputs, 390, windows)


def test_large_window_equals_the_second_implementation() -> None:
    """Enough trades for boxes, bins and the coarse look at the dip: one window of 40,000 trades."""
    inputs = session(40_000, 3_000, minutes=240, seed=15)
    table = aggregate_starts(inputs, 240, (0,), (240,))[240]
    spot, options = inputs.options.spot, inputs.options
    calls = options.is_call
    sample = (np.abs(options.delta) * spot * (options.size * options.multiplier))[calls]
    place = _COLUMN["calls_dadvv_total"]
    expected = statistics_of(sample)
    got = table.metrics[0, place : place + len(expected)]
    assert got == pytest.approx(expected, rel=1e-9)
    best = got[list(METRICS[place:]).index("calls_dadvv_bc")]
    assert box_cox_likelihood(sample, best) >= max(box_cox_likelihood(sample, best + step) for step in (-0.25, 0.25))
