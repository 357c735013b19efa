"""Sessions from a bucket through the whole daemon: the folder's digest, replaced objects, cuts, kills, wrong credentials."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ledger
from ledger.columns import Column, Status
from ledger.digests import session_digest
from ledger.sources import SourceState
from ledger.state import open_state
from tests.buckets import CREDENTIALS, Bucket, CuttingProxy, made_bucket, s3_server
from tests.m17d import flat_files

SESSION = "2013-05-01"
NAME = f"{flat_files.DATASET}/2013/05/{SESSION}.csv.gz"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server in this process."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A prefix of the test's own, and credentials in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return made_bucket(server, f"{request.node.name.partition('[')[0]}-{abs(hash(request.node.name)) % 1000}")


def write_config(
    root: Path,
    address: str,
    endpoint: str,
    sessions: list[str] | None = None,
    *,
    extra: str = "",
    year: int = 2013,
    runner: str = "",
) -> None:
    """A config over a bucket; quiet hours follow the state's year, which is over."""
    keys = f'source = "{address}"\nendpoint = "{endpoint}"\ntimeout_s = 120\n{extra}\n'
    if sessions:
        keys += f"sessions = {sessions!r}\n".replace("'", '"')
    head = f'state_dir = "ledger.state"\n[runner]\nworkers = 2\n{runner}\n[calendar]\nyear = {year}\n'
    (root / "m17.toml").write_text(f"{head}[engines.trade_flatfile]\n{keys}")


def versions(root: Path, symbol: str) -> np.ndarray:
    """Versions of a symbol's trade cells."""
    with ledger.open(root / "ledger.state", readonly=True) as state:
        rows = state.trade.session(state.calendar.session_seq(SESSION))
        found: np.ndarray = rows.slots(Column.TRADE_REF, np.array([state.symbols.resolve(symbol)]))[0]["version"]
        return found


def digest(root: Path, session: str) -> str:
    """The session's digest."""
    with ledger.open(root / "ledger.state", readonly=True) as state:
        return next(step[0] for step in session_digest(state, session) if step is not None)


def start(root: Path) -> subprocess.Popen[str]:
    """A daemon that runs on."""
    command = [sys.executable, "-m", "m17d", "run", "--config", str(root / "m17.toml")]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, cwd=root)


def test_real_sessions_from_a_bucket_are_those_of_a_folder(bucket: Bucket, tmp_path: Path, shared_data: Path) -> None:
    """The same digest, the object's address and ETag in ``sources``, and one listing a month and dataset."""
    bucket.put_folder(shared_data / "flatfiles", "**/2014-06-06.csv.gz")
    proxy = CuttingProxy(bucket.endpoint)
    folders = [tmp_path / name for name in ("bucket", "folder")]
    try:
        for root, source in zip(folders, (bucket.address, str(shared_data / "flatfiles")), strict=True):
            root.mkdir()
            write_config(root, source, proxy.endpoint, ["2014-06-06"], year=2014)
            done = flat_files.run(root)
            assert done.returncode == 0, done.stderr
    finally:
        proxy.close()

    assert digest(folders[0], "2014-06-06") == digest(folders[1], "2014-06-06")
    assert len(proxy.listings()) == 2
    with ledger.open(folders[0] / "ledger.state", readonly=True) as state:
        for record in state.sources.for_session("2014-06-06"):
            assert record.name == f"{bucket.address}/{record.dataset}/2014/06/2014-06-06.csv.gz"
            assert len(record.etag) > 8
            assert record.state is SourceState.COMPLETE


def test_years_are_listed_a_month_at_a_time_and_only_where_sessions_are_wanted(bucket: Bucket, tmp_path: Path) -> None:
    """A range of two months costs a listing for each and dataset, however much else there is."""
    from moto.s3.models import s3_backends

    for year in range(2010, 2016):
        for day in range(252):
            name = f"{bucket.prefix}/{flat_files.DATASET}/{year}/{1 + day % 12:02d}/{year}-{day:03d}.csv.gz"
            s3_backends["123456789012"]["aws"].put_object("flatfiles", name, b"x")
    bucket.put(NAME, flat_files.packed(flat_files.good_lines(SESSION)))
    proxy = CuttingProxy(bucket.endpoint)
    try:
        write_config(tmp_path, bucket.address, proxy.endpoint, extra='from = "2013-04-30"\nto = "2013-05-02"')
        done = flat_files.run(tmp_path)
    finally:
        proxy.close()

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("does not exist") == 5
    assert len(proxy.listings()) == 4
    assert [line.split()[1].rpartition("/")[2] for line in proxy.gets()] == [f"{SESSION}.csv.gz"]


