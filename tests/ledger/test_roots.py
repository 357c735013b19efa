"""Option roots: the packaged table, files laid over it, and the symbol every ticker gets."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.columns import OptionRows, SymbolClass
from ledger.roots import RootTable, option_root, symbol_class, symbol_of, underlying_of

TABLE = RootTable.load()


@pytest.mark.parametrize(
    ("root", "underlying", "kind"),
    [
        ("SPX", "SPX", SymbolClass.INDEX),
        ("SPXW", "SPX", SymbolClass.INDEX),
        ("NDXP", "NDX", SymbolClass.INDEX),
        ("RUTW", "RUT", SymbolClass.INDEX),
        ("VIXW", "VIX", SymbolClass.INDEX),
        ("XEO", "XEO", SymbolClass.INDEX),
        ("BRKB", "BRK.B", SymbolClass.STOCK),
        ("BFB", "BF.B", SymbolClass.STOCK),
        ("TWX", "TWX", SymbolClass.STOCK),
        ("NWSA", "NWSA", SymbolClass.STOCK),
        ("TWX1", "TWX", SymbolClass.STOCK),
        ("BRKB2", "BRK.B", SymbolClass.STOCK),
        ("SPXW12", "SPX", SymbolClass.INDEX),
    ],
)
def test_packaged_table_maps_roots_to_underlyings(root: str, underlying: str, kind: SymbolClass) -> None:
    """Index roots, share classes, plain roots and adjusted roots all find their underlying and its class."""
    assert TABLE.underlying(root) == underlying
    assert TABLE.root_class(root) is kind


def test_settlement_exercise_and_multiplier_of_packaged_roots() -> None:
    """Monthly index roots settle at the open, weeklies at the close; only nanos and minis differ from 100."""
    settled = {root for root, entry in TABLE.entries.items() if entry.am_settled}
    assert {"SPX", "NDX", "RUT", "VIX"} <= settled
    assert not settled & {"SPXW", "NDXP", "RUTW", "XSP", "OEX", "BRKB"}
    assert TABLE.root("SPXW").exercise == "european"
    assert TABLE.root("OEX").exercise == TABLE.root("TWX").exercise == "american"
    assert [TABLE.multiplier(root) for root in ("TWX", "SPXW", "NANOS", "AAPL7", "AAPL1")] == [100, 100, 1, 10, 100]


def test_roots_ending_in_a_digit_are_not_standard() -> None:
    """Adjusted deliverables are recognised by their last character."""
    assert [TABLE.is_standard(root) for root in ("TWX", "TWX1", "AAPL7", "SPXW")] == [True, False, False, True]


@pytest.mark.parametrize("root", ["", "TOOLONGX", "spy", "1SPY", "SP Y", "BRK.B", "SPY\n", "SPÝ"])
def test_malformed_root_is_refused(root: str) -> None:
    """A root that OPRA could not send is an error, not a stock of that name."""
    with pytest.raises(ValueError, match="malformed option root"):
        TABLE.underlying(root)


@pytest.mark.parametrize(
    ("ticker", "root"),
    [
        ("O:SPXW210106C03700000", "SPXW"),
        ("O:TWX140621C00070000", "TWX"),
        ("O:TWX1140621P00070000", "TWX1"),
        ("O:A991231P99999999", "A"),
        ("O:GOOGL151224C00750000", "GOOGL"),
    ],
)
def test_option_root_is_read_from_the_right(ticker: str, root: str) -> None:
    """Digits behind the root's letters belong to the root, the last fifteen characters to the contract."""
    assert option_root(ticker) == root


@pytest.mark.parametrize(
    "ticker",
    [
        "SPY",
        "O:SPXW",
        "O:SPXW210106X03700000",
        "O:SPXW211306C03700000",
        "O:SPXW210132C03700000",
        "O:SPXW210100C03700000",
        "O:spxw210106C03700000",
        "O:SPXW210106C0370000",
        "O:210106C03700000",
        "O:TOOLONG210106C03700000",
        "O:SPXW210106C03700000\n",
        "O:SPXW210106C0370000٣",
        "",
    ],
)
def test_option_root_refuses_malformed_tickers(ticker: str) -> None:
    """Everything off the pattern is named in the error."""
    with pytest.raises(ValueError, match="malformed option ticker"):
        option_root(ticker)


