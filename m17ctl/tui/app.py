"""
How `m17ctl tui` begins: a terminal, a daemon that answers, the sessions of its year; then the view.

This module must never open the view where there is nobody to look at it.
"""

from __future__ import annotations

import sys

from m17ctl.client import Client
from m17ctl.formats import zone_of
from m17ctl.invocation import DEFAULT_TIMEOUT_SECONDS, CommandFailed, Invocation
from m17ctl.tui.axis import Axis
from m17ctl.tui.pump import Pump
from m17ctl.tui.settings import settings_path
from m17ctl.tui.view import Surroundings, View
from m17d.protocol import HelloRequest, SessionsListRequest
from m17d.replies import HelloReply, SessionsReply


def run(invocation: Invocation) -> int:
    """
    Open the view until it is left; its exit code.

    Raises:
        ClientError: the daemon does not answer, or there is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):
        raise CommandFailed("bad_request", "the view needs a terminal", "over ssh: ssh -t HOST m17ctl tui")
    hello = invocation.call(HelloRequest(client="m17ctl tui"), HelloReply)
    sessions = invocation.call(SessionsListRequest(), SessionsReply)
    invocation.close()

    def connect() -> Client:
        return Client(invocation.socket, invocation.timeout_s or DEFAULT_TIMEOUT_SECONDS)

    view = View(
        Surroundings(
            axis=Axis.of(sessions.sessions),
            zone=zone_of(hello.exchange),
            state_dir=hello.state_dir,
            settings_file=settings_path(),
            pump=lambda deliver: Pump(connect, deliver),
        )
    )
    return view.run() or 0
