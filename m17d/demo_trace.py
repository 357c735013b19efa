"""
One aggregate row traced and recomputed: from the lineage of its cell, over the Parquet files, by one DuckDB statement.

Of the 150 metrics the statement says the 114 that a page of SQL can: prices, shares, sums, moments, quantiles. It shares
nothing with the engine but the names of the columns. DuckDB is imported inside; this module must never ask the daemon.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

NOT_IN_SQL: Final = ("_mode", "_bc", "_dip_pval", "_kde_peaks")
"""Endings of the metrics that are left out."""
_METRICS: Final = ("underlying_price_", "underlying_dollar_value_", "puts_", "calls_")
_KINDS: Final = {
    "trade_ref": ("trades", ("r.file_row_number - c.first_row", "ticker", "sip_timestamp", "price", "size")),
    "aggressor_ref": ("sides", ("ordinal", "side", "method", "confidence")),
    "greeks_ref": ("greeks", ("ordinal", "delta", "gamma", "spot")),
}
"""Column -> name of its rows in the statement, and what is read of them: the place in the trade cell first."""
_ROWS: Final = """{name} AS (
    SELECT c.own, c.symbol, c.minute, {read}
    FROM read_parquet({files}, filename = true, file_row_number = true) AS r
    JOIN cells AS c ON c.kind = '{column}' AND r.filename = c.path AND r.file_row_number BETWEEN c.first_row AND c.end_row - 1
)"""
_NO_ROWS: Final = "{name} AS (SELECT own, symbol, minute, {read} FROM cells WHERE false)"
_STATEMENT: Final = """WITH cells(kind, own, symbol, minute, path, first_row, end_row) AS (VALUES
    {cells}
),
{rows},
own AS (SELECT *, minute::BIGINT * 10000000 + place AS seq FROM trades WHERE own),
options AS (
    SELECT CASE WHEN ticker[-9:-9] = 'C' THEN 'calls' ELSE 'puts' END AS of, price, 100.0 * size AS quantity,
        CAST(ticker[-8:] AS DOUBLE) / 1000 AS strike, side, method,
        coalesce(spot, (SELECT arg_max(o.price, o.seq) FROM own AS o
                        WHERE o.ts <= t.ts AND o.minute BETWEEN t.minute - 1 AND t.minute)) AS s,
        abs(coalesce(delta, 0)) AS d, abs(coalesce(gamma, 0)) AS g,
        CASE side WHEN 'buyer' THEN 2 * confidence - 1 WHEN 'seller' THEN 1 - 2 * confidence ELSE 0 END AS factor
    FROM trades AS t LEFT JOIN sides USING (symbol, minute, place) LEFT JOIN greeks USING (symbol, minute, place)
    WHERE NOT t.own AND NOT regexp_matches(ticker[-16:-16], '[0-9]')
),
valued AS (
    SELECT *, greatest(CASE of WHEN 'calls' THEN s - strike ELSE strike - s END, 0) AS intrinsic
    FROM options WHERE s IS NOT NULL
),
samples AS (
    SELECT 'underlying_dollar_value' AS sample, abs(price * size) AS x FROM own WHERE minute >= {start}
    UNION ALL SELECT of || '_dadvv', d * s * quantity FROM valued
    UNION ALL SELECT of || '_signed_dadvv', factor * d * s * quantity FROM valued
    UNION ALL SELECT of || '_gadvv', g * s * s * quantity FROM valued
    UNION ALL SELECT of || '_signed_gadvv', factor * g * s * s * quantity FROM valued
),
centred AS (
    SELECT *, x - avg(x) OVER (PARTITION BY sample) AS dev, abs(x - median(x) OVER (PARTITION BY sample)) AS away
    FROM samples
),
described AS (
    SELECT sample, sum(x) AS total, min(x) AS minimum, quantile_cont(x, 0.25) AS q1, median(x) AS q2,
        quantile_cont(x, 0.75) AS q3, max(x) AS maximum, avg(x) AS mean,
        CASE WHEN count(x) > 1 THEN sqrt(sum(dev ** 2) / (count(x) - 1)) END AS stddev,
        CASE WHEN minimum < maximum THEN sqrt(count(x)) * sum(dev ** 3) / sum(dev ** 2) ** 1.5 END AS skew,
        CASE WHEN minimum < maximum THEN count(x) * sum(dev ** 4) / sum(dev ** 2) ** 2 END AS kurtosis,
        q3 - q1 AS iqr, median(away) AS mad,
        CASE WHEN minimum < maximum THEN stddev / greatest(abs(mean), 1e-9) END AS cv
    FROM centred GROUP BY sample
),
mixed AS (
    SELECT of, nullif(sum(price * quantity), 0) AS dollar_value, avg((price < intrinsic)::INT) AS below_intrinsic_pct,
        avg((price > intrinsic)::INT) AS above_intrinsic_pct, avg((side = 'unknown')::INT) AS aggressor_unknown_pct,
        avg((method = 'nbbo_touch')::INT) AS classifier_touch_pct,
        avg((method = 'nbbo_at_or_beyond')::INT) AS classifier_at_or_beyond_pct,
        avg((method = 'tick_rule')::INT) AS classifier_tick_rule_pct,
        avg((method = 'unknown')::INT) AS classifier_unknown_pct
    FROM valued GROUP BY of
),
priced AS (
    SELECT arg_min(price, seq) AS open, max(price) AS high, min(price) AS low, arg_max(price, seq) AS close
    FROM own WHERE minute >= {start}
)
SELECT sample || '_' || name, value FROM (UNPIVOT described ON COLUMNS(* EXCLUDE sample) INTO NAME name VALUE value)
UNION ALL SELECT of || '_' || name, value FROM (UNPIVOT mixed ON COLUMNS(* EXCLUDE of) INTO NAME name VALUE value)
UNION ALL SELECT 'underlying_price_' || name, value FROM (UNPIVOT priced ON COLUMNS(*) INTO NAME name VALUE value)
"""


def leaves(cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cells with rows that an aggregate was made from, each once; of its ``lineage`` as JSON."""
    seen = set()
    for one in cell["inputs"]:
        key = (one["column"], one["symbol"], one["minute_idx"])
        if one["column"] in _KINDS and one["rows"] and key not in seen:
            seen.add(key)
            yield one


