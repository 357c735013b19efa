"""
The aggregates of one underlying and one session: every window length, starting at every minute.

The cost plan, for n rows in a session and windows of w minutes (1, 5, 10, 30, 60, 240), is linear in n: each row is
valued once, sorted once within its minute, and then read about sum(w) times, once in every window that holds it, by a
merge that moves the sorted sample one minute on, by the dip and by the density. Nothing else is read window by window.

A pure function of its rows: no clock, no randomness, one thread, no fastmath, no reduction whose order is not fixed.
Compiled code behind it: only workers may import this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.columns import CALL_MIX, COUNTS, METRICS, PRICES, PUT_MIX, S14, S17, SAMPLES_WITH_QUARTILES
from engines.aggregation.inputs import SessionInputs, SessionSamples, SideSamples, samples_of
from engines.aggregation.moments import minute_partials, minute_powers, window_moments, window_totals
from engines.aggregation.ordered import sort_minutes
from engines.aggregation.policy import AggregationPolicy
from engines.aggregation.statistics import describe_windows
from ledger.columns import AGGREGATE_MINUTES, WINDOW_NS

WINDOWS: Final = tuple(AGGREGATE_MINUTES.values())
"""Lengths in minutes: 1, 5, 10, 30, 60, 240."""

_COLUMN: Final = {name: position for position, name in enumerate(METRICS)}
_SIDE_SAMPLES: Final = ("dadvv", "signed_dadvv", "gadvv", "signed_gadvv")
"""Rows of ``SideSamples.values``."""


@dataclass(frozen=True, slots=True)
class WindowTable:
    """Aggregates of one window length; row i is the window that starts at minute ``start_minute[i]``."""

    window_minutes: int
    start_minute: NDArray[np.int64]
    """i64[k]: first minute of each window, ascending."""
    window_start_ns: NDArray[np.int64]
    """i64[k]: ns since the epoch, UTC, inclusive."""
    window_end_ns: NDArray[np.int64]
    """i64[k]: ns since the epoch, UTC, exclusive, clipped at the close."""
    available_ns: NDArray[np.int64]
    """i64[k]: equal to ``window_end_ns``."""
    covered_minutes: NDArray[np.uint16]
    """u16[k]: minutes of the session inside the window."""
    short: NDArray[np.bool_]
    """bool[k]: clipped at the close."""
    counts: NDArray[np.int64]
    """i64[k, 10]: what went in and what was left out, as ``columns.COUNTS``."""
    source_span: NDArray[np.int64]
    """i64[k, 4]: first and end row of the window among the underlying's trades, then among the option trades."""
    metrics: NDArray[np.float64]
    """f64[k, 150]: as ``columns.METRICS``, NaN for null."""


def aggregate_session(
    inputs: SessionInputs,
    minutes_in_session: int,
    windows: tuple[int, ...] = WINDOWS,
    policy: AggregationPolicy | None = None,
) -> dict[int, WindowTable]:
    """
    Aggregates of all windows ``[T, T + w)``, for w of ``windows`` in minutes and every minute T of the session.

    Raises:
        ValueError: rows that ``inputs.samples_of`` refuses, or windows that are not positive and ascending.
    """
    return aggregate_starts(inputs, minutes_in_session, range(minutes_in_session), windows, policy)


def aggregate_starts(
    inputs: SessionInputs,
    minutes_in_session: int,
    starts: range | tuple[int, ...] | NDArray[np.int64],
    windows: tuple[int, ...] = WINDOWS,
    policy: AggregationPolicy | None = None,
) -> dict[int, WindowTable]:
    """
    The same for the windows that start at the given minutes only, bit for bit what ``aggregate_session`` gives for them.

    ``inputs`` must hold at least the rows of the windows' minutes and those of the minute before each start (an option
    trade may take its spot from there); ``source_span`` counts rows of ``inputs``.

    Raises:
        ValueError: as above, or starts that are not ascending minutes of the session.
    """
    chosen = np.asarray(starts, dtype=np.int64)
    if len(chosen) and (chosen[0] < 0 or chosen[-1] >= minutes_in_session or (np.diff(chosen) <= 0).any()):
        raise ValueError(f"starts: pass ascending minutes from 0 to {minutes_in_session - 1}, each once")
    if not windows or min(windows) < 1 or list(windows) != sorted(set(windows)):
        raise ValueError(f"windows = {windows}: pass positive lengths in minutes, ascending, each once")
    samples = samples_of(inputs, minutes_in_session, policy or AggregationPolicy())
    lengths = np.array(windows, dtype=np.int64)
    metrics = np.full((len(windows), len(chosen), len(METRICS)), np.nan)
    _describe_underlying(samples, chosen, lengths, metrics)
    _describe_side("puts", samples.puts, PUT_MIX, chosen, lengths, metrics)
    _describe_side("calls", samples.calls, CALL_MIX, chosen, lengths, metrics)
    return {
        window: _table(window, inputs, samples, chosen, minutes_in_session, metrics[position])
        for position, window in enumerate(windows)
    }


