"""
The threads beside the screen: one for what people wait for, one for what takes longer, one that listens to events.

Each has a connection of its own, opened again after the daemon went away. The screen hands jobs over and is told results; it
never waits. Answers of the daemon are taken against credit, so the daemon never waits for the screen either. This module must
never touch a widget but through the one function it is given.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from m17ctl.client import Client
from m17ctl.errors import ClientError, DaemonUnreachable, TimedOut
from m17ctl.tui.questions import GridJob, Job, PriceJob
from m17d.outcomes import Event, SubscribeReply

TOPICS: Final = ("task", "region", "operation", "blocked")
_AGAIN_S: Final = 1.0
"""After the daemon went away, how long until it is asked for again."""
_TURN_S: Final = 0.0005


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that was not done, and why."""

    job: Job
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Connected:
    """Whether the daemon answers; said when it changes."""

    there: bool
    message: str = ""


class Lane:
    """One thread with one connection that does jobs in the order they came, the newest of each key only."""

    def __init__(self, connect: Callable[[], Client], deliver: Callable[[object], object], name: str) -> None:
        self._connect = connect
        self._deliver = deliver
        self._jobs: dict[str, Job] = {}
        self._running = ""
        self._superseded = False
        self._stopping = False
        self._there: bool | None = None
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"m17 {name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Do a job; one of the same key that waits is forgotten, one that runs stops at its next result."""
        with self._wake:
            self._jobs.pop(job.key, None)
            self._jobs[job.key] = job
            if self._running == job.key:
                self._superseded = True
            self._wake.notify()

    def drop(self) -> None:
        """Forget every job that waits, and stop the one that runs: nobody looks at that symbol any more."""
        with self._wake:
            self._jobs.clear()
            self._superseded = True

    @property
    def idle(self) -> bool:
        """True when nothing runs or waits."""
        with self._wake:
            return not self._jobs and not self._running

    def stop(self) -> None:
        """End the thread when it is next between results; it holds nothing that must be kept."""
        with self._wake:
            self._stopping = self._superseded = True
            self._wake.notify()

    def _emit(self, result: object) -> bool:
        if self._superseded:
            return False
        self._deliver(result)
        return True

    def _next(self) -> Job | None:
        with self._wake:
            self._running = ""
            self._wake.wait_for(lambda: self._jobs or self._stopping)
            if self._stopping:
                return None
            key = next(iter(self._jobs))
            self._running, self._superseded = key, False
            return self._jobs.pop(key)

    def _work(self) -> None:
        client = self._connect()
        try:
            while (job := self._next()) is not None:
                self._do(client, job)
        finally:
            client.close()

    def _do(self, client: Client, job: Job) -> None:
        try:
            job.run(client, self._emit)
        except (DaemonUnreachable, TimedOut) as error:
            client.close()
            self._say(False, str(error))
            self._deliver(Failed(job, str(error), error.hint))
            with self._wake:
                self._wake.wait_for(lambda: self._stopping, timeout=_AGAIN_S)
        except ClientError as error:
            self._say(True)
            self._deliver(Failed(job, str(error), error.hint))
        except OSError as error:
            self._deliver(Failed(job, f"{error.strerror or error}", "the artifacts must be readable from here"))
        else:
            self._say(True)

    def _say(self, there: bool, message: str = "") -> None:
        if there is not self._there:
            self._there = there
            self._deliver(Connected(there, message))


class Pump:
    """
    All threads of one view.

    Args:
        connect: makes a connection to the daemon.
        deliver: takes results, from any thread.
    """

    def __init__(self, connect: Callable[[], Client], deliver: Callable[[object], object]) -> None:
        self._connect = connect
        self._deliver = deliver
        self._quick = Lane(connect, deliver, "quick")
        self._long = Lane(connect, deliver, "long")
        self._stopping = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="m17 events", daemon=True)

    def start(self) -> None:
        """Begin."""
        # These threads share the interpreter with the screen, which must not wait 5 ms each time for its turn.
        sys.setswitchinterval(_TURN_S)
        for lane in (self._quick, self._long):
            lane.start()
        self._listener.start()

    def submit(self, job: Job) -> None:
        """Do a job in the lane for its length."""
        lane = self._long if isinstance(job, (GridJob, PriceJob)) else self._quick
        lane.submit(job)

    def drop_long(self) -> None:
        """Forget grids and prices that are still to come."""
        self._long.drop()

    @property
    def idle(self) -> bool:
        """True when nothing is being fetched."""
        return self._quick.idle and self._long.idle

    def stop(self) -> None:
        """End every thread; none is waited for, all are daemons."""
        self._stopping.set()
        self._quick.stop()
        self._long.stop()

    def _listen(self) -> None:
        """Pass events on; after an interruption go on where it stopped."""
        epoch: str | None = None
        seq = 0
        while not self._stopping.is_set():
            client = self._connect()
            try:
                for one in client.subscribe(*TOPICS, from_seq=seq if epoch else None, epoch=epoch, idle_s=2.0):
                    if self._stopping.is_set():
                        return
                    if isinstance(one, SubscribeReply):
                        epoch, seq = one.epoch, max(seq, one.seq) if one.epoch == epoch else one.seq
                    elif isinstance(one, Event):
                        seq = one.seq + 1
                    self._deliver(one)
            except ClientError:
                self._stopping.wait(_AGAIN_S)
            finally:
                client.close()
