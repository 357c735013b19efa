"""
Option roots: which underlying a root stands for, its multiplier, settlement and exercise, and which symbol a ticker gets.

The packaged table ``roots.toml`` names the roots that differ from "the stock of the same name"; a file from the config
is laid over it. Tickers are case-sensitive and in OPRA form: ``O:`` + root + YYMMDD + C or P + strike x 1000 in eight
digits; the root is 1 to 6 letters and, for adjusted deliverables, digits behind them. This module must never import
anything but the standard library and ``ledger.columns``, allocate a symbol, or guess at a ticker that is malformed.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ledger.columns import OptionRows, SymbolClass

if TYPE_CHECKING:
    import os

PACKAGED_TABLE: Final = Path(__file__).with_name("roots.toml")
"""The table that comes with the package."""
OPTION_PREFIX: Final = "O:"
"""What every option ticker and chain symbol begins with."""

Exercise = Literal["american", "european"]

_ROOT: Final = re.compile(r"[A-Z]{1,6}[0-9]{0,3}", re.ASCII)
_CONTRACT: Final = re.compile(
    r"O:([A-Z]{1,6}[0-9]{0,3})[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[CP][0-9]{8}", re.ASCII
)
_FIELDS: Final = {"underlying": str, "class": str, "multiplier": int, "am_settled": bool, "exercise": str}


@dataclass(frozen=True, slots=True)
class Root:
    """What the table says of one option root; ``multiplier`` is units of the underlying per contract."""

    underlying: str
    symbol_class: SymbolClass = SymbolClass.STOCK
    multiplier: int = 100
    am_settled: bool = False
    exercise: Exercise = "american"


@dataclass(frozen=True, slots=True)
class RootTable:
    """
    The table of option roots; immutable and picklable, so that a task can carry it into a worker.

    Roots that are not in it stand for the stock of their own name, 100 shares, American, settled at the close.
    """

    entries: dict[str, Root]
    indices: frozenset[str]

    @staticmethod
    def load(path: str | os.PathLike[str] | None = None) -> RootTable:
        """
        Read the packaged table and, where ``path`` is given, lay that TOML file over it, root by root.

        Raises:
            OSError: the file cannot be read.
            ValueError: not TOML, or a table in it has an unknown field, a wrong type or an impossible value; the message
                names file, root and field.
        """
        entries = _read_table(PACKAGED_TABLE)
        if path is not None:
            entries.update(_read_table(Path(path)))
        indices = frozenset(entry.underlying for entry in entries.values() if entry.symbol_class is SymbolClass.INDEX)
        return RootTable(entries=dict(sorted(entries.items())), indices=indices)

    def root(self, root: str) -> Root:
        """
        Everything known of a root; a root ending in digits that has no entry takes after the root without them.

        Raises:
            ValueError: ``root`` is not 1 to 6 capital letters with optional digits behind them.
        """
        entry = self.entries.get(root)
        if entry is not None:
            return entry
        if _ROOT.fullmatch(root) is None:
            raise ValueError(f"malformed option root {root!r}: expected 1 to 6 capital letters, then optional digits")
        bare = root.rstrip("0123456789")
        if bare != root:
            return self.root(bare)
        return Root(underlying=root)

    def underlying(self, root: str) -> str:
        """Ticker of the underlying, such as ``SPX`` for ``SPXW`` and ``BRK.B`` for ``BRKB``; raises as :meth:`root`."""
        return self.root(root).underlying

    def root_class(self, root: str) -> SymbolClass:
        """Class of the root's underlying, STOCK or INDEX; raises as :meth:`root`."""
        return self.root(root).symbol_class

    def multiplier(self, root: str) -> int:
        """Units of the underlying per contract; nominal where the root is not standard; raises as :meth:`root`."""
        return self.root(root).multiplier

    def is_standard(self, root: str) -> bool:
        """False where the root ends in a digit: an adjusted deliverable, which no pricing formula fits."""
        return not root[-1:].isdigit()

    def is_index(self, symbol: str) -> bool:
        """True where the ticker is an index that options in this table stand on."""
        return symbol in self.indices

    def fingerprint(self) -> int:
        """Unsigned 64-bit hash of the table's content: equal tables, equal number, whatever file they came from."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.entries.items()):
            fields = (name, entry.underlying, entry.symbol_class.value, str(entry.multiplier))
            digest.update("\t".join((*fields, str(int(entry.am_settled)), entry.exercise)).encode() + b"\n")
        return int.from_bytes(digest.digest()[:8], "little")


def option_root(ticker: str) -> str:
    """
    The root of an OPRA ticker: ``O:SPXW210106C03700000`` gives ``SPXW``.

    Raises:
        ValueError: the ticker is not an option contract in OPRA form.
    """
    match = _CONTRACT.fullmatch(ticker)
    if match is None:
        raise ValueError(
            f"malformed option ticker {ticker!r}: expected O: + root + YYMMDD + C or P + strike x 1000 in eight digits"
        )
    return match[1]


def is_contract(ticker: str) -> bool:
    """True for an option contract in OPRA form."""
    return _CONTRACT.fullmatch(ticker) is not None


def symbol_of(ticker: str, option_rows: OptionRows) -> str:
    """
    The symbol under which a ticker's rows are kept: its chain or itself for an option, itself for anything else.

    Raises:
        ValueError: an option ticker that is not in OPRA form, or an empty ticker.
    """
    if not ticker:
        raise ValueError("empty ticker: every row of a dataset must name its instrument")
    if not ticker.startswith(OPTION_PREFIX):
        return ticker
    root = option_root(ticker)
    return OPTION_PREFIX + root if option_rows is OptionRows.CHAIN else ticker


def symbol_class(symbol: str, table: RootTable) -> SymbolClass:
    """
    What a symbol is.

    Raises:
        ValueError: the symbol begins with ``O:`` but is neither a chain nor a contract in OPRA form.
    """
    if not symbol.startswith(OPTION_PREFIX):
        return SymbolClass.INDEX if table.is_index(symbol) else SymbolClass.STOCK
    if _ROOT.fullmatch(symbol, len(OPTION_PREFIX)) is not None:
        return SymbolClass.CHAIN
    option_root(symbol)
    return SymbolClass.CONTRACT


def underlying_of(symbol: str, table: RootTable) -> str | None:
    """
    Ticker of the underlying of a chain or contract; None for a stock or an index.

    Raises:
        ValueError: as :func:`symbol_class`.
    """
    kind = symbol_class(symbol, table)
    if kind is SymbolClass.CHAIN:
        return table.underlying(symbol[len(OPTION_PREFIX) :])
    if kind is SymbolClass.CONTRACT:
        return table.underlying(option_root(symbol))
    return None


def _read_table(path: Path) -> dict[str, Root]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"table of option roots {path}: not valid TOML: {error}") from error
    return {name: _entry(path, name, fields) for name, fields in document.items()}


def _entry(path: Path, name: str, fields: Any) -> Root:
    where = f"table of option roots {path}, root {name!r}"
    if _ROOT.fullmatch(name) is None:
        raise ValueError(f"{where}: a root is 1 to 6 capital letters, then optional digits")
    if type(fields) is not dict:
        raise ValueError(f"{where}: expected a table [{name}], found a single value")
    for field, value in fields.items():
        expected = _FIELDS.get(field)
        if expected is None:
            raise ValueError(f"{where}: unknown field {field!r}; known are {', '.join(_FIELDS)}")
        if type(value) is not expected:
            raise ValueError(f"{where}: {field} must be of type {expected.__name__}, found {value!r}")
    underlying = fields.get("underlying", name)
    word, multiplier, exercise = (
        fields.get("class", "stock"),
        fields.get("multiplier", 100),
        fields.get("exercise", "american"),
    )
    if not underlying or underlying.startswith(OPTION_PREFIX):
        raise ValueError(f"{where}: underlying must be the ticker of a stock, ETF or index, found {underlying!r}")
    if word not in (SymbolClass.STOCK, SymbolClass.INDEX):
        raise ValueError(f"{where}: class must be 'stock' or 'index', found {word!r}")
    if multiplier < 1:
        raise ValueError(f"{where}: multiplier must be at least 1, found {multiplier}")
    if exercise not in ("american", "european"):
        raise ValueError(f"{where}: exercise must be 'american' or 'european', found {exercise!r}")
    return Root(underlying, SymbolClass(word), multiplier, fields.get("am_settled", False), cast("Exercise", exercise))
