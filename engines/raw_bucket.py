"""
Flat files in a bucket: which months to list, which objects to bring and when, and which brought ones to keep.

Listings are held in memory, a month of a dataset at a time. An object is brought once, to a path that its ETag is part of,
and kept for repairs while days and budget allow. Nothing here waits: fetchers do, and trouble is a pause that grows. This
module must never read a file, and never remove one itself.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engines.contract import Context, Health, Number, Retry, Task, Waiting
from engines.feeds.object_store import ObjectFacts
from engines.hours import quiet_spans, quiet_until
from engines.pauses import Pause, Pausing
from engines.raw_fetch import DownloadArguments, Downloaded, ListArguments, Listed, Place, target_of
from engines.raw_files import Need, SourceConfig, UpstreamFile, name_of
from ledger.columns import Column, Dataset
from ledger.state import State

_SECOND_NS: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _SECOND_NS
_YOUNG_DAYS: Final = 45
"""A month is listed often until so many days after its first."""
_OLD_FACTOR: Final = 24
_FREE_MIN_BYTES: Final = 1 << 30
"""What downloads leave of the disk for artifacts and rows."""
_KEPT: Final = re.compile(
    r"(?P<dataset>.+)-(?P<session>\d{4}-\d{2}-\d{2})-(?P<etag>\w+)\.csv\.gz(?P<part>\.part(\.json)?)?"
)


@dataclass(slots=True)
class _Month:
    """What a listing said, and when; 0 asks for it again."""

    listed_ns: int
    objects: dict[str, ObjectFacts]


@dataclass(frozen=True, slots=True)
class _Running:
    """A download in work: what it will take of the disk, where it grows, and what it removes first."""

    size: int
    part: Path
    remove: tuple[str, ...]


@dataclass(slots=True)
class _Room:
    """What a plan may still use of disk and time."""

    now_ns: int
    spans: tuple[tuple[int, int], ...]
    quiet_end_ns: int | None
    used: int
    removable: list[Path]


class BucketFiles:
    """
    Flat files of one engine in a bucket; see :class:`engines.raw_files.Upstream`.

    Args:
        engine: name of the engine; its downloads have a folder of their own.
    """

    def __init__(self, engine: str, column: Column, datasets: tuple[Dataset, ...], config: SourceConfig) -> None:
        self._engine = engine
        self._column = column
        self._datasets = datasets
        self._config = config
        self._place = Place(
            config.source.rstrip("/"), config.endpoint, config.region, config.path_style, config.timeout_s
        )
        self._months: dict[str, _Month] = {}
        self._list_pause: Pause | None = None
        self._pauses: dict[str, Pause] = {}
        self._pausing = Pausing()
        self._kept: dict[Path, tuple[int, int]] = {}
        self._parts: dict[Path, int] = {}
        self._downloading: dict[str, _Running] = {}
        self._held: list[Waiting] = []
        self._unlisted: list[str] = []
        self.received = self.resumed = 0

    def start(self, context: Context) -> None:
        """See what an earlier run brought."""
        self._state: State = context.state
        self._folder = self._state.downloads / self._engine
        self._see_folder()

    # ---- what is there

    def find(self, dataset: Dataset, session: str) -> UpstreamFile | None:
        """What the last listing said; None before the first."""
        month = self._months.get(_prefix(dataset, session))
        if month is None:
            return None
        name = name_of(dataset, session)
        address, facts = f"{self._place.address}/{name}", month.objects.get(name)
        if facts is None:
            return UpstreamFile(dataset, session, address)
        return UpstreamFile(dataset, session, address, facts.size, facts.etag)

    def path(self, file: UpstreamFile) -> Path | None:
        """Where a file is kept, None where it has to be brought."""
        path = self._target(file)
        if path in self._kept and not path.exists():
            del self._kept[path]
        return path if path in self._kept else None

    def _stem(self, file: UpstreamFile) -> str:
        return str(self._folder / f"{file.dataset.value.replace('/', '-')}-{file.session}")

    def _target(self, file: UpstreamFile) -> Path:
        return Path(target_of(self._stem(file), file.etag))

    def _part(self, file: UpstreamFile) -> Path:
        return Path(f"{target_of(self._stem(file), file.etag)}.part")

    def _see_folder(self) -> None:
        """What is there of whole files and of parts, by ``stat``."""
        self._kept, self._parts = {}, {}
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            found = _KEPT.fullmatch(path.name)
            status = path.stat()
            if found is None or found["part"]:
                self._parts[path] = status.st_size
            else:
                self._kept[path] = (status.st_size, status.st_mtime_ns)

    # ---- planning

    def tasks(self, sessions: Iterable[str], needs: list[Need], limit: int) -> list[Task]:
        """A listing where one is due, then downloads, in the order of the needs as far as hours and budget allow."""
        now_ns = self._state.system.now_ns()
        self._held = []
        in_use = {self._target(need.file) for need in needs}
        aged = [path for path in self._spare(in_use) if self._is_over(path, now_ns)]
        found = [*self._listing(sessions, now_ns, aged)]
        spans: tuple[tuple[int, int], ...] = ()
        if self._config.quiet_hours:
            spans = quiet_spans(self._state.calendar, now_ns, self._config.quiet_before_minutes)
        spare = sorted(self._spare(in_use), key=lambda path: (path not in aged, self._kept.get(path, (0, 0))[1], path))
        room = _Room(now_ns, spans, quiet_until(spans, now_ns), self._used(), spare)
        for need in needs:
            if len(found) >= limit:
                break
            if self.path(need.file) is None and (task := self._download(need, room)) is not None:
                found.append(task)
        return found

    def _listing(self, sessions: Iterable[str], now_ns: int, aged: list[Path]) -> Iterator[Task]:
        """The task that lists what is due and removes what is over."""
        wanted = {_prefix(dataset, session): session for session in sessions for dataset in self._datasets}
        due = {prefix: session for prefix, session in wanted.items() if self._is_due(prefix, session, now_ns)}
        self._unlisted = sorted(due.values())
        paused = self._list_pause is not None and self._list_pause.holds(now_ns)
        if paused:
            due = {}
        if due or aged:
            prefixes, remove = tuple(sorted(due)), tuple(str(path) for path in sorted(aged))
            arguments = ListArguments(self._place, prefixes, remove)
            yield self._task(
                f"list {self._place.address} for {self._engine}",
                self._state.calendar.date(0),
                "list_objects",
                arguments,
            )

    def _is_due(self, prefix: str, session: str, now_ns: int) -> bool:
        month = self._months.get(prefix)
        if month is None or month.listed_ns > now_ns:
            return True
        first_ns = self._state.calendar.parse_time(f"{session[:7]}-01")
        young = now_ns - first_ns < _YOUNG_DAYS * _DAY_NS
        every_s = self._config.check_s * (1 if young else _OLD_FACTOR)
        return now_ns - month.listed_ns >= every_s * _SECOND_NS

    def _download(self, need: Need, room: _Room) -> Task | None:
        """The task that brings a file, or None and a reason to wait."""
        file, key = need.file, f"download {need.file.address} {need.file.etag}"
        if key in self._downloading:
            return self._download_task(key, need, room, self._downloading[key].remove)
        pause = self._pauses.get(file.address)
        if pause is not None and pause.tag == file.etag and pause.holds(room.now_ns):
            self._hold(file, pause.trouble.cause, pause.trouble.reason, pause.retry)
        elif room.quiet_end_ns is not None and not need.priority:
            until = self._state.calendar.format_time(room.quiet_end_ns)
            text = f"{file.address} is downloaded after the close, {until}; a region asks for it at once"
            self._hold(file, "quiet", text)
        else:
            more = max(0, file.size - self._parts.get(self._part(file), 0))
            remove = self._make_room(room, more)
            if isinstance(remove, str):
                self._hold(file, "budget", f"{file.address} needs {_gib(more)}, and {remove}")
                return None
            return self._download_task(key, need, room, remove)
        return None

    def _make_room(self, room: _Room, more: int) -> tuple[str, ...] | str:
        """What to remove so that so many more bytes have room, which are counted as used; or why they have none."""
        budget = int(self._config.download_budget_gib * (1 << 30))
        used, remove = room.used, 0
        while used + more > budget and remove < len(room.removable):
            path = room.removable[remove]
            used -= self._kept[path][0] if path in self._kept else self._parts[path]
            remove += 1
        if used + more > budget:
            return f"{_gib(room.used)} of download_budget_gib = {self._config.download_budget_gib:g} are taken"
        free = shutil.disk_usage(self._state.directory).free + room.used - used
        if free - more < _FREE_MIN_BYTES:
            return f"{_gib(free)} are free on the disk"
        going, room.removable[:remove] = room.removable[:remove], []
        room.used = used + more
        return tuple(map(str, going))

    def _download_task(self, key: str, need: Need, room: _Room, remove: tuple[str, ...]) -> Task:
        arguments = DownloadArguments(
            self._place,
            need.file.dataset,
            name_of(need.file.dataset, need.file.session),
            need.file.etag,
            need.file.size,
            self._stem(need.file),
            room.spans,
            self._config.quiet_mib_per_s * (1 << 20) if need.priority else None,
            remove,
        )
        return self._task(key, need.file.session, "download", arguments, need.priority)

    def _task(self, key: str, session: str, function: str, arguments: Any, priority: int = 0) -> Task:
        return Task(
            self._engine, key, session, f"engines.raw_fetch:{function}", arguments, remote=True, priority=priority,
            makes_files=False, symbols=(),
        )  # fmt: skip

    def _hold(self, file: UpstreamFile, cause: str, detail: str, retry: Retry | None = None) -> None:
        """Leave a download for later, and say why."""
        self._held.append(Waiting(cause, self._column, file.session, detail, retry=retry))

    # ---- room

    def _used(self) -> int:
        """Bytes of the disk that are taken or spoken for."""
        running = self._downloading.values()
        over = {Path(path) for one in running for path in one.remove} | {one.part for one in running}
        kept = sum(size for path, (size, _) in self._kept.items() if path not in over)
        parts = sum(size for path, size in self._parts.items() if path not in over)
        return kept + parts + sum(one.size for one in running)

    def _spare(self, in_use: set[Path]) -> list[Path]:
        """Files and parts that no need is for; parts only where the object is another one now."""
        spare = [path for path in self._kept if path not in in_use]
        for path in self._parts:
            whole = path.with_name(path.name.partition(".part")[0])
            if whole not in in_use and self._is_superseded(whole):
                spare.append(path)
        return spare

    def _is_superseded(self, path: Path) -> bool | None:
        """Whether a path is of an object that is not there any more; None while that is not known."""
        found = _KEPT.fullmatch(path.name)
        datasets = {one.value.replace("/", "-"): one for one in self._datasets}
        if found is None or found["dataset"] not in datasets:
            return True
        file = self.find(datasets[found["dataset"]], found["session"])
        return None if file is None else not file.exists or self._target(file) != path

    def _is_over(self, path: Path, now_ns: int) -> bool:
        """Whether a file that nobody needs has been kept long enough, or is of an object that is no more."""
        superseded = self._is_superseded(path.with_name(path.name.partition(".part")[0]))
        if superseded is None:
            # Its session was not looked at yet, so nobody knows who needs it.
            return False
        return superseded or now_ns - self._kept[path][1] >= self._config.source_days * _DAY_NS

    # ---- what came back

    def started(self, task: Task) -> None:
        """Speak for the disk that a download will take."""
        arguments = task.arguments
        if isinstance(arguments, DownloadArguments):
            part = Path(f"{target_of(arguments.target, arguments.etag)}.part")
            self._downloading[task.key] = _Running(arguments.size, part, arguments.remove)

    def ended(self, task: Task) -> None:
        """Let go of it: what is there now is seen in the folder."""
        if self._downloading.pop(task.key, None) is not None:
            self._see_folder()

    def finished(self, task: Task, report: Any) -> tuple[UpstreamFile, str] | None:
        """Take a listing or a download; an object that is damaged as it lies there, and why, or None."""
        if isinstance(report, Listed):
            self._take_listing(report)
            return None
        assert isinstance(report, Downloaded)
        self.received += report.received
        self.resumed += report.resumed
        arguments: DownloadArguments = task.arguments
        address, trouble = f"{self._place.address}/{arguments.name}", report.trouble
        if report.facts is None or report.facts.etag != arguments.etag:
            # Another object, or none, or nobody knows: what the listing said is over.
            self._months[arguments.name.rpartition("/")[0]].listed_ns = 0
        if trouble is None:
            self._pauses.pop(address, None)
        elif trouble.cause == "damaged":
            return UpstreamFile(
                arguments.dataset, task.session, address, arguments.size, arguments.etag
            ), trouble.reason
        elif trouble.cause != "quiet":
            before = self._pauses.get(address)
            now_ns = self._state.system.now_ns()
            self._pauses[address] = self._pausing.after(trouble, now_ns, before, arguments.etag)
        return None

    def _take_listing(self, report: Listed) -> None:
        now_ns = self._state.system.now_ns()
        self._see_folder()
        for prefix, objects in report.objects.items():
            self._months[prefix] = _Month(now_ns, {one.name: one for one in objects})
        if report.trouble is None:
            self._list_pause = None
        else:
            self._list_pause = self._pausing.after(report.trouble, now_ns, self._list_pause)

    def retry(self) -> None:
        """Forget all pauses, and ask for the newest listings."""
        self._list_pause = None
        self._pauses.clear()
        for month in self._months.values():
            month.listed_ns = 0

    # ---- what is said

    def waiting(self) -> list[Waiting]:
        """Downloads that are held back, and sessions whose listing cannot be had."""
        found = list(self._held)
        if self._list_pause is not None:
            trouble, retry = self._list_pause.trouble, self._list_pause.retry
            cause = "unreachable" if trouble.cause == "missing" else trouble.cause
            found += [Waiting(cause, self._column, one, trouble.reason, retry=retry) for one in self._unlisted]
        return found

    def health(self) -> Health | None:
        """Degraded while the bucket or an object cannot be had, paused while hours or budget hold downloads back."""
        pauses = [self._list_pause] if self._list_pause is not None else list(self._pauses.values())
        if pauses:
            newest = max(pauses, key=lambda one: one.until_ns)
            return Health("degraded", newest.said(self._state.calendar))
        for cause in ("budget", "quiet"):
            held = [one for one in self._held if one.cause == cause]
            if held:
                return Health(
                    "paused", f"{len(held)} download{'s' if len(held) > 1 else ''} held back: {held[0].detail}"
                )
        return None

    def numbers(self) -> list[Number]:
        """What was brought, what is kept, and what is held back."""
        kept = sum(size for size, _ in self._kept.values()) + sum(self._parts.values())
        found = [
            Number("download_bytes", "Bytes that downloads brought since the start.", self.received, counter=True),
            Number(
                "download_resumed_bytes", "Bytes that downloads found of earlier attempts since the start.", self.resumed,
                counter=True,
            ),
            Number("download_kept_bytes", "Bytes of downloaded files and parts; download_budget_gib bounds them.", kept),
        ]  # fmt: skip
        for cause in ("budget", "quiet", "unreachable", "denied", "missing"):
            held = sum(one.cause == cause for one in self._held)
            text = "Downloads that are held back, by cause; unreachable and denied need a look at the bucket."
            found.append(Number("downloads_held_back", text, held, labels={"cause": cause}))
        return found


def _prefix(dataset: Dataset, session: str) -> str:
    return name_of(dataset, session).rpartition("/")[0]


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB"
