"""
What the engines that read flat files share: which files a config names, which of them to read, and what was found.

A file is read whole once; later only for symbols whose cells were cleared or refreshed, or when it was replaced. Nothing
is set before the file was read to its end. This module must never compute rows; ``raw_pass`` does, in a worker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from engines.contract import Batch, Context, Health, Task, Waiting
from engines.feeds.session_window import SessionWindow
from engines.raw_pass import PARSER_VERSION, PassArguments, PassResult
from ledger.absence import dataset_of, matches
from ledger.columns import Column, Dataset, Flag, Status, SymbolClass
from ledger.errors import UnknownSession
from ledger.sources import BadRow, SourceRecord, SourceState, pack_symbols
from ledger.state import State

_LOOK_INTERVAL_S: Final = 2.0
_REFUSED_NAMES_MAX: Final = 100
_WILD: Final = frozenset("*?[")

Patterns = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
Day = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class FlatFileConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[engines.trade_flatfile]`` and ``[engines.quote]``: where files are and which sessions and symbols to take."""

    source: Annotated[str, Meta(min_length=1)]
    """Folder that holds ``us_stocks_sip`` and ``us_options_opra``."""
    sessions: list[Day] | None = None
    from_: Day | None = msgspec.field(default=None, name="from")
    to: Day | None = None
    symbols: Patterns | None = None
    """Globs over tickers; absent = all."""
    bad_rows_max: Annotated[int, Meta(ge=0)] = 10


@dataclass(frozen=True, slots=True)
class _File:
    """One upstream file: where it should be and, if it is there, its size and tag."""

    dataset: Dataset
    session: str
    path: Path
    size: int
    etag: str

    @property
    def exists(self) -> bool:
        return bool(self.etag)


