"""Power cuts on a real file system: ext4 on a loop device, its image copied while the writer stands still, and mounted."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ledger.state import open_state
from tests.ledger.killed import Victim
from tests.ledger.states import copied, findings, findings_of
from tests.ledger.writer import ALONE, ORDERED, ROWS_FIRST, Promises, cells_of, lost, missing, wrong

IMAGE_BYTES = 96 << 20
WRITING = ["set"] * 8 + ["clear", "undo", "refresh", "flush", "allocate", "artifact", "region", "source", "audit",
                          "collect", "retire", "reread"]  # fmt: skip


def command(*words: object) -> None:
    """Run a program of the system; what it said belongs to the failure."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{words[0]}: {done.stderr.strip()}")


@contextmanager
def mounted(image: Path, where: Path) -> Iterator[Path]:
    """A loop mount of an image; mounting replays its journal."""
    where.mkdir(exist_ok=True)
    command("mount", "-o", "loop", image, where)
    try:
        yield where
    finally:
        command("umount", where)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in which images can be mounted; skipped where that is not allowed."""
    made = Path(tempfile.mkdtemp(prefix="m17-images-"))
    try:
        make_image(made / "trial")
        with mounted(made / "trial", made / "mount"):
            pass
    except OSError as error:
        shutil.rmtree(made)
        pytest.skip(f"no ext4 image can be mounted here: {error}")
    yield made
    shutil.rmtree(made)


def make_image(image: Path) -> None:
    """An empty ext4 that writes its journal often."""
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    command("mkfs.ext4", "-q", "-F", image)


def cut(folder: Path, template: Path, seed: int, policy: str) -> Counter[str]:
    """One writer on a fresh image, cut once; what was wrong with what was left."""
    image, after, chance = folder / "image", folder / "after", random.Random(seed)
    make_image(image)
    with mounted(image, folder / "mount") as mount:
        directory = copied(template, mount / "ledger.state")
        os.sync()
        victim = Victim(directory, seed, WRITING, Promises(), policy)
        try:
            for _ in range(chance.randrange(10, 60)):
                victim.wait_for("set")
            victim.stop()
            command("cp", "--sparse=always", image, after)
        finally:
            victim.kill()
    with mounted(after, folder / "mount") as mount:
        return look(mount / "ledger.state", victim.promises)


def look(directory: Path, promises: Promises) -> Counter[str]:
    """What a cut left."""
    seen = Counter(cuts=1)
    seen["dangling"] = any(one.code == "dangling" for one in findings(directory))
    with open_state(directory, flush_interval_s=3600) as state:
        found = cells_of(state)
        seen["cells"] = len(found)
        seen["wrong"] = bool(wrong(found, promises))
        seen["lost"] = bool(lost(found, promises, promises.durable) or missing(state, promises))
        seen["after recovery"] = bool(findings_of(state))
    seen["after recovery"] |= bool(findings(directory))
    return seen


def test_an_image_cut_in_the_middle_holds_what_was_promised(folder: Path, template: Path) -> None:
    """Twice, the real file system's journal replayed."""
    for seed in (1, 2):
        seen = cut(folder, template, seed, ORDERED)
        assert seen["cells"] > 0
        assert (seen["dangling"], seen["wrong"], seen["lost"], seen["after recovery"]) == (0, 0, 0, 0), seen


@pytest.mark.slow
def test_twenty_images(folder: Path, template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty images each of the ordered writer, of one that syncs rows first, and of one that leaves it to the system."""
    seed = random.randrange(1 << 30)
    for policy, cuts in ((ORDERED, 20), (ROWS_FIRST, 10), (ALONE, 10)):
        seen = Counter[str]()
        for number in range(cuts):
            seen += cut(folder, template, seed + number, policy)
        with capsys.disabled():
            print(f"\next4 images, seed {seed}, {policy}: {dict(seen)}")
        assert (seen["wrong"], seen["after recovery"]) == (0, 0)
        if policy == ORDERED:
            assert (seen["dangling"], seen["lost"]) == (0, 0)
        else:
            assert policy == ROWS_FIRST or seen["dangling"] > 0
