"""
One synthetic session whose truth is known: flat files and yields in upstream's formats, with planted defects.

``write_session`` writes what a day of the feed would bring for five stocks and three option chains, and beside it who
was the aggressor of every trade, at which volatility every contract was priced, how many rows every ticker has, and
what is wrong on purpose. It is for demonstrations and tests. It must never know the ledger, read a clock, or draw from
anything but its seed: equal arguments give equal bytes.

Files under the directory::

    flatfiles/us_stocks_sip/{trades_v1,quotes_v1}/YYYY/MM/YYYY-MM-DD.csv.gz
    flatfiles/us_options_opra/{trades_v1,quotes_v1}/YYYY/MM/YYYY-MM-DD.csv.gz
    treasury/treasury-yields.json
    repair/...              the complete file for each one that is damaged, at the same relative path
    truth.json              the Truth that write_session returns
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from datetime import date, time
from pathlib import Path
from typing import Final

import numpy as np

from engines.feeds.synthetic_bulk import write_bulk
from engines.feeds.synthetic_files import (
    FlatFile,
    TickerCounts,
    flat_file_path,
    option_quotes_file,
    option_trades_file,
    stock_quotes_file,
    stock_trades_file,
    write_flat_file,
    write_treasury,
)
from engines.feeds.synthetic_market import (
    MINUTE_NS,
    MINUTES,
    STOCKS,
    QuoteRows,
    SessionClock,
    StockProfile,
    TradeRows,
    generator,
    local_ns,
    make_quotes,
    make_trades,
    minute_index,
    session_clock,
)
from engines.feeds.synthetic_options import Chain, Contract, make_chain, make_curves, previous_weekday
from ledger.columns import Dataset

__all__ = ["Defect", "FileTruth", "TradeTruth", "Truth", "write_bulk", "write_session"]

SILENT_STOCK: Final = "DUNE"
SILENT_FROM_MINUTE: Final = 45
SILENT_TO_MINUTE: Final = 70
UNQUOTED_ROOT: Final = "CALX"
SHARES_SINCE: Final = date(2025, 11, 3)
"""From this date stock quote sizes are shares; before, round lots of 100."""
_TREASURY_FILE: Final = "treasury/treasury-yields.json"


@dataclass(frozen=True, slots=True)
class TradeTruth:
    """
    Trades of one ticker in the order of the complete file; all lists have the same length, position = ordinal.

    ``sequence_number`` is 0 for options, whose file has none. ``side`` is the planted aggressor, ``B``, ``S`` or ``U``;
    ``placement`` one of ``touch inside mid derived auction cancelled model``. At ``touch``, ``inside`` and ``model`` the
    side is what the quote that stood tells, unless ``tied`` says that a quote of the ticker has the trade's timestamp.
    ``spot`` and ``rate`` (options only, else empty) are what the model's price stands on.
    """

    sip_timestamp: list[int]
    sequence_number: list[int]
    side: list[str]
    placement: list[str]
    tied: list[bool]
    spot: list[float]
    rate: list[float]


@dataclass(frozen=True, slots=True)
class FileTruth:
    """Counts of one flat file by ticker: as written, and as in the complete file."""

    path: str
    rows: int
    counts: dict[str, TickerCounts]
    complete_rows: int
    complete_counts: dict[str, TickerCounts]


@dataclass(frozen=True, slots=True)
class Defect:
    """
    Something wrong on purpose. Minutes count from the open, half-open; ``files`` are relative paths whose complete form
    is under ``repair/``; ``remedy`` says what closes it, empty where nothing has to be done.
    """

    kind: str
    symbol: str
    from_minute: int
    to_minute: int
    columns: list[str]
    files: list[str]
    facts: dict[str, int | float | str]
    remedy: str


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of a written session; ``files`` by dataset, ``trades`` and ``contracts`` by ticker. Times ns UTC."""

    session: str
    seed: int
    scale: float
    damaged: bool
    open_ns: int
    close_ns: int
    quote_size_unit: str
    curve_date: str
    curve_effective_ns: int
    curve: dict[str, float]
    files: dict[str, FileTruth]
    trades: dict[str, TradeTruth]
    contracts: dict[str, Contract]
    defects: list[Defect]

    def as_json(self) -> str:
        """The text of truth.json."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def write_session(
    directory: Path, *, session: str = "2026-03-10", seed: int = 17, scale: float = 1.0, damage: bool = True
) -> Truth:
    """
    Write one synthetic session under a directory.

    Args:
        directory: made if absent; files of an earlier call are replaced.
        session: ISO date of a weekday. Weekdays count as sessions and the close is 16:00: choose a date around which no
            holiday moves the previous session or the expiries.
        seed: equal seeds give equal bytes.
        scale: factor on the number of rows; 1.0 is roughly 200,000 in all.
        damage: leave out what the first three defects take away, and write the complete files under ``repair/``.

    Returns:
        The truth, also written as truth.json.

    Raises:
        ValueError: no ISO date, a weekend, a negative seed, or a scale that is not a positive number.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale {scale} is not a positive number")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative")
    clock = session_clock(session)
    curves = make_curves(clock)
    held = previous_weekday(clock.session)
    stocks, chains = _make_market(clock, curves[held.isoformat()], seed, scale)
    shares_per_unit = 1 if clock.session >= SHARES_SINCE else 100
    complete = (
        stock_trades_file([(profile, trades) for profile, _, trades in stocks]),
        stock_quotes_file([(profile, quotes) for profile, quotes, _ in stocks], shares_per_unit),
        option_trades_file(chains),
        option_quotes_file(chains),
    )
    files = {}
    for file in complete:
        written = _damaged(file, clock) if damage else file
        files[file.dataset.value] = _write_file(directory, clock, written, file)
    _write_yields(directory, curves, held, damage)
    truth = Truth(
        session=session,
        seed=seed,
        scale=scale,
        damaged=damage,
        open_ns=clock.open_ns,
        close_ns=clock.close_ns,
        quote_size_unit="shares" if shares_per_unit == 1 else "round_lots",
        curve_date=held.isoformat(),
        curve_effective_ns=local_ns(held, time(18)),
        curve=curves[held.isoformat()],
        files=files,
        trades=_trade_truths(stocks, chains, complete[0]),
        contracts={contract.ticker: contract for chain in chains for contract in chain.contracts},
        defects=_defects(clock, held, stocks, chains, files, damage),
    )
    (directory / "truth.json").write_text(truth.as_json(), encoding="ascii")
    return truth