def _describe_underlying(
    samples: SessionSamples, starts: NDArray[np.int64], windows: NDArray[np.int64], metrics: NDArray[np.float64]
) -> None:
    """Prices and dollar value of the underlying."""
    minutes = len(samples.prices)
    priced = np.flatnonzero(~np.isnan(samples.prices[:, 0]))
    place = _COLUMN[f"underlying_price_{PRICES[0]}"]
    for position, window in enumerate(windows):
        for row, start in enumerate(starts):
            first, last = np.searchsorted(priced, (start, min(start + window, minutes)))
            if first < last:
                rows = samples.prices[priced[first:last]]
                prices = (rows[0, 0], rows[:, 1].max(), rows[:, 2].min(), rows[-1, 3])
                metrics[position, row, place : place + len(PRICES)] = prices
    _describe_sample(
        "underlying_dollar_value", samples.dollar_value, samples.underlying_offsets, starts, windows, metrics
    )


def _describe_side(
    side: str,
    samples: SideSamples,
    mix: tuple[str, ...],
    starts: NDArray[np.int64],
    windows: NDArray[np.int64],
    metrics: NDArray[np.float64],
) -> None:
    """The mix and the four samples of the puts or the calls."""
    for position, window in enumerate(windows):
        trades = _window_sums(np.diff(samples.offsets)[:, None], starts, int(window))
        shares = np.full((len(starts), len(PUT_MIX)), np.nan)
        np.divide(_window_sums(samples.mix, starts, int(window)), trades, out=shares, where=trades > 0)
        for column, name in enumerate(PUT_MIX):
            if name in mix:
                metrics[position, :, _COLUMN[f"{side}_{name}"]] = shares[:, column]
    if "dollar_value" in mix:
        totals = window_totals(samples.notional, samples.offsets, starts, windows)
        metrics[:, :, _COLUMN[f"{side}_dollar_value"]] = np.where(totals == 0.0, np.nan, totals)
    for row, name in enumerate(_SIDE_SAMPLES):
        _describe_sample(f"{side}_{name}", samples.values[row], samples.offsets, starts, windows, metrics)


def _describe_sample(
    name: str,
    values: NDArray[np.float64],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    windows: NDArray[np.int64],
    metrics: NDArray[np.float64],
) -> None:
    """S14 or S17 of one sample in all windows."""
    if not len(values):
        return
    with_quartiles = name in SAMPLES_WITH_QUARTILES
    place = _COLUMN[f"{name}_total"]
    width = len(S17 if with_quartiles else S14)
    merged, exponents = window_moments(
        minute_partials(values, offsets), minute_powers(values, offsets), starts, windows
    )
    ordered = sort_minutes(values, offsets)
    for position, window in enumerate(windows):
        out = metrics[position, :, place : place + width]
        describe_windows(ordered, offsets, starts, window, merged[position], exponents[position], with_quartiles, out)


def _window_sums(by_minute: NDArray[np.int64], starts: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """i64[starts, columns]: sums of integers over windows, exact as differences of running sums."""
    running = np.zeros((len(by_minute) + 1, by_minute.shape[1]), dtype=np.int64)
    np.cumsum(by_minute, axis=0, out=running[1:])
    return np.asarray(running[np.minimum(starts + window, len(by_minute))] - running[starts])


def _table(
    window: int,
    inputs: SessionInputs,
    samples: SessionSamples,
    starts: NDArray[np.int64],
    minutes_in_session: int,
    metrics: NDArray[np.float64],
) -> WindowTable:
    """Keys, counts and spans beside the metrics of one window length."""
    ends = np.minimum(starts + window, minutes_in_session)
    end_ns = inputs.session_open_ns + ends * WINDOW_NS
    spans = [samples.underlying_rows[starts], samples.underlying_rows[ends]]
    spans += [samples.option_rows[starts], samples.option_rows[ends]]
    counts = _window_sums(samples.counts, starts, window)
    assert counts.shape[1] == len(COUNTS)
    return WindowTable(
        window_minutes=window,
        start_minute=starts,
        window_start_ns=inputs.session_open_ns + starts * WINDOW_NS,
        window_end_ns=end_ns,
        available_ns=end_ns.copy(),
        covered_minutes=(ends - starts).astype(np.uint16),
        short=starts + window > minutes_in_session,
        counts=counts,
        source_span=np.stack(spans, axis=1),
        metrics=metrics,
    )