def test_a_replaced_object_moves_only_windows_whose_content_changed(bucket: Bucket, tmp_path: Path) -> None:
    """One price of one trade is another one now: that window and the next, whose previous price it is."""
    lines = flat_files.good_lines(SESSION)
    bucket.put(NAME, flat_files.packed(lines))
    write_config(tmp_path, bucket.address, bucket.endpoint, [SESSION])
    assert flat_files.run(tmp_path).returncode == 0
    assert (versions(tmp_path, "AAA") == 1).all()
    fields = lines[5].split(",")
    fields[6] = "99.5"
    bucket.put(NAME, flat_files.packed([*lines[:5], ",".join(fields), *lines[6:]]))
    assert flat_files.run(tmp_path).returncode == 0
    assert np.flatnonzero(versions(tmp_path, "AAA") != 1).tolist() == [40, 50]
    assert (versions(tmp_path, "BBB") == 1).all()


def test_a_repair_does_not_download_what_is_kept(bucket: Bucket, tmp_path: Path) -> None:
    """Cleared cells are filled from the file beside the state; where it is not kept, it is brought again."""
    bucket.put(NAME, flat_files.packed(flat_files.good_lines(SESSION)))
    proxy = CuttingProxy(bucket.endpoint)
    try:
        for keys, downloads in (("", 1), ("", 1), ("source_days = 0", 1), ("source_days = 0", 2)):
            write_config(tmp_path, bucket.address, proxy.endpoint, [SESSION], extra=keys)
            assert flat_files.run(tmp_path).returncode == 0
            assert len(proxy.gets()) == downloads
            with open_state(tmp_path / "ledger.state") as state:
                rows = state.trade.session(state.calendar.session_seq(SESSION))
                where = np.array([state.symbols.resolve("AAA")]), np.array([10])
                assert rows.slots(Column.TRADE_REF, *where)["status"][0] == Status.FILLED
                rows.clear_many(Column.TRADE_REF, *where, now_ns=rows.now_ns())
    finally:
        proxy.close()


def test_a_killed_daemon_goes_on_with_the_download(bucket: Bucket, tmp_path: Path) -> None:
    """Killed in the middle of an object, with a slow line that holds the rest back: no byte comes twice."""
    lines = flat_files.good_lines(SESSION)
    generator = random.Random(3)
    noise = [f"{line.rpartition(',')[0]},{generator.getrandbits(60)}" for line in lines[1:] for _ in range(2_000)]
    data = flat_files.packed([lines[0], *noise])
    bucket.put(NAME, data)
    half = len(data) // 2
    proxy = CuttingProxy(bucket.endpoint, [half], stall=True)
    write_config(tmp_path, bucket.address, proxy.endpoint, [SESSION])
    daemon = start(tmp_path)
    folder = tmp_path / "ledger.state" / "temporary" / "downloads" / "trade_flatfile"
    try:
        assert proxy.cut_reached.wait(60)
        end = time.monotonic() + 240
        while sum(path.stat().st_size for path in folder.glob("*.part")) < half - 200_000 and time.monotonic() < end:
            time.sleep(0.05)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait(timeout=120)
        have = sum(path.stat().st_size for path in folder.glob("*.part"))
        assert half - 262_144 <= have <= half
        proxy.released.set()
        done = flat_files.run(tmp_path)
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()
        proxy.close()

    assert done.returncode == 0, done.stderr
    assert "from before" in done.stderr
    assert proxy.served <= half + (len(data) - have) + 65_536
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        record = state.sources.get(flat_files.DATASET, SESSION)
        assert record is not None
        assert (record.state, record.rows) == (SourceState.COMPLETE, len(noise))