def statement(cell: dict[str, Any], artifact_root: Path) -> str:
    """
    The one statement that recomputes an aggregate row: names and values of its metrics, nulls left out.

    Args:
        cell: the ``cell`` of the answer to ``lineage`` for an ``aggs_*`` cell with rows.
        artifact_root: the folder that its URIs are relative to.
    """
    cells: list[str] = []
    files: dict[str, set[str]] = {column: set() for column in _KINDS}
    for one in leaves(cell):
        path = str(artifact_root / one["artifact_uri"].partition("#")[0])
        files[one["column"]].add(path)
        own = one["symbol"] == cell["symbol"]
        values = (one["column"], own, one["symbol"], one["minute_idx"], path, *one["rows"])
        cells.append(f"({', '.join(map(_literal, values))})")
    rows = [_rows(column, sorted(files[column])) for column in _KINDS]
    return _STATEMENT.format(cells=",\n    ".join(cells), rows=",\n".join(rows), start=cell["minute_idx"])


def _rows(column: str, files: list[str]) -> str:
    """The relation with the rows of one column's cells."""
    name, read = _KINDS[column]
    names = ("place", *("ts" if one == "sip_timestamp" else one for one in read[1:]))
    if not files:
        return _NO_ROWS.format(name=name, read=", ".join(f"NULL::{_type(one)} AS {one}" for one in names))
    words = ", ".join(f"{one} AS {word}" for one, word in zip(read, names, strict=True))
    return _ROWS.format(name=name, read=words, files=f"[{', '.join(map(_literal, files))}]", column=column)


def _type(name: str) -> str:
    return {"place": "BIGINT", "ts": "BIGINT", "side": "VARCHAR", "method": "VARCHAR", "ticker": "VARCHAR"}.get(
        name, "DOUBLE"
    )


def _literal(value: str | int | bool) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def recompute(cell: dict[str, Any], artifact_root: Path) -> dict[str, float]:
    """The metrics that the statement says, by name; ImportError where DuckDB is not installed (extra ``demo``)."""
    import duckdb

    with duckdb.connect() as connection:
        return {str(name): float(value) for name, value in connection.sql(statement(cell, artifact_root)).fetchall()}


def summary(cell: dict[str, Any]) -> list[str]:
    """What an aggregate was made from, in lines: cells and rows by column, and the sources behind them."""
    rows: dict[str, list[int]] = {}
    sources: dict[str, set[int]] = {}
    stack = list(cell["inputs"])
    while stack:
        one = stack.pop()
        stack += one["inputs"]
        if one["source"]:
            source = f"{one['source']['dataset']} of {one['source']['session']}"
            sources.setdefault(source, set()).add(one["payload_id"])
        if one["curve_date"]:
            sources.setdefault(f"curve of {one['curve_date']}", set()).add(one["payload_id"])
    for one in leaves(cell):
        found = rows.setdefault(one["column"], [0, 0])
        found[0] += 1
        found[1] += one["rows"][1] - one["rows"][0]
    lines = [f"{column}: {cells} cells, {count:,} rows" for column, (cells, count) in rows.items()]
    return lines + [f"{source}: {len(ids)} payloads" for source, ids in sorted(sources.items())]


def differences(recomputed: dict[str, float], held: dict[str, Any]) -> dict[str, float]:
    """Relative difference of every metric that SQL can say, of a millionth at least; 1 where only one side is null."""
    found = {}
    for name in (one for one in held if one.startswith(_METRICS) and not one.endswith(NOT_IN_SQL)):
        mine, theirs = recomputed.get(name), held[name]
        if (mine is None) != (theirs is None):
            found[name] = 1.0
        elif mine is not None:
            found[name] = abs(mine - theirs) / max(abs(mine), abs(theirs), 1e-6)
        else:
            found[name] = 0.0
    return found