def test_symbol_of_follows_option_rows_and_leaves_stocks_alone() -> None:
    """Chains drop the contract, contracts keep it, stock tickers are their own symbols."""
    ticker = "O:SPXW210106C03700000"
    assert symbol_of(ticker, OptionRows.CHAIN) == "O:SPXW"
    assert symbol_of(ticker, OptionRows.CONTRACT) == ticker
    assert symbol_of("BRK.B", OptionRows.CHAIN) == symbol_of("BRK.B", OptionRows.CONTRACT) == "BRK.B"
    for rows in OptionRows:
        with pytest.raises(ValueError, match="malformed option ticker"):
            symbol_of("O:SPXW", rows)
        with pytest.raises(ValueError, match="empty ticker"):
            symbol_of("", rows)


def test_symbol_class_and_underlying_of_every_kind() -> None:
    """Chains and contracts have an underlying, stocks and indices have none."""
    expected = {
        "O:SPXW": (SymbolClass.CHAIN, "SPX"),
        "O:TWX1": (SymbolClass.CHAIN, "TWX"),
        "O:BRKB210115C00230000": (SymbolClass.CONTRACT, "BRK.B"),
        "SPX": (SymbolClass.INDEX, None),
        "SPXW": (SymbolClass.STOCK, None),
        "AIG": (SymbolClass.STOCK, None),
    }
    assert {symbol: (symbol_class(symbol, TABLE), underlying_of(symbol, TABLE)) for symbol in expected} == expected
    with pytest.raises(ValueError, match="malformed option ticker"):
        symbol_class("O:twx", TABLE)


def test_a_file_is_laid_over_the_packaged_table(tmp_path: Path) -> None:
    """Its tables replace those of the same root, the others stay, and the fingerprint follows the content."""
    path = tmp_path / "roots.toml"
    path.write_text('[SPXW]\nunderlying = "SPY"\n[NEWIX]\nclass = "index"\nmultiplier = 10\n', encoding="utf-8")
    table = RootTable.load(path)
    assert (table.underlying("SPXW"), table.root_class("SPXW")) == ("SPY", SymbolClass.STOCK)
    assert table.is_index("NEWIX") and not TABLE.is_index("NEWIX")
    assert table.underlying("BRKB") == "BRK.B" and table.is_index("SPX")
    assert table.fingerprint() != TABLE.fingerprint() == RootTable.load().fingerprint()
    path.write_text('[SPX]\nclass = "index"\nam_settled = true\nexercise = "european"\n', encoding="utf-8")
    assert RootTable.load(path).fingerprint() == TABLE.fingerprint()
    assert 0 <= TABLE.fingerprint() < 2**64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[SPX", "not valid TOML"),
        ("[spx]\n", "a root is 1 to 6"),
        ("SPX = 3\n", "expected a table"),
        ('[SPX]\nkind = "index"\n', "unknown field 'kind'"),
        ('[SPX]\nmultiplier = "100"\n', "multiplier must be of type int"),
        ("[SPX]\nmultiplier = true\n", "multiplier must be of type int"),
        ("[SPX]\nmultiplier = 0\n", "at least 1"),
        ('[SPX]\nclass = "chain"\n', "class must be"),
        ('[SPX]\nexercise = "bermudan"\n', "exercise must be"),
        ('[SPX]\nunderlying = ""\n', "underlying must be"),
        ('[SPX]\nunderlying = "O:SPX"\n', "underlying must be"),
    ],
)
def test_a_faulty_file_is_refused_with_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    """The error says which file, which root and what is wrong."""
    path = tmp_path / "faulty.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        RootTable.load(path)
    assert "faulty.toml" in str(caught.value)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    """A configured file that is not there is never silently the packaged table."""
    with pytest.raises(FileNotFoundError):
        RootTable.load(tmp_path / "absent.toml")


def test_the_table_survives_pickling() -> None:
    """Tasks carry the table into workers."""
    assert pickle.loads(pickle.dumps(TABLE)) == TABLE


@settings(max_examples=50, deadline=None)
@given(st.from_regex(r"[A-Z]{1,6}[0-9]{0,2}", fullmatch=True), st.integers(0, 99_999_999), st.sampled_from("CP"))
def test_every_well_formed_contract_gives_back_its_root(root: str, strike: int, right: str) -> None:
    """Root and contract are told apart whatever the root's digits."""
    ticker = f"O:{root}140621{right}{strike:08d}"
    assert option_root(ticker) == root
    assert symbol_class(ticker, TABLE) is SymbolClass.CONTRACT
    assert underlying_of(symbol_of(ticker, OptionRows.CHAIN), TABLE) == underlying_of(ticker, TABLE)
