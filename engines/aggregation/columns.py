"""
The words of an aggregate row: keys, counts and the 150 metrics in order, each with its meaning and unit.

The order of ``METRICS`` is the order of the columns in the kernel's result, in Parquet and in the content hash. Read by
the daemon too, so this module must never import numpy or numba.
"""

from __future__ import annotations

from typing import Final, NamedTuple

S14: Final = (
    "total",
    "minimum",
    "maximum",
    "mean",
    "stddev",
    "skew",
    "kurtosis",
    "iqr",
    "mad",
    "cv",
    "mode",
    "bc",
    "dip_pval",
    "kde_peaks",
)
"""Statistics of most samples, in order."""
S17: Final = (*S14[:2], "q1", "q2", "q3", *S14[2:])
"""Statistics of the calls' gadvv samples: S14 with the quartiles after the minimum."""

SAMPLES: Final = (
    "underlying_dollar_value",
    "puts_dadvv",
    "puts_signed_dadvv",
    "puts_gadvv",
    "puts_signed_gadvv",
    "calls_dadvv",
    "calls_signed_dadvv",
    "calls_gadvv",
    "calls_signed_gadvv",
)
"""The samples that are described by S14 or S17, in the order of their columns."""
SAMPLES_WITH_QUARTILES: Final = ("calls_gadvv", "calls_signed_gadvv")
"""The samples that are described by S17."""

PRICES: Final = ("open", "high", "low", "close")
PUT_MIX: Final = (
    "below_intrinsic_pct",
    "above_intrinsic_pct",
    "aggressor_unknown_pct",
    "classifier_touch_pct",
    "classifier_at_or_beyond_pct",
    "classifier_tick_rule_pct",
    "classifier_unknown_pct",
)
CALL_MIX: Final = ("dollar_value", *PUT_MIX[1:])


class Field(NamedTuple):
    """One column of an aggregate row: what goes into its Parquet field metadata."""

    name: str
    meaning: str
    unit: str

    @property
    def metadata(self) -> dict[str, str]:
        """Parquet field metadata."""
        return {"meaning": self.meaning, "unit": self.unit}


_SAMPLE_MEANING: Final = {
    "underlying_dollar_value": "price * size of every trade of the underlying",
    "dadvv": "|delta| * spot * size * multiplier of every {side} trade with a spot",
    "signed_dadvv": "(2 * p_buy - 1) * |delta| * spot * size * multiplier of every {side} trade with a spot",
    "gadvv": "|gamma| * spot^2 * size * multiplier of every {side} trade with a spot",
    "signed_gadvv": "(2 * p_buy - 1) * |gamma| * spot^2 * size * multiplier of every {side} trade with a spot",
}
_STATISTIC: Final = {
    "total": ("sum", "sample"),
    "minimum": ("smallest value", "sample"),
    "q1": ("first quartile, linear interpolation at 0.25 * (n - 1)", "sample"),
    "q2": ("median", "sample"),
    "q3": ("third quartile, linear interpolation at 0.75 * (n - 1)", "sample"),
    "maximum": ("largest value", "sample"),
    "mean": ("arithmetic mean", "sample"),
    "stddev": ("standard deviation with n - 1; null for n = 1", "sample"),
    "skew": ("sqrt(n) * M3 / M2^1.5 of central power sums; null unless n > 1 and variance > 0", "1"),
    "kurtosis": ("n * M4 / M2^2, not excess (a normal has 3); null unless n > 1 and variance > 0", "1"),
    "iqr": ("third quartile minus first quartile", "sample"),
    "mad": ("median of |x - median|, unscaled", "sample"),
    "cv": ("stddev / max(|mean|, 1e-9); null unless stddev > 0", "1"),
    "mode": (
        (
            "n <= 16: most frequent value, the smallest of equals; else centre of the fullest Freedman-Diaconis bin,"
            " the last of equals (Scott's width where the IQR is 0, the middle value where the stddev is 0 too)"
        ),
        "sample",
    ),
    "bc": (
        "Box-Cox lambda of greatest likelihood among -2, -1.75 ... 2; null unless n >= 2, all values > 0, not all equal",
        "1",
    ),
    "dip_pval": (
        "p-value of Hartigan's dip, interpolated in the published table of its quantiles; null for n < 3, 1 for n = 3",
        "1",
    ),
    "kde_peaks": (
        (
            "maxima of a Gaussian kernel density (bandwidth 1.06 * stddev * n^-0.2) on 129 points from minimum to"
            " maximum; n for n < 3, 1 where stddev is 0"
        ),
        "count",
    ),
}
_PRICE_MEANING: Final = {
    "open": "price of the first trade of the underlying",
    "high": "highest price of the underlying",
    "low": "lowest price of the underlying",
    "close": "price of the last trade of the underlying",
}
_MIX_MEANING: Final = {
    "dollar_value": "sum of price * size * multiplier of the {side} trades with a spot; null where it is 0",
    "below_intrinsic_pct": "share of {side} trades priced below their intrinsic value at their spot",
    "above_intrinsic_pct": "share of {side} trades priced above their intrinsic value at their spot",
    "aggressor_unknown_pct": "share of {side} trades whose aggressor is unknown",
    "classifier_touch_pct": "share of {side} trades decided by the quote, at the touch or through it",
    "classifier_at_or_beyond_pct": "share of {side} trades decided by the quote, inside the spread",
    "classifier_tick_rule_pct": "share of {side} trades decided by the tick rule",
    "classifier_unknown_pct": "share of {side} trades that no rule decided",
}