def _make_market(
    clock: SessionClock, curve: dict[str, float], seed: int, scale: float
) -> tuple[list[tuple[StockProfile, QuoteRows, TradeRows]], list[Chain]]:
    stocks, chains = [], []
    for rank, profile in enumerate(STOCKS):
        quotes = make_quotes(profile, clock, generator(seed, rank, 0), scale)
        stocks.append((profile, quotes, make_trades(profile, clock, quotes, generator(seed, rank, 1), scale)))
        if profile.has_options:
            chains.append(make_chain(profile, clock, quotes, curve, generator(seed, rank, 2), scale))
    return stocks, chains


def _damaged(file: FlatFile, clock: SessionClock) -> FlatFile:
    """The file as the damaged session has it; the file itself where nothing is planted in it."""
    if file.dataset is Dataset.STOCK_TRADES:
        minutes = minute_index(file.sip_timestamp, clock)
        silent = (minutes >= SILENT_FROM_MINUTE) & (minutes < SILENT_TO_MINUTE)
        return file.without(silent & (file.ticker_index == file.tickers.index(SILENT_STOCK)))
    if file.dataset is Dataset.OPTION_QUOTES:
        of_root = np.array([_root(ticker) == UNQUOTED_ROOT for ticker in file.tickers])
        return file.without(of_root[file.ticker_index])
    return file


def _root(ticker: str) -> str:
    return ticker.removeprefix("O:")[:-15]


def _write_file(directory: Path, clock: SessionClock, written: FlatFile, complete: FlatFile) -> FileTruth:
    session = clock.session.isoformat()
    path = write_flat_file(directory / "flatfiles", session, written)
    if written is not complete:
        write_flat_file(directory / "repair" / "flatfiles", session, complete)
    else:
        # An earlier damaged call may have left one; nothing is to be repaired any more.
        flat_file_path(directory / "repair" / "flatfiles", written.dataset, session).unlink(missing_ok=True)
    complete_counts = complete.counts(clock)
    return FileTruth(
        path=path.relative_to(directory).as_posix(),
        rows=len(written.lines),
        counts=complete_counts if written is complete else written.counts(clock),
        complete_rows=len(complete.lines),
        complete_counts=complete_counts,
    )


def _write_yields(directory: Path, curves: dict[str, dict[str, float]], held: date, damage: bool) -> None:
    if not damage:
        write_treasury(directory / _TREASURY_FILE, curves)
        (directory / "repair" / _TREASURY_FILE).unlink(missing_ok=True)
        return
    late = {day: curve for day, curve in curves.items() if day != held.isoformat()}
    write_treasury(directory / _TREASURY_FILE, late)
    write_treasury(directory / "repair" / _TREASURY_FILE, curves)