def test_cuts_of_every_kind_end_in_the_same_cells(bucket: Bucket, tmp_path: Path) -> None:
    """Cut at the first byte, in the middle, before the last: healed within the run."""
    data = flat_files.packed(flat_files.good_lines(SESSION))
    bucket.put(NAME, data)
    proxy = CuttingProxy(bucket.endpoint, [0, 1, len(data) // 2, 1, len(data) // 4])
    try:
        write_config(tmp_path, bucket.address, proxy.endpoint, [SESSION])
        done = flat_files.run(tmp_path)
    finally:
        proxy.close()
    assert done.returncode == 0, done.stderr
    assert (versions(tmp_path, "AAA") == 1).all()


def test_wrong_credentials_are_named_and_pass_when_they_are_right(bucket: Bucket, tmp_path: Path) -> None:
    """Exit 1 with what to look at, no cell, no second attempt at once; then nothing is left of it."""
    bucket.put(NAME, flat_files.packed(flat_files.good_lines(SESSION)))
    write_config(tmp_path, bucket.address, bucket.endpoint, [SESSION])
    with bucket.refusing():
        done = flat_files.run(tmp_path)
    assert done.returncode == 1
    assert "denied: trade_ref 2013-05-01" in done.stdout
    assert "AWS_ACCESS_KEY_ID" in done.stderr
    assert flat_files.run(tmp_path).returncode == 0
    assert (versions(tmp_path, "AAA") == 1).all()


def test_no_credentials_and_no_bucket_are_two_things(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a sentence of its own and exit 1."""
    write_config(tmp_path, "s3://no-such-bucket", bucket.endpoint, [SESSION])
    done = flat_files.run(tmp_path)
    assert done.returncode == 1
    assert "no such bucket" in done.stdout
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    done = flat_files.run(tmp_path)
    assert done.returncode == 1
    assert "no credentials in the environment" in done.stdout


def test_a_store_that_does_not_answer_is_unreachable(bucket: Bucket, tmp_path: Path) -> None:
    """Nobody there; the state says so and the run ends."""
    write_config(tmp_path, bucket.address, "http://127.0.0.1:1", [SESSION], runner="patience_s = 0")
    done = flat_files.run(tmp_path)
    assert done.returncode == 1
    assert "unreachable: trade_ref 2013-05-01" in done.stdout
    assert "nobody listens there" in done.stdout


def test_a_damaged_object_is_a_damaged_source_until_it_is_replaced(bucket: Bucket, tmp_path: Path) -> None:
    """As a damaged file is: named once, exit 1, not brought again, and a good one of the name is taken."""
    data = flat_files.packed(flat_files.good_lines(SESSION))
    bucket.put(NAME, data[:-8] + bytes(8))
    proxy = CuttingProxy(bucket.endpoint)
    try:
        write_config(tmp_path, bucket.address, proxy.endpoint, [SESSION])
        for _ in range(2):
            done = flat_files.run(tmp_path)
            assert done.returncode == 1
        assert len(proxy.gets()) == 1
        with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
            record = state.sources.get(flat_files.DATASET, SESSION)
            assert record is not None
            assert record.state is SourceState.DAMAGED
            assert record.reason.startswith(f"{bucket.address}/{NAME}: ")
        bucket.put(NAME, data)
        assert flat_files.run(tmp_path).returncode == 0
    finally:
        proxy.close()
    assert (versions(tmp_path, "AAA") == 1).all()


def test_a_file_whose_rows_are_damaged_is_named_by_its_address(bucket: Bucket, tmp_path: Path) -> None:
    """Not by the path of its copy, which nobody could replace."""
    bucket.put(NAME, gzip.compress(b"ticker;price\n", mtime=0))
    write_config(tmp_path, bucket.address, bucket.endpoint, [SESSION])
    done = flat_files.run(tmp_path)
    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if "ERROR" in line)
    assert f"{bucket.address}/{NAME}" in line
    assert "downloads" not in line


def test_a_download_stops_where_quiet_hours_begin(bucket: Bucket, tmp_path: Path) -> None:
    """What came stays; a region's download goes on, at its rate."""
    from engines.raw_fetch import DownloadArguments, Place
    from ledger.columns import Dataset
    from tests.engines.planning import fetched

    bucket.put(NAME, os.urandom(100_000))
    quiet = ((0, 2**62),)
    place = Place(bucket.address, bucket.endpoint)
    dataset = Dataset(flat_files.DATASET)
    arguments = DownloadArguments(place, dataset, NAME, "", 100_000, str(tmp_path / "a" / "day"), quiet)
    report = fetched("download", arguments)
    assert report.trouble.cause == "quiet"
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "a").glob("*.part")) <= 100_000

    capped = DownloadArguments(place, dataset, NAME, "", 100_000, str(tmp_path / "b" / "day"), quiet, 200_000.0)
    begun = time.monotonic()
    report = fetched("download", capped)
    assert time.monotonic() - begun >= 0.4
    assert report.trouble.cause == "damaged", "random bytes are no gzip stream"