class FlatFileEngine:
    """One raw column from flat files of stocks and options; the engine classes of two folders are this with a name."""

    def __init__(
        self, name: str, column: Column, datasets: tuple[Dataset, ...], table: Mapping[str, Any], base: Path
    ) -> None:
        self.name = name
        self.writes = (column,)
        self.config = msgspec.convert(table, FlatFileConfig)
        self.source = base / Path(self.config.source).expanduser()
        if self.config.sessions is not None and (self.config.from_ or self.config.to):
            raise ValueError("give sessions, or from and to, not both")
        self._column = column
        self._datasets = datasets
        self._globs = list(self.config.symbols or [])
        self._looked_s = -1.0
        self._files: list[_File] = []
        self._sessions: list[str] = []
        self._seen_changes: dict[tuple[str, Dataset], tuple[int, int]] = {}
        self._wanted: dict[tuple[str, Dataset], tuple[str, ...]] = {}
        self._backlog = 0

    # ---- the engine

    def start(self, context: Context) -> None:
        """Check that every configured session is a session of the year; raises UnknownSession."""
        self._context = context
        self._state: State = context.state
        for session in self.config.sessions or []:
            self._state.calendar.session_seq(session)
        for day in (self.config.from_, self.config.to):
            if day is not None and not day.startswith(f"{self._state.year}-"):
                raise UnknownSession(f"[engines.{self.name}]: {day} does not lie in {self._state.year}")

    def stop(self) -> None:
        """Nothing is held."""

    def health(self) -> Health:
        """Degraded while a source is damaged or symbols are refused, else idle."""
        damaged = [one for one in self._records() if one.state is SourceState.DAMAGED]
        if damaged:
            return Health("degraded", f"{len(damaged)} damaged: {damaged[0].reason}")
        refused = [one for one in self._records() if one.refused_symbols]
        if refused:
            names = ", ".join(refused[0].refused_names[:5])
            return Health("degraded", f"the symbol cap refused {refused[0].refused_symbols} symbols ({names})")
        quarantined = [one for one in self._records() if one.first_bad]
        if quarantined and quarantined[0].first_bad:
            bad = quarantined[0].first_bad
            return Health("idle", f"{quarantined[0].name}: line {bad.line}: {bad.reason} (quarantined)")
        waiting = sum(one.state is SourceState.WAITING for one in self._records())
        return Health("idle", f"{waiting} files waited for" if waiting else "")

    def describe_priority_hooks(self) -> list[str]:
        """How regions change what it does."""
        return [
            "file passes are ordered by the highest region whose session and symbols they touch",
            "a region over cleared or wanted cells has its file read for its symbols only",
        ]

    def backlog(self) -> int:
        """Files known to need a pass."""
        return self._backlog

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """bool[symbols]: those that pass the globs and that one of its datasets covers, in the configured sessions."""
        if column is not self._column or not self._in_sessions(session):
            return None
        state, count = self._state, len(self._state.symbols)
        covered = np.zeros(count, dtype=bool)
        named = self._named(session)
        for symbol_id in range(count):
            if dataset_of(column, state.class_of(symbol_id)) in self._datasets:
                covered[symbol_id] = symbol_id in named or matches(self._globs, state.symbols.name(symbol_id))
        return covered

    def waiting(self, session: str | None = None) -> list[Waiting]:
        """Files that are not there or damaged, and symbols that were refused."""
        found: list[Waiting] = []
        for record in self._records():
            if session is not None and record.session != session:
                continue
            symbols = self._symbols_of(Dataset(record.dataset), record.session)
            if record.state in (SourceState.WAITING, SourceState.DAMAGED):
                detail = f"{record.dataset} of {record.session}: {record.reason}"
                found.append(Waiting(record.state.value, self._column, record.session, detail, symbols))
            if record.refused_symbols:
                detail = f"{record.refused_symbols} symbols of {record.name} were refused: the cap is reached"
                found.append(Waiting("refused", self._column, record.session, detail, ()))
        return found

    def plan(self, limit: int) -> list[Task]:
        """Passes to make, regions first, then the newest session first."""
        now_s = time.monotonic()
        if self._looked_s < 0 or now_s - self._looked_s >= _LOOK_INTERVAL_S:
            self._look()
            self._looked_s = now_s
        tasks = [task for file in self._files if (task := self._task(file)) is not None]
        self._backlog = len(tasks)
        tasks.sort(key=lambda task: (-task.priority, [-ord(letter) for letter in task.session], task.key))
        return tasks[:limit]

    def finished(self, task: Task, batch: Batch) -> None:
        """Say in ``sources`` what the file held; called when its cells are set."""
        arguments: PassArguments = task.arguments
        self._seen_changes.pop((task.session, arguments.dataset), None)
        if arguments.only is not None:
            return
        result: PassResult = batch.report
        report = result.report
        assert report is not None
        known = {symbol: self._state.symbols.get(symbol) for symbol in report.symbols}
        explicit = self._explicit_ids(arguments.dataset)
        rows = {known_id: (*report.symbols[name], result.volume_outside.get(name, 0.0))
                for name, known_id in known.items() if known_id is not None}  # fmt: skip
        for symbol_id in explicit:
            rows.setdefault(symbol_id, (0, 0, 0.0))
        ids = sorted(rows)
        refused = sorted(name for name, known_id in known.items() if known_id is None)
        bad = [BadRow(line, reason) for line, reason in report.quarantined]
        for line in bad:
            text = f"{self.name}: {arguments.path}: line {line.line}: {line.reason}; the line was left out"
            self._context.log("warning", text)
        if report.rejected:
            counts = ", ".join(f"{number} {reason}" for reason, number in sorted(report.rejected.items()))
            self._context.log("warning", f"{self.name}: {arguments.path}: rows rejected: {counts}")
        self._state.sources.put(
            SourceRecord(
                dataset=arguments.dataset.value,
                session=task.session,
                state=SourceState.COMPLETE,
                name=arguments.path,
                size=arguments.size,
                etag=arguments.etag,
                header=list(report.header),
                globs=list(arguments.globs),
                parser_version=PARSER_VERSION,
                rows=report.rows,
                rows_in_session=report.rows_in_session,
                rejected=dict(sorted(report.rejected.items())),
                out_of_session={"rows": report.rows_outside, **result.outside},
                first_bad=bad[0] if bad else None,
                quarantined=bad,
                symbols=pack_symbols(
                    ids, [rows[one][0] for one in ids], [rows[one][1] for one in ids], [rows[one][2] for one in ids]
                ),
                refused_symbols=len(refused),
                refused_names=refused[:_REFUSED_NAMES_MAX],
                start_number=self._context.start_number,
            )
        )

    def failed(self, task: Task, reason: str, report: Any) -> None:
        """Remember a damaged file, so that it is read again when it was replaced."""
        arguments: PassArguments = task.arguments
        if not isinstance(report, PassResult) or not report.damaged:
            return
        self._state.sources.put(
            SourceRecord(
                dataset=arguments.dataset.value,
                session=task.session,
                state=SourceState.DAMAGED,
                reason=reason,
                name=arguments.path,
                size=arguments.size,
                etag=arguments.etag,
                globs=list(arguments.globs),
                parser_version=PARSER_VERSION,
            )
        )

    # ---- which files

    def _in_sessions(self, session: str) -> bool:
        config = self.config
        if config.sessions is not None:
            return session in config.sessions
        return (config.from_ is None or session >= config.from_) and (config.to is None or session <= config.to)

    def _look(self) -> None:
        """Stat the files of every session and note in ``sources`` which are waited for."""
        self._sessions = self._wanted_sessions()
        self._files = [self._stat(dataset, session) for session in self._sessions for dataset in self._datasets]
        for file in self._files:
            record = self._state.sources.get(file.dataset.value, file.session)
            if file.exists or (record is not None and record.state is not SourceState.WAITING):
                continue
            ids = sorted(self._explicit_ids(file.dataset))
            zeros = [0] * len(ids)
            self._state.sources.put(
                SourceRecord(
                    dataset=file.dataset.value,
                    session=file.session,
                    state=SourceState.WAITING,
                    reason=f"{file.path} does not exist",
                    name=str(file.path),
                    globs=self._globs,
                    symbols=pack_symbols(ids, zeros, zeros, zeros),
                )
            )

    def _wanted_sessions(self) -> list[str]:
        calendar = self._state.calendar
        if self.config.sessions is not None:
            return sorted(set(self.config.sessions))
        every = [calendar.date(seq) for seq in range(calendar.session_count)]
        chosen = [session for session in every if self._in_sessions(session)]
        if self.config.from_ or self.config.to:
            return chosen
        # Without a range every session that has a file counts; none is waited for.
        return [one for one in chosen if any(self._stat(dataset, one).exists for dataset in self._datasets)]

    def _stat(self, dataset: Dataset, session: str) -> _File:
        path = self.source / dataset.value / session[:4] / session[5:7] / f"{session}.csv.gz"
        try:
            found = path.stat()
        except OSError:
            return _File(dataset, session, path, 0, "")
        return _File(dataset, session, path, found.st_size, f"{found.st_size:x}-{found.st_mtime_ns:x}")

    def _explicit_ids(self, dataset: Dataset) -> set[int]:
        """Ids of symbols that the config spells without wildcard; allocated here, at the session's first planning."""
        names = [name for name in self._globs if not _WILD.intersection(name)]
        mine = [name for name in names if name.startswith("O:") == dataset.of_options]
        given = self._state.allocate(mine) if mine else None
        return {one for one in (given.ids if given else ()) if one >= 0 and self._is_named(one, mine)}

    def _is_named(self, symbol_id: int, names: list[str]) -> bool:
        return self._state.symbols.name(symbol_id) in names

    # ---- which passes

    def _task(self, file: _File) -> Task | None:
        if not file.exists:
            return None
        record = self._state.sources.get(file.dataset.value, file.session)
        current = record is not None and (record.etag, record.globs, record.parser_version) == (
            file.etag,
            self._globs,
            PARSER_VERSION,
        )
        if record is None or not current:
            return self._make(file, None)
        if record.state is SourceState.DAMAGED:
            return None
        wanted = self._wanted_symbols(file, record)
        return self._make(file, wanted) if wanted else None

    def _make(self, file: _File, only: tuple[str, ...] | None) -> Task:
        state = self._state
        seq = state.calendar.session_seq(file.session)
        open_ns = int(state.calendar.open_ns[seq])
        day_start = state.calendar.parse_time(file.session)
        # The local day ends at the next local midnight, 23, 24 or 25 hours later.
        day_end = state.calendar.parse_time(_next_day(file.session))
        arguments = PassArguments(
            path=str(file.path),
            dataset=file.dataset,
            window=SessionWindow(file.session, open_ns, int(state.calendar.minutes[seq]), day_start, day_end),
            option_rows=state.option_rows,
            globs=tuple(self._globs),
            bad_rows_max=self.config.bad_rows_max,
            etag=file.etag,
            size=file.size,
            only=only,
        )
        what = "" if only is None else f" {len(only)} symbols"
        # A pass of all symbols must see no cell as it was before: versions of all blocks; a repair only its own.
        symbols = None if only is None else tuple(state.symbols.resolve(one) for one in only)
        return Task(
            engine=self.name,
            key=f"{file.dataset.value} {file.session} {file.etag}{what}",
            session=file.session,
            compute="engines.raw_pass:run",
            arguments=arguments,
            heavy=True,
            priority=self._priority(file, symbols),
            symbols=symbols,
        )

    def _priority(self, file: _File, symbols: tuple[int, ...] | None) -> int:
        best = 0
        for region in self._context.regions(self._column):
            if self._state.calendar.session_on(region.start_ts) != file.session:
                continue
            of_options = self._state.class_of(region.symbol_id) in (SymbolClass.CHAIN, SymbolClass.CONTRACT)
            if of_options == file.dataset.of_options and (symbols is None or region.symbol_id in symbols):
                best = max(best, region.priority)
        return best

    def _wanted_symbols(self, file: _File, record: SourceRecord) -> tuple[str, ...]:
        """Symbols with rows in the file and a cell that is empty, cleared or wanted; looked for only where cells moved."""
        state, key = self._state, (file.session, file.dataset)
        seq = state.calendar.session_seq(file.session)
        rows = state.trade.session(seq) if state.trade.exists(seq) else None
        rows_at = (-1, 0) if rows is None else (rows.change_count, id(rows))
        if self._seen_changes.get(key) == rows_at:
            return self._wanted[key]
        listed = record.symbol_rows()
        ids = listed["symbol_id"][(listed["rows_in"] > 0) | (listed["rows_outside"] > 0)].astype(np.int64)
        if rows is None:
            wanted = ids
        else:
            index, minutes = rows.column_index(self._column), rows.place.minutes
            status = rows.status[index, ids, :minutes]
            flags = rows.flags[index, ids, :minutes]
            open_cells = (status == Status.EMPTY) | (status == Status.CLEARED)
            open_cells |= (status == Status.FILLED) & (flags & np.uint8(Flag.WANTED) != 0)
            wanted = ids[open_cells.any(axis=1)]
        self._seen_changes[key] = rows_at
        self._wanted[key] = tuple(state.symbols.name(int(one)) for one in wanted)
        return self._wanted[key]

    # ---- what is known

    def _records(self) -> list[SourceRecord]:
        datasets = {dataset.value for dataset in self._datasets}
        return [record for record in self._state.sources.all() if record.dataset in datasets]

    def _named(self, session: str) -> set[int]:
        """Symbols with a row of the session in one of its files."""
        found: set[int] = set()
        for dataset in self._datasets:
            record = self._state.sources.get(dataset.value, session)
            if record is not None:
                found.update(record.symbol_ids().tolist())
        return found

    def _symbols_of(self, dataset: Dataset, session: str) -> tuple[int, ...]:
        """Symbols of the session's universe whose rows would be in the dataset."""
        state = self._state
        return tuple(
            symbol_id
            for symbol_id in state.universe(session).tolist()
            if dataset_of(self._column, state.class_of(symbol_id)) is dataset
            and matches(self._globs, state.symbols.name(symbol_id))
        )


def _next_day(day: str) -> str:
    from datetime import date, timedelta

    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()