def _trade_truths(
    stocks: list[tuple[StockProfile, QuoteRows, TradeRows]],
    chains: list[Chain],
    stock_file: FlatFile,
) -> dict[str, TradeTruth]:
    truths = {}
    for index, (profile, quotes, rows) in enumerate(stocks):
        truths[profile.ticker] = TradeTruth(
            rows.sip_timestamp.tolist(),
            stock_file.sequence_number[stock_file.ticker_index == index].tolist(),
            rows.side.tolist(),
            rows.placement.tolist(),
            np.isin(rows.sip_timestamp, quotes.sip_timestamp).tolist(),
            [],
            [],
        )
    for chain in chains:
        trades = chain.trades
        for index, contract in enumerate(chain.contracts):
            chosen = trades.contract == index
            if not chosen.any():
                continue
            quoted = chain.quotes.sip_timestamp[chain.quotes.contract == index]
            truths[contract.ticker] = TradeTruth(
                trades.sip_timestamp[chosen].tolist(),
                [0] * int(chosen.sum()),
                trades.side[chosen].tolist(),
                trades.placement[chosen].tolist(),
                np.isin(trades.sip_timestamp[chosen], quoted).tolist(),
                trades.spot[chosen].tolist(),
                trades.rate[chosen].tolist(),
            )
    return truths


def _defects(
    clock: SessionClock,
    held: date,
    stocks: list[tuple[StockProfile, QuoteRows, TradeRows]],
    chains: list[Chain],
    files: dict[str, FileTruth],
    damage: bool,
) -> list[Defect]:
    session = clock.session.isoformat()
    planted = _repairable_defects(session, held, files) if damage else []
    for profile, _, rows in stocks:
        for position in np.flatnonzero(rows.placement == "cancelled").tolist():
            at = int(rows.sip_timestamp[position])
            minute = (at - clock.open_ns) // MINUTE_NS
            facts: dict[str, int | float | str] = {
                "sip_timestamp": at,
                "price": float(rows.price[position]),
                "size": int(rows.size[position]),
                "conditions": str(rows.conditions[position]),
                "correction": str(rows.correction[position]),
            }
            remedy = 'prints = "eligible" in the configuration leaves it out'
            columns = ["aggressor_ref", "aggs_1m"]
            planted.append(Defect("cancelled_block", profile.ticker, minute, minute + 1, columns, [], facts, remedy))
    for chain in chains:
        for expiry in sorted({contract.expiry_date for contract in chain.contracts}):
            if date.fromisoformat(expiry).weekday() == 5:
                expiry_ns = next(contract.expiry_ns for contract in chain.contracts if contract.expiry_date == expiry)
                facts = {"expiry_date": expiry, "expiry_ns": expiry_ns}
                planted.append(Defect("saturday_expiry", f"O:{chain.root}", 0, MINUTES, ["greeks_ref"], [], facts, ""))
    return planted


def _repairable_defects(session: str, held: date, files: dict[str, FileTruth]) -> list[Defect]:
    trades, quotes = files[Dataset.STOCK_TRADES.value], files[Dataset.OPTION_QUOTES.value]
    put_back = "put the file from repair/ in its place, then: m17ctl refill {} --session {} {}--cause repaired"
    silent_range = f"--from 10:15 --to 10:40 --symbols {SILENT_STOCK} "
    root = f"O:{UNQUOTED_ROOT}"
    return [
        Defect(
            kind="silent_trades",
            symbol=SILENT_STOCK,
            from_minute=SILENT_FROM_MINUTE,
            to_minute=SILENT_TO_MINUTE,
            columns=["trade_ref"],
            files=[trades.path],
            facts={"missing_rows": trades.complete_rows - trades.rows},
            remedy=put_back.format("trade_ref", session, silent_range),
        ),
        Defect(
            kind="chain_without_quotes",
            symbol=root,
            from_minute=0,
            to_minute=MINUTES,
            columns=["quote_ref"],
            files=[quotes.path],
            facts={"missing_rows": quotes.complete_rows - quotes.rows},
            remedy=put_back.format("quote_ref", session, f"--symbols '{root}*' "),
        ),
        Defect(
            kind="late_curve",
            symbol="*",
            from_minute=0,
            to_minute=MINUTES,
            columns=["rf_rate_ref"],
            files=[_TREASURY_FILE],
            facts={"curve_date": held.isoformat(), "held_until_repair": previous_weekday(held).isoformat()},
            remedy=put_back.format("rf_rate_ref", session, ""),
        ),
    ]
