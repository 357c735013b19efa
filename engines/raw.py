"""
What the engines that read flat files share: which files a config names, which of them to read, and what was found.

A file is read whole once; later only for symbols whose cells were cleared or refreshed, or when it was replaced. Nothing
is set before the file was read to its end. Where files are is said in ``raw_files`` and ``raw_bucket``, what is written down
about them in ``raw_records``. This module must never compute rows; ``raw_pass`` does, in a worker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from engines.contract import Batch, Context, Health, Number, Task, Waiting
from engines.hours import published_ns, window_of
from engines.opening import Opening
from engines.raw_bucket import BucketFiles
from engines.raw_fetch import Downloaded, Listed
from engines.raw_files import FolderFiles, Need, Upstream, UpstreamFile
from engines.raw_pass import PARSER_VERSION, PassArguments, PassResult
from engines.raw_records import complete_record, damaged_record, waiting_record
from engines.raw_rest import RestConfig, RestRefill
from engines.relink_pass import Relinked
from engines.rest_pass import RestResult
from engines.symbol_globs import SymbolGlobs
from ledger.absence import dataset_of, matches
from ledger.columns import Column, Dataset, Flag, Status, SymbolClass
from ledger.coverage import mark
from ledger.errors import UnknownSession
from ledger.regions import touches
from ledger.roots import is_contract, symbol_of
from ledger.rows import SessionRows
from ledger.sources import SourceRecord, SourceState
from ledger.state import State

_LOOK_INTERVAL_S: Final = 2.0

Patterns = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
Day = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class FlatFileConfig(RestConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[engines.trade_flatfile]`` and ``[engines.quote]``: where files are and which sessions and symbols to take."""

    sessions: list[Day] | None = None
    from_: Day | None = msgspec.field(default=None, name="from")
    to: Day | None = None
    symbols: Patterns | None = None
    """Globs over tickers; absent = all."""
    symbols_file: Annotated[str, Meta(min_length=1)] | None = None
    """File of further globs, one a line; read again when it changes."""
    bad_rows_max: Annotated[int, Meta(ge=0)] = 10


