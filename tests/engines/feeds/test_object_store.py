"""Sources of files: a folder and a local S3 server; cuts at any byte, replacements, and what is not there."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.feeds.bucket_source import BucketSource
from engines.feeds.feed_errors import SourceFailing, SourceMissing, SourceRefused, SourceReplaced, SourceUnreachable
from engines.feeds.object_store import open_source
from engines.feeds.retrying import RetryPolicy
from tests.buckets import CREDENTIALS, Bucket, CuttingProxy, made_bucket, s3_server
from tests.engines.feeds.test_stream import listening, self_signed

DATA = gzip.compress(random.Random(7).randbytes(60_000))
NAME = "us_stocks_sip/trades_v1/2013/10/2013-10-07.csv.gz"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server in this process."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The bucket, with credentials in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("M17_S3_ENDPOINT", server)
    return made_bucket(server)


def source(endpoint: str, *, attempts: int = 5, range_bytes: int = 20_000) -> BucketSource:
    """The bucket's source, sleeping on paper."""
    return BucketSource(
        "s3://flatfiles/massive", endpoint=endpoint, range_bytes=range_bytes, sleep=lambda _: None,
        policy=RetryPolicy(attempts=attempts), timeout_seconds=60.0,
    )  # fmt: skip


def test_an_object_is_downloaded_by_ranges_and_its_facts_are_kept(bucket: Bucket, tmp_path: Path) -> None:
    """Whole, under its name, and nothing beside it."""
    bucket.put(NAME, DATA)
    opened = open_source("s3://flatfiles/massive")
    seen: list[tuple[int, int]] = []

    facts = opened.download(NAME, tmp_path / "day.csv.gz", progress=lambda done, of: seen.append((done, of)))

    assert (tmp_path / "day.csv.gz").read_bytes() == DATA
    assert facts == opened.stat(NAME)
    assert (facts.size, bool(facts.etag)) == (len(DATA), True)
    assert seen[-1] == (len(DATA), len(DATA))
    assert [each.name for each in tmp_path.iterdir()] == ["day.csv.gz"]
    assert opened.local_path(NAME) is None