def _sample_unit(sample: str) -> str:
    # gadvv is dollars of delta per unit relative move of the spot: gamma * spot^2 * shares.
    return "USD per unit return" if sample.endswith("gadvv") else "USD"


def _sample_fields(sample: str) -> list[Field]:
    side, _, kind = sample.partition("_")
    of = _SAMPLE_MEANING.get(kind, _SAMPLE_MEANING.get(sample, "")).format(side=side.removesuffix("s"))
    fields = []
    for statistic in S17 if sample in SAMPLES_WITH_QUARTILES else S14:
        meaning, unit = _STATISTIC[statistic]
        unit = _sample_unit(sample) if unit == "sample" else unit
        fields.append(Field(f"{sample}_{statistic}", f"{meaning}; sample: {of}", unit))
    return fields


def _mix_fields(side: str, mix: tuple[str, ...]) -> list[Field]:
    return [
        Field(
            f"{side}_{name}",
            _MIX_MEANING[name].format(side=side.removesuffix("s")),
            "USD" if name == "dollar_value" else "fraction 0..1",
        )
        for name in mix
    ]


def _all_fields() -> tuple[Field, ...]:
    fields = [Field(f"underlying_price_{name}", _PRICE_MEANING[name], "USD") for name in PRICES]
    for sample in SAMPLES:
        if sample == "puts_dadvv":
            fields += _mix_fields("puts", PUT_MIX)
        if sample == "calls_dadvv":
            fields += _mix_fields("calls", CALL_MIX)
        fields += _sample_fields(sample)
    return tuple(fields)


METRIC_FIELDS: Final = _all_fields()
"""The 150 metrics in order; f64, null where a metric is not defined for the window's rows."""
METRICS: Final = tuple(field.name for field in METRIC_FIELDS)
"""Names of the 150 metrics in order."""

PLACE_FIELDS: Final = (
    Field("symbol", "underlying of the row", "text"),
    Field("minute", "minute of the session that the window starts at, from 0", "minutes"),
    Field("window", "length of the window: 1m, 5m, 10m, 30m, 1h or 4h", "text"),
)
KEY_FIELDS: Final = (
    Field("window_start_ns", "start of the window, inclusive", "ns since the epoch, UTC"),
    Field("window_end_ns", "end of the window, exclusive, at the close at the latest", "ns since the epoch, UTC"),
    Field("available_ns", "when the row can first be known: the end of the window", "ns since the epoch, UTC"),
    Field("covered_minutes", "minutes of the session inside the window", "minutes"),
    Field("short", "the window would end behind the close and was clipped there", "flag"),
)
COUNT_FIELDS: Final = (
    Field("underlying_trades", "trades of the underlying that went in", "count"),
    Field("underlying_left_out_cancelled", "trades of the underlying left out: cancelled", "count"),
    Field("puts", "put trades that went in", "count"),
    Field("calls", "call trades that went in", "count"),
    Field("spot_from_last_trade", "option trades that went in with the underlying's last trade as spot", "count"),
    Field("null_delta", "option trades that went in without a delta, which counts as 0", "count"),
    Field("null_gamma", "option trades that went in without a gamma, which counts as 0", "count"),
    Field("left_out_cancelled", "option trades left out: cancelled", "count"),
    Field("left_out_nonstandard", "option trades left out: adjusted deliverable", "count"),
    Field("left_out_no_spot", "option trades left out: no price of the underlying", "count"),
)
KEYS: Final = tuple(field.name for field in KEY_FIELDS)
COUNTS: Final = tuple(field.name for field in COUNT_FIELDS)

assert len(METRICS) == len(set(METRICS)) == 150