class FlatFileEngine:
    """One raw column from flat files of stocks and options; the engine classes of two folders are this with a name."""

    def __init__(
        self, name: str, column: Column, datasets: tuple[Dataset, ...], table: Mapping[str, Any], base: Path
    ) -> None:
        self.name = name
        self.writes = (column,)
        self.config = config = msgspec.convert(table, FlatFileConfig)
        self.source: Path | str = config.source
        if "://" in config.source:
            self._upstream: Upstream = BucketFiles(name, column, datasets, config)
        else:
            self.source = base / Path(config.source).expanduser()
            self._upstream = FolderFiles(self.source)
        self._rest = RestRefill(name, column, datasets, config) if config.rest else None
        self._rest_sessions: list[str] = []
        if self.config.sessions is not None and (self.config.from_ or self.config.to):
            raise ValueError("give sessions, or from and to, not both")
        self._column = column
        self._datasets = datasets
        self._symbols = SymbolGlobs(
            config.symbols, base / Path(config.symbols_file).expanduser() if config.symbols_file else None
        )
        self._looked_s = -1.0
        self._files: list[UpstreamFile] = []
        self._sessions: list[str] = []
        self._seen_changes: dict[tuple[str, Dataset], set[tuple[int, ...]]] = {}
        self._wanted_names: dict[tuple[str, Dataset], tuple[str, ...]] = {}
        self._published_at: dict[str, int] = {}
        self._at_work: dict[str, PassArguments] = {}
        """Passes that are read or committed now, by their task's key."""
        self._backlog = 0
        self._passing = np.zeros(0, dtype=bool)
        self._of_datasets = np.zeros(0, dtype=bool)
        self._dataset_at = np.zeros(0, dtype=np.int8)
        """Of each symbol, the position of its dataset among this engine's; -1 for none."""

    # ---- the engine

    def start(self, context: Context) -> None:
        """Check that every configured session is a session of the year; raises UnknownSession."""
        self._context = context
        self._state: State = context.state
        self._upstream.start(context)
        if self._rest is not None:
            self._rest.start(context)
        for session in self.config.sessions or []:
            self._state.calendar.session_seq(session)
        for day in (self.config.from_, self.config.to):
            if day is not None and not day.startswith(f"{self._state.year}-"):
                raise UnknownSession(f"[engines.{self.name}]: {day} does not lie in {self._state.year}")

    def stop(self) -> None:
        """Nothing is held."""

    def health(self) -> Health:
        """Degraded while a source is damaged or out of reach, or symbols are refused; else what it waits for."""
        records = self._records()
        damaged = [one for one in records if one.state is SourceState.DAMAGED]
        if damaged:
            return Health("degraded", f"{len(damaged)} damaged: {damaged[0].reason}")
        refused = [one for one in records if one.refused_symbols]
        if refused:
            names = ", ".join(refused[0].refused_names[:5])
            return Health("degraded", f"the symbol cap refused {refused[0].refused_symbols} symbols ({names})")
        if self._symbols.problem:
            return Health("degraded", self._symbols.problem)
        for part in self._parts():
            health = part.health()
            if health is not None:
                return health
        quarantined = [one for one in records if one.first_bad]
        if quarantined and quarantined[0].first_bad:
            bad = quarantined[0].first_bad
            return Health("idle", f"{quarantined[0].name}: line {bad.line}: {bad.reason} (quarantined)")
        waiting = sum(one.state is SourceState.WAITING for one in records)
        return Health("idle", f"{waiting} files waited for" if waiting else "")

    def numbers(self) -> list[Number]:
        """What was brought from a bucket and over REST; nothing of a folder."""
        return [number for part in self._parts() for number in part.numbers()]

    def retry(self) -> None:
        """Ask a bucket, and over REST, again at once."""
        for part in self._parts():
            part.retry()
        self._looked_s = -1.0

    def describe_priority_hooks(self) -> list[str]:
        """How regions change what it does."""
        return [
            "file passes and downloads are ordered by the highest region whose session and symbols they touch",
            "a region's download passes quiet hours, at quiet_mib_per_s",
            "over REST a region's windows are fetched first",
            "a region over cleared or wanted cells has its file read for its symbols only",
        ]

    def backlog(self) -> int:
        """Files known to need a pass."""
        return self._backlog

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """bool[symbols]: those that pass the globs and that one of its datasets covers, in the configured sessions."""
        if column is not self._column or not self._in_sessions(session):
            return None
        return self._covered(session) if self._is_expected(session) else None

    def covering(self, session: str) -> int:
        """Whether its files should be there by now, or can be fetched over REST."""
        return int(self._in_sessions(session) and self._is_expected(session))

    def _is_expected(self, session: str) -> bool:
        return self._is_published(session) or session in self._rest_sessions

    def _covered(self, session: str) -> np.ndarray:
        """bool[symbols]: those that pass the globs, or have rows of the session, and that one of its datasets covers."""
        self._learn_symbols()
        covered = self._passing.copy()
        covered[sorted(self._named(session))] = True
        covered &= self._of_datasets
        return covered

    def _learn_symbols(self) -> None:
        """Which symbols pass the globs and which one of its datasets would hold, for those that came since."""
        state, known = self._state, len(self._passing)
        fresh = range(known, len(state.symbols))
        if fresh:
            passing = [matches(self._symbols.globs, state.symbols.name(one)) for one in fresh]
            place: dict[Dataset | None, int] = {dataset: at for at, dataset in enumerate(self._datasets)}
            held = [place.get(dataset_of(self._column, state.class_of(one)), -1) for one in fresh]
            self._passing = np.concatenate([self._passing, np.array(passing, dtype=bool)])
            self._dataset_at = np.concatenate([self._dataset_at, np.array(held, dtype=np.int8)])
            self._of_datasets = self._dataset_at >= 0

    def refills(self, session: str, column: Column) -> bool:
        """Whether windows of a session can be fetched over REST."""
        return column is self._column and session in self._rest_sessions

    def lacks_file(self, session: str, dataset: Dataset) -> bool:
        """Whether the place of its files is known to have none of a session now."""
        found = self._upstream.find(dataset, session) if dataset in self._datasets else None
        return found is not None and not found.exists

    def waiting(self, session: str | None = None) -> list[Waiting]:
        """Files that are not there, damaged or out of reach, and symbols that were refused."""
        found = self._upstream.waiting()
        if self._rest is not None:
            found += self._rest.waiting(self._rest_sessions)
        found = [one for one in found if session is None or one.session == session]
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
        passes: list[Task] = []
        needs: list[Need] = []
        opening = Opening()
        for file in self._files:
            wanted = self._wanted(file, opening)
            if wanted is None:
                continue
            only = wanted or None
            symbols = None if only is None else tuple(self._state.symbols.resolve(one) for one in only)
            need = Need(file, self._priority(file, symbols))
            needs.append(need)
            path = self._upstream.path(file)
            if path is not None and not self._is_replacing(file):
                passes.append(self._make(need, path, only, symbols))
        self._backlog = len(needs)
        needs.sort(key=lambda need: (-need.priority, _newest_first(need.file.session), need.file.dataset))
        passes.sort(key=lambda task: (-task.priority, _newest_first(task.session), task.key))
        # All kinds up to the limit: they run in different places, and none may keep another out.
        return passes[:limit] + self._upstream.tasks(self._sessions, needs, limit) + self._refills(limit)

    def _parts(self) -> list[Upstream | RestRefill]:
        return [self._upstream] if self._rest is None else [self._upstream, self._rest]

    def _refills(self, limit: int) -> list[Task]:
        """What is fetched over REST, and looked at again because of it."""
        if self._rest is None:
            return []
        self._rest_sessions = self._rest.sessions(self._in_sessions)
        spelled = {dataset: self._spelled_ids(dataset) for dataset in self._datasets}
        listened = tuple(sorted(one for one in self._symbols.spelled if is_contract(one)))
        tasks = self._rest.tasks(self._rest_sessions, spelled, self._covered, listened)
        self._backlog += self._rest.backlog
        return tasks[:limit]

    def _is_replacing(self, file: UpstreamFile) -> bool:
        """
        Whether another version of the file is at work.

        Its commit would move every cell under a pass that began before, whose rows would all be dropped as conflicts while
        the source counted as read.
        """
        return any(
            (one.window.date, one.dataset) == (file.session, file.dataset) and one.etag != file.etag
            for one in self._at_work.values()
        )

    def started(self, task: Task) -> None:
        """A task is at work."""
        if isinstance(task.arguments, PassArguments):
            self._at_work[task.key] = task.arguments
        for part in self._parts():
            part.started(task)

    def ended(self, task: Task) -> None:
        """A task is over, whatever became of it."""
        self._at_work.pop(task.key, None)
        for part in self._parts():
            part.ended(task)

    def finished(self, task: Task, batch: Batch) -> None:
        """Say in ``sources`` what the file held, when its cells are set; or take what was fetched."""
        if isinstance(batch.report, Listed | Downloaded):
            self._fetched(task, batch.report)
            return
        if isinstance(batch.report, RestResult | Relinked):
            assert self._rest is not None
            self._rest.finished(task, batch.report)
            return
        arguments: PassArguments = task.arguments
        self._seen_changes.pop((task.session, arguments.dataset), None)
        if arguments.only is not None:
            return
        result: PassResult = batch.report
        assert result.report is not None
        record = complete_record(
            self._state,
            task.session,
            arguments,
            result,
            self._spelled_ids(arguments.dataset),
            self._context.start_number,
        )
        for line in record.quarantined:
            text = f"{self.name}: {arguments.name}: line {line.line}: {line.reason}; the line was left out"
            self._context.log("warning", text)
        if record.rejected:
            counts = ", ".join(f"{number} {reason}" for reason, number in record.rejected.items())
            self._context.log("warning", f"{self.name}: {arguments.name}: rows rejected: {counts}")
        self._state.sources.put(record)

    def _fetched(self, task: Task, report: Listed | Downloaded) -> None:
        """Take a listing or a download; an object that is damaged as it lies there is a damaged source."""
        self._looked_s = -1.0
        if report.trouble is not None and report.trouble.cause != "quiet":
            self._context.log("warning", f"{self.name}: {report.trouble.reason}; {report.trouble.hint}")
        elif isinstance(report, Downloaded) and report.facts is not None:
            size = f"{report.facts.size} bytes" + (f", {report.resumed} from before" if report.resumed else "")
            self._context.log("info", f"{self.name}: {task.key}: {size}")
        damaged = self._upstream.finished(task, report)
        if damaged is not None:
            file, reason = damaged
            self._put_damaged(file.dataset, file.session, reason, file.address, file.size, file.etag)

    def failed(self, task: Task, reason: str, report: Any) -> None:
        """Remember a damaged file."""
        if not isinstance(report, PassResult) or not report.damaged:
            return
        arguments: PassArguments = task.arguments
        self._put_damaged(arguments.dataset, task.session, reason, arguments.name, arguments.size, arguments.etag)

    def _put_damaged(self, dataset: Dataset, session: str, reason: str, name: str, size: int, etag: str) -> None:
        self._state.sources.put(
            damaged_record(dataset, session, reason, name=name, size=size, etag=etag, globs=self._symbols.globs)
        )

    # ---- which files

    def _in_sessions(self, session: str) -> bool:
        config = self.config
        if config.sessions is not None:
            return session in config.sessions
        return (config.from_ is None or session >= config.from_) and (config.to is None or session <= config.to)

    def _is_published(self, session: str) -> bool:
        """Whether a session's files should be there, or one is."""
        if self._state.system.now_ns() >= self._published(session):
            return True
        records = [self._state.sources.get(dataset.value, session) for dataset in self._datasets]
        return any(record is not None and record.state is SourceState.COMPLETE for record in records)

    def _published(self, session: str) -> int:
        """When a session's files should be there, ns UTC; asked for every session at every count."""
        if session not in self._published_at:
            self._published_at[session] = published_ns(self._state.calendar, session, self.config.published)
        return self._published_at[session]

    def _look(self) -> None:
        """See which files there are, and note in ``sources`` which are waited for."""
        if self._symbols.look():
            self._passing = self._of_datasets = np.zeros(0, dtype=bool)
            self._dataset_at = np.zeros(0, dtype=np.int8)
            self._context.log("info", f"{self.name}: {len(self._symbols.globs)} globs of symbols from now on")
        self._sessions = self._wanted_sessions()
        files = [self._upstream.find(dataset, session) for session in self._sessions for dataset in self._datasets]
        self._files = [file for file in files if file is not None and file.exists]
        now_ns = self._state.system.now_ns()
        for file in files:
            if file is None or file.exists:
                continue
            if now_ns < self._published(file.session):
                continue
            record = self._state.sources.get(file.dataset.value, file.session)
            if record is None or record.state in (SourceState.WAITING, SourceState.OPEN):
                self._state.sources.put(
                    waiting_record(
                        file.dataset, file.session, name=file.address, globs=self._symbols.globs,
                        spelled_ids=self._spelled_ids(file.dataset), before=record,
                    )
                )  # fmt: skip

    def _wanted_sessions(self) -> list[str]:
        calendar = self._state.calendar
        if self.config.sessions is not None:
            return sorted(set(self.config.sessions))
        begun = int(np.searchsorted(calendar.open_ns, self._state.system.now_ns(), side="right"))
        every = [calendar.date(seq) for seq in range(begun)]
        chosen = [session for session in every if self._in_sessions(session)]
        if self.config.from_ or self.config.to:
            return chosen
        # Without a range every session that has a file counts; none is waited for.
        return [one for one in chosen if any(self._may_exist(dataset, one) for dataset in self._datasets)]

    def _may_exist(self, dataset: Dataset, session: str) -> bool:
        file = self._upstream.find(dataset, session)
        return file is None or file.exists

    def _spelled_ids(self, dataset: Dataset) -> set[int]:
        """Ids of symbols that the config spells without wildcard; allocated here, at the session's first planning."""
        names = [name for name in self._symbols.spelled if name.startswith("O:") == dataset.of_options]
        mine = [symbol_of(name, self._state.option_rows) if is_contract(name) else name for name in names]
        given = self._state.allocate(mine) if mine else None
        return {one for one in (given.ids if given else ()) if one >= 0 and self._is_named(one, mine)}

    def _is_named(self, symbol_id: int, names: list[str]) -> bool:
        return self._state.symbols.name(symbol_id) in names

    # ---- which passes

    def _wanted(self, file: UpstreamFile, opening: Opening) -> tuple[str, ...] | None:
        """None where nothing of a file is wanted, () where all of it is, else the symbols of a repair."""
        record = self._state.sources.get(file.dataset.value, file.session)
        current = record is not None and (record.etag, record.globs, record.parser_version) == (
            file.etag,
            self._symbols.globs,
            PARSER_VERSION,
        )
        if record is None or not current:
            return ()
        if record.state is SourceState.DAMAGED:
            return None
        return self._wanted_symbols(file, record, opening) or None

    def _make(self, need: Need, path: Path, only: tuple[str, ...] | None, symbols: tuple[int, ...] | None) -> Task:
        state, file = self._state, need.file
        arguments = PassArguments(
            path=str(path),
            name=file.address,
            dataset=file.dataset,
            window=window_of(state.calendar, file.session),
            option_rows=state.option_rows,
            globs=tuple(self._symbols.globs),
            bad_rows_max=self.config.bad_rows_max,
            etag=file.etag,
            size=file.size,
            only=only,
        )
        what = "" if only is None else f" {len(only)} symbols"
        # A pass of all symbols must see no cell as it was before: versions of all blocks; a repair only its own.
        return Task(
            engine=self.name,
            key=f"{file.dataset.value} {file.session} {file.etag}{what}",
            session=file.session,
            compute="engines.raw_pass:run",
            arguments=arguments,
            heavy=True,
            priority=need.priority,
            symbols=symbols,
            subject=f"{file.dataset.value} {file.session}",
        )

    def _priority(self, file: UpstreamFile, symbols: tuple[int, ...] | None) -> int:
        best = 0
        for region in self._context.regions(self._column):
            if not touches(region, self._state.calendar, file.session):
                continue
            of_options = self._state.class_of(region.symbol_id) in (SymbolClass.CHAIN, SymbolClass.CONTRACT)
            if of_options == file.dataset.of_options and (symbols is None or region.symbol_id in symbols):
                best = max(best, region.priority)
        return best

    def _wanted_symbols(self, file: UpstreamFile, record: SourceRecord, opening: Opening) -> tuple[str, ...]:
        """Symbols with rows in the file and a cell that is empty, cleared or wanted; looked for only where cells moved."""
        state, key = self._state, (file.session, file.dataset)
        seq = state.calendar.session_seq(file.session)
        before = mark(state.trade, seq)
        if before in self._seen_changes.get(key, ()):
            return self._wanted_names[key]
        if not opening.is_mapped(state.trade, seq):
            # Asked again when it is.
            return ()
        rows = state.trade.session(seq) if state.trade.exists(seq) else None
        listed = record.symbol_rows()
        ids = listed["symbol_id"][(listed["rows_in"] > 0) | (listed["rows_outside"] > 0)].astype(np.int64)
        if rows is None:
            wanted = ids
        elif self._is_whole(rows) and rows.reserved[ids].all():
            wanted = ids[:0]
        else:
            index, minutes = rows.column_index(self._column), rows.place.minutes
            status = rows.status[index, ids, :minutes]
            flags = rows.flags[index, ids, :minutes]
            open_cells = (status == Status.EMPTY) | (status == Status.CLEARED)
            open_cells |= (status == Status.FILLED) & (flags & np.uint8(Flag.WANTED) != 0)
            wanted = ids[open_cells.any(axis=1)]
        # One that was mapped for this and dropped since is known by its file's mark, and not mapped again.
        self._seen_changes[key] = {before, mark(state.trade, seq)}
        self._wanted_names[key] = tuple(state.symbols.name(int(one)) for one in wanted)
        return self._wanted_names[key]

    def _is_whole(self, rows: SessionRows) -> bool:
        """Whether the header's counts say that no cell of a symbol with a block is to be made: the rule, and cheap."""
        index = rows.column_index(self._column)
        status, flags = rows.counts_status[index], rows.counts_flags[index]
        return not (status[Status.EMPTY] or status[Status.CLEARED] or flags[int(Flag.WANTED).bit_length() - 1])

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
        self._learn_symbols()
        universe = self._state.universe(session)
        mine = self._passing[universe] & (self._dataset_at[universe] == self._datasets.index(dataset))
        return tuple(universe[mine].tolist())


def _newest_first(session: str) -> int:
    return -int(session.replace("-", ""))