@pytest.mark.parametrize("cut", [0, 1, 19_999, 20_000, 20_001, 45_678, len(DATA) - 1])
def test_a_download_goes_on_where_it_was_cut(bucket: Bucket, tmp_path: Path, cut: int) -> None:
    """At any byte, in the same process and in the next; no byte that was written is fetched again."""
    bucket.put(NAME, DATA)
    cuts = [20_000] * (cut // 20_000) + [cut % 20_000]
    proxy = CuttingProxy(bucket.endpoint, [*cuts, *([0] * 10)])
    target = tmp_path / "day.csv.gz"
    try:
        with pytest.raises((SourceFailing, SourceUnreachable)):
            source(proxy.endpoint, attempts=2).download(NAME, target)
        part = tmp_path / "day.csv.gz.part"
        have = part.stat().st_size if part.exists() else 0
        assert not target.exists()
        proxy.cuts.clear()
        again = source(proxy.endpoint)
        again.download(NAME, target)
    finally:
        proxy.close()

    assert target.read_bytes() == DATA
    # What was on its way when the connection broke may be lost, and nothing else.
    assert cut - 20_000 <= have <= cut
    assert again.counts.bytes_resumed == have
    assert again.counts.bytes_received == len(DATA) - have


def test_cuts_in_the_middle_are_healed_without_help(bucket: Bucket, tmp_path: Path) -> None:
    """Every answer is cut once; attempts are counted anew after every byte."""
    bucket.put(NAME, DATA)
    proxy = CuttingProxy(bucket.endpoint, [3_000, 1_000, 500, 7_000, 1, 12_000])
    try:
        opened = source(proxy.endpoint, attempts=3)
        opened.download(NAME, tmp_path / "day.csv.gz")
    finally:
        proxy.close()

    assert (tmp_path / "day.csv.gz").read_bytes() == DATA
    assert sum(opened.counts.retried.values()) >= 1


def test_a_replaced_object_is_read_anew(bucket: Bucket, tmp_path: Path) -> None:
    """Half of the old one is never the beginning of the new one; neither in one download nor in two."""
    newer = gzip.compress(random.Random(8).randbytes(50_000))
    bucket.put(NAME, DATA)
    replaced: list[int] = []

    def replace(done: int, _: int) -> None:
        if not replaced and done >= 20_000:
            replaced.append(done)
            bucket.put(NAME, newer)

    facts = source(bucket.endpoint).download(NAME, tmp_path / "day.csv.gz", progress=replace)

    assert replaced
    assert (tmp_path / "day.csv.gz").read_bytes() == newer
    assert facts.size == len(newer)


def test_an_object_replaced_again_and_again_is_given_up(bucket: Bucket, tmp_path: Path) -> None:
    """Bounded, with an error of its own."""
    turn = [0]

    def replace(done: int, size: int) -> None:
        if done < size:
            turn[0] += 1
            bucket.put(NAME, gzip.compress(random.Random(turn[0]).randbytes(50_000 + turn[0])))

    bucket.put(NAME, DATA)
    with pytest.raises(SourceReplaced):
        source(bucket.endpoint, attempts=3).download(NAME, tmp_path / "day.csv.gz", progress=replace)


@pytest.mark.parametrize("damaged", [DATA[:-1], DATA[:-8] + bytes(8), b"no gzip", DATA + b"behind", b""])
def test_an_object_that_is_no_whole_gzip_stream_gets_no_name(bucket: Bucket, tmp_path: Path, damaged: bytes) -> None:
    """Cut, wrong checksum, something else, something behind it, nothing: the store has it so."""
    bucket.put(NAME, damaged)

    with pytest.raises(SourceFailing, match="gzip"):
        source(bucket.endpoint).download(NAME, tmp_path / "day.csv.gz")

    assert list(tmp_path.iterdir()) == []


def test_several_gzip_members_are_one_file(bucket: Bucket, tmp_path: Path) -> None:
    """As some stores write them."""
    bucket.put(NAME, DATA + gzip.compress(b"more"))

    source(bucket.endpoint).download(NAME, tmp_path / "day.csv.gz")

    assert (tmp_path / "day.csv.gz").stat().st_size == len(DATA + gzip.compress(b"more"))


def test_a_missing_day_is_missing(bucket: Bucket, tmp_path: Path) -> None:
    """For stat, exists and download; an unknown bucket too."""
    opened = open_source("s3://flatfiles/massive")

    assert not opened.exists("2013-10-12.csv.gz")
    with pytest.raises(SourceMissing):
        opened.download("2013-10-12.csv.gz", tmp_path / "day.csv.gz")
    with pytest.raises(SourceMissing):
        list(open_source("s3://no-such-bucket").list())
    assert bucket.endpoint


def test_years_are_listed_in_order(bucket: Bucket) -> None:
    """More keys than one answer holds, below a folder, names relative to the source."""
    names = [f"years/{year}/{day:03d}.csv.gz" for year in range(2013, 2018) for day in range(252)]
    from moto.s3.models import s3_backends

    for name in names:
        s3_backends["123456789012"]["aws"].put_object("flatfiles", f"massive/{name}", b"x")
    bucket.put("yearsago/other", b"x")

    listed = list(open_source("s3://flatfiles/massive").list("years"))

    assert [facts.name for facts in listed] == names
    assert {facts.size for facts in listed} == {1}


def test_wrong_and_absent_credentials_are_refused(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hint, without an attempt more, and without asking a cloud for others."""
    bucket.put(NAME, DATA)
    with bucket.refusing():
        with pytest.raises(SourceRefused, match="credentials") as caught:
            source(bucket.endpoint).download(NAME, tmp_path / "day.csv.gz")
        with pytest.raises(SourceRefused):
            list(source(bucket.endpoint).list())
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(SourceRefused, match="no credentials"):
        source(bucket.endpoint).stat(NAME)


def test_a_store_that_is_not_there_is_unreachable(bucket: Bucket) -> None:
    """Nobody listening, and no such name."""
    assert bucket.endpoint
    with pytest.raises(SourceUnreachable, match="listens"):
        source("http://127.0.0.1:1").stat(NAME)
    with pytest.raises(SourceUnreachable, match=r"no such host \(DNS\)"):
        source("http://no.such.host.invalid").stat(NAME)


def test_a_store_with_a_certificate_that_nobody_vouches_for_is_said_to_be_one(bucket: Bucket, tmp_path: Path) -> None:
    """In a sentence, with what to check, after bounded attempts; the library's own structures are left out."""
    assert bucket.endpoint
    with listening(self_signed(tmp_path)) as port:
        opened = source(f"https://localhost:{port}", attempts=3)
        with pytest.raises(SourceUnreachable, match="TLS failed") as caught:
            opened.stat(NAME)
    assert "certificate" in caught.value.reason
    assert "certificates" in caught.value.hint
    assert "{" not in caught.value.reason
    assert sum(opened.counts.retried.values()) <= 3


def test_a_capped_transfer_sleeps_for_its_rate(bucket: Bucket, tmp_path: Path) -> None:
    """By a clock that stands still, all of the time is slept."""
    bucket.put(NAME, DATA)
    slept: list[float] = []
    capped = BucketSource(
        "s3://flatfiles/massive", rate=lambda: 10_000.0, sleep=slept.append, clock=lambda: 0.0, range_bytes=20_000
    )

    capped.download(NAME, tmp_path / "day.csv.gz")

    assert slept[-1] == pytest.approx(len(DATA) / 10_000.0)


def test_a_folder_has_the_same_interface(tmp_path: Path) -> None:
    """List, stat, exists, a checked copy, and the file itself."""
    folder, target = tmp_path / "source", tmp_path / "copy.csv.gz"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "2.csv.gz").write_bytes(DATA)
    (folder / "1.csv.gz").write_bytes(DATA[:-1])
    opened = open_source(folder)

    assert [facts.name for facts in opened.list()] == ["1.csv.gz", "b/2.csv.gz"]
    assert [facts.name for facts in opened.list("b")] == ["b/2.csv.gz"]
    assert list(opened.list("c")) == []
    assert opened.exists("b/2.csv.gz")
    assert not opened.exists("3.csv.gz")
    assert opened.download("b/2.csv.gz", target) == opened.stat("b/2.csv.gz")
    assert target.read_bytes() == DATA
    assert opened.local_path("1.csv.gz") == folder / "1.csv.gz"
    with pytest.raises(SourceFailing, match="cut short"):
        opened.download("1.csv.gz", target)


def test_a_replaced_file_has_another_etag(tmp_path: Path) -> None:
    """Also where size and time are the same."""
    (tmp_path / "a").write_bytes(b"1")
    before = open_source(tmp_path).stat("a")
    (tmp_path / "b").write_bytes(b"2")
    os.utime(tmp_path / "b", ns=(before.last_modified_ns, before.last_modified_ns))
    (tmp_path / "b").replace(tmp_path / "a")

    assert open_source(tmp_path).stat("a").etag != before.etag


@pytest.mark.parametrize("address", ["ftp://host/x", "s3://", "https://host/bucket"])
def test_other_addresses_are_refused(address: str) -> None:
    """With what is known."""
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        open_source(address)
