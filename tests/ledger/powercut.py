"""
A disk that loses power: what a file system may hold after a cut, page by page, for a state that runs on a real folder.

:class:`Disk` is a :class:`ledger.files.System` that works on the real folder (what the processes see) and remembers
beside it what is certainly on disk. A cut makes a folder out of what *may* be on disk:

- of every page written since the file's last sync any version that it ever had, the oldest included, page by page, in any
  order over all files; some pages sector by sector (512 bytes), because a sector is all that a disk promises;
- of every length since the last sync any;
- of names made, renamed and removed since the folder's last sync some, and of the others nothing.

Stores into a mapping are no system calls. So the mapped files are compared with what was last seen before every system
call and whenever the test says :meth:`Disk.look`; each difference is one more version of its page.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ledger.files import System

PAGE: Final = 4096
SECTOR: Final = 512
_ZERO: Final = bytes(PAGE)
_FOLDER: Final = -1


@dataclass
class Inode:
    """One file: what is certainly on disk, and what may have reached it since."""

    pages: dict[int, bytes] = field(default_factory=dict)
    """Synced; a page that is not here is zeros."""
    length: int = 0
    versions: dict[int, list[bytes]] = field(default_factory=dict)
    """Dirty pages: every content since the last sync, oldest first."""
    lengths: list[int] = field(default_factory=list)
    seen: dict[int, bytes] = field(default_factory=dict)
    """What a mapped file held when it was last looked at."""

    def synced(self) -> None:
        """What is dirty is on disk; a page that the kernel holds for clean is not written."""
        for page, versions in self.versions.items():
            self.pages[page] = versions[-1]
        self.length = self.lengths[-1] if self.lengths else self.length
        self.dropped()

    def dropped(self) -> None:
        """What is dirty counts as clean, written or not: a sync that failed does that."""
        self.versions, self.lengths = {}, []

    @property
    def newest_length(self) -> int:
        """As the processes see it."""
        return self.lengths[-1] if self.lengths else self.length


@dataclass(frozen=True)
class NameChange:
    """One change of a folder that is not synced: a name gets a file, or loses it, or hands it to another name."""

    folder: str
    names: frozenset[str]
    apply: Callable[[dict[str, int]], None]


class Disk(System):
    """
    The operating system over ``root``, with a memory of what is on disk.

    Args:
        root: the folder; what it holds now is on disk.
        moment: called before every system call with its name; where a test cuts.
    """

    def __init__(self, root: Path, moment: Callable[[str], None] = lambda _call: None) -> None:
        super().__init__()
        self.root = root
        self.moment = moment
        self.refuse: Callable[[str, str], int] = lambda _call, _path: 0
        """Errno with which a sync of a path fails, 0 where it works; its dirty pages count as clean afterwards."""
        self._lock = threading.RLock()
        self._inodes: dict[int, Inode] = {}
        self._open: dict[int, str] = {}
        self._names: dict[str, int] = {".": _FOLDER}
        self._adopt()
        self._durable = dict(self._names)
        self._changes: list[NameChange] = []

    def _adopt(self) -> None:
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_dir():
                self._names[name] = _FOLDER
                continue
            self._names[name] = number = path.stat().st_ino
            inode = self._inodes[number] = Inode(length=path.stat().st_size)
            with path.open("rb") as file:
                inode.pages = dict(_pages(file.fileno()))

    # ---- what the processes do

    def attempt(self, call: str, *arguments: Any) -> Any:
        """One system call on the real folder, remembered."""
        with self._lock:
            self.look()
            self.moment(call)
            if call in ("fdatasync", "fsync") and (fault := self.refuse(call, self._open.get(arguments[0], ""))):
                self._inodes[self._names[self._open[arguments[0]]]].dropped()
                raise OSError(fault, "injected")
            if call == "rename":
                self._forget_seen(arguments[1])
            result = super().attempt(call, *arguments)
            note = getattr(self, f"_note_{call}", None)
            if note is not None:
                note(result, *arguments)
            return result

    def look(self) -> None:
        """Find what was stored into mapped files since the last look."""
        with self._lock:
            for name in [name for name in self._open.values() if name.endswith(".rows")]:
                inode = self._inodes[self._names[name]]
                with (self.root / name).open("rb") as file:
                    found = dict(_pages(file.fileno()))
                for page, content in found.items():
                    if inode.seen.get(page, inode.pages.get(page, _ZERO)) != content:
                        inode.versions.setdefault(page, []).append(content)
                inode.seen = found

    def _name(self, path: Any) -> str:
        return os.path.relpath(os.fspath(path), self.root)

    def _note_open(self, descriptor: int, path: str, flags: int, _mode: int) -> None:
        name = self._name(path)
        if name.startswith(".."):
            return
        self._open[descriptor] = name
        if flags & os.O_DIRECTORY:
            return
        number = os.fstat(descriptor).st_ino
        if name not in self._names:
            self._inodes[number] = Inode()
            self._change(name, [name], lambda names: names.__setitem__(name, number))
        elif flags & os.O_TRUNC:
            self._cut(self._inodes[number], 0)

    def _note_close(self, _result: Any, descriptor: int) -> None:
        self._open.pop(descriptor, None)

    def _note_pwrite(self, written: int, descriptor: int, _data: Any, offset: int) -> None:
        inode = self._inode(descriptor)
        if inode is None:
            return
        for page in range(offset // PAGE, -(-(offset + written) // PAGE)):
            content = os.pread(descriptor, PAGE, page * PAGE).ljust(PAGE, b"\0")
            inode.versions.setdefault(page, []).append(content)
            if self._open[descriptor].endswith(".rows"):
                inode.seen[page] = content
        if offset + written > inode.newest_length:
            inode.lengths.append(offset + written)

    def _note_fallocate(self, _result: Any, descriptor: int, offset: int, length: int) -> None:
        inode = self._inode(descriptor)
        if inode is not None and offset + length > inode.newest_length:
            inode.lengths.append(offset + length)

    def _note_ftruncate(self, _result: Any, descriptor: int, length: int) -> None:
        inode = self._inode(descriptor)
        if inode is not None:
            self._cut(inode, length)

    def _cut(self, inode: Inode, length: int) -> None:
        """Bytes behind the new end are gone, should the file grow again."""
        for page in {*inode.pages, *inode.versions}:
            keep = min(max(length - page * PAGE, 0), PAGE)
            newest = inode.versions[page][-1] if page in inode.versions else inode.pages[page]
            if any(newest[keep:]):
                inode.versions.setdefault(page, []).append(newest[:keep].ljust(PAGE, b"\0"))
        inode.lengths.append(length)

    def _note_fdatasync(self, _result: Any, descriptor: int) -> None:
        inode = self._inode(descriptor)
        if inode is not None:
            inode.synced()

    def _note_fsync(self, _result: Any, descriptor: int) -> None:
        folder = self._open.get(descriptor)
        kept = []
        for change in self._changes:
            if change.folder == folder:
                change.apply(self._durable)
            else:
                kept.append(change)
        self._changes = kept

    def _note_rename(self, _result: Any, source: str, target: str) -> None:
        old, new = self._name(source), self._name(target)
        self._change(new, [old, new], lambda names: names.__setitem__(new, names.pop(old)))
        self._open = {one: new if name == old else name for one, name in self._open.items()}

    def _forget_seen(self, target: str) -> None:
        """The file that loses its name is open no more, whoever still holds a descriptor of it."""
        name = self._name(target)
        self._open = {one: held for one, held in self._open.items() if held != name}

    def _note_unlink(self, _result: Any, path: str) -> None:
        name = self._name(path)
        self._change(name, [name], lambda names: names.__delitem__(name))

    def _note_mkdir(self, _result: Any, path: str, _mode: int) -> None:
        name = self._name(path)
        self._change(name, [name], lambda names: names.__setitem__(name, _FOLDER))

    def _change(self, name: str, names: list[str], apply: Callable[[dict[str, int]], None]) -> None:
        change = NameChange(os.path.dirname(name) or ".", frozenset(names), apply)
        change.apply(self._names)
        self._changes.append(change)

    def _inode(self, descriptor: int) -> Inode | None:
        name = self._open.get(descriptor)
        return None if name is None else self._inodes.get(self._names.get(name, _FOLDER))

    # ---- what a cut leaves

    def cut(self, target: Path, chance: random.Random) -> None:
        """Make a folder of what may be on disk now; what nobody synced is left to chance."""
        with self._lock:
            self.look()
            names = self._names_after(chance)
            bias = {kind: chance.choice(("old", "new", "any", "any")) for kind in ("rows", "map", "")}
            target.mkdir()
            for name, number in sorted(names.items()):
                if number == _FOLDER:
                    (target / name).mkdir(exist_ok=True)
                elif (target / name).parent.is_dir():
                    kind = name.rpartition(".")[2] if "." in name else ""
                    self._write(target / name, self._inodes[number], bias.get(kind, "any"), chance)

    def _names_after(self, chance: random.Random) -> dict[str, int]:
        names, lost = dict(self._durable), set[str]()
        keep = chance.choice((0.1, 0.5, 0.9))
        for change in self._changes:
            # What was built on a lost change is lost too.
            if change.names & lost or chance.random() > keep:
                lost |= change.names
            else:
                change.apply(names)
        return names

    @staticmethod
    def _write(path: Path, inode: Inode, bias: str, chance: random.Random) -> None:
        def pick(candidates: list[Any]) -> Any:
            if bias == "any":
                return chance.choice(candidates)
            return candidates[0 if (bias == "old") == (chance.random() < 0.9) else -1]

        length = pick([inode.length, *inode.lengths])
        with path.open("wb") as file:
            for page in sorted({*inode.pages, *inode.versions}):
                candidates = [inode.pages.get(page, _ZERO), *inode.versions.get(page, [])]
                content = pick(candidates)
                if len(candidates) > 1 and chance.random() < 0.3:
                    starts = range(0, PAGE, SECTOR)
                    content = b"".join(pick(candidates)[start : start + SECTOR] for start in starts)
                if content != _ZERO:
                    os.pwrite(file.fileno(), content, page * PAGE)
            file.truncate(length)


def _pages(descriptor: int) -> Any:
    """Number and content of the pages of a file that hold data."""
    end, offset = os.fstat(descriptor).st_size, 0
    while offset < end:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:
            return
        offset = os.lseek(descriptor, start, os.SEEK_HOLE)
        data = os.pread(descriptor, offset - start, start)
        for at in range(0, len(data), PAGE):
            yield (start + at) // PAGE, data[at : at + PAGE].ljust(PAGE, b"\0")
