"""The words of an aggregate row."""

from __future__ import annotations

import pytest

from engines.aggregation.columns import METRIC_FIELDS, METRICS, S14, S17
from engines.aggregation.policy import AggregationPolicy


def test_metrics_are_the_150_in_order() -> None:
    """Blocks follow each other as the reader expects them."""
    assert len(METRICS) == 150 and len(S14) == 14 and len(S17) == 17
    assert METRICS[:5] == (
        "underlying_price_open",
        "underlying_price_high",
        "underlying_price_low",
        "underlying_price_close",
        "underlying_dollar_value_total",
    )
    assert METRICS[18] == "puts_below_intrinsic_pct" and METRICS[25] == "puts_dadvv_total"
    assert METRICS[81] == "calls_dollar_value" and METRICS[88] == "calls_dadvv_total"
    assert METRICS[116:121] == tuple(f"calls_gadvv_{name}" for name in ("total", "minimum", "q1", "q2", "q3"))
    assert METRICS[-1] == "calls_signed_gadvv_kde_peaks" and "calls_below_intrinsic_pct" not in METRICS


def test_every_metric_says_what_it_is_and_in_what_unit() -> None:
    """Meaning and unit of each are there, with nothing left to fill in."""
    for field in METRIC_FIELDS:
        assert field.meaning and field.unit and "{" not in field.meaning, field
    by_name = {field.name: field for field in METRIC_FIELDS}
    assert "not excess" in by_name["puts_dadvv_kurtosis"].meaning
    assert "Box-Cox lambda" in by_name["puts_dadvv_bc"].meaning
    assert by_name["calls_dadvv_iqr"].metadata["unit"] == "USD"


def test_policy_refuses_unknown_words_and_names_its_recipe() -> None:
    """A misspelt setting is an error; a known one changes the recipe."""
    with pytest.raises(ValueError, match="prints"):
        AggregationPolicy(prints="some")  # type: ignore[arg-type]
    assert AggregationPolicy().recipe() != AggregationPolicy(prints="eligible").recipe()
