"""
Who is at the other end, and what they may do: kernel credentials to roles.

The only identity that counts is the address which libzmq takes from the kernel (``SO_PEERCRED``) when a connection is made.
What a client says about itself is recorded beside it. Must never believe a routing id: a client may choose its own.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from m17d.envelopes import Claimed, Refused
from m17d.replies import Operator

READ: Final = "read"
OPERATE: Final = "operate"
OVERFLOW_UID: Final = 65_534
"""The uid that the kernel shows for users of another namespace; never granted anything but read."""
_ADDRESS: Final = re.compile(r"^[^\x00]*:(\d{1,10}):(\d{1,10}):(\d{1,10})$")
_PEERS_MAX: Final = 4_096
_NO_CLAIM: Final = Claimed()
_SAID: Final = {
    "engines_control": "control engines",
    "priority_add": "add a region",
    "priority_remove": "remove a region",
    "sessions_open": "open a session",
}
"""Operations whose name is no verb."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that opened the connection, as the kernel named it then."""

    uid: int
    gid: int
    pid: int
    user: str
    roles: frozenset[str]

    @property
    def operator(self) -> Operator:
        """The same, as it is sent and logged."""
        return Operator(uid=self.uid, gid=self.gid, pid=self.pid, user=self.user)


@dataclass(frozen=True, slots=True)
class Context:
    """
    What a handler is told beside the request.

    ``key`` is empty for reads and dry runs; ``deadline_ms`` is UTC milliseconds since 1970, 0 for none.
    """

    peer: Peer
    key: str = ""
    durable: bool = False
    deadline_ms: int = 0
    claimed: Claimed = _NO_CLAIM


def roles_for(
    uid: int,
    gid: int,
    groups: Collection[int],
    *,
    operate_uids: Collection[int],
    operate_gids: Collection[int],
    daemon_uid: int,
) -> frozenset[str]:
    """
    The roles of a user: whoever can open the socket may read; root, the daemon's own and configured users and groups operate.

    Args:
        uid, gid: of the peer, from the kernel.
        groups: ids of all groups of that user.
        operate_uids, operate_gids: configured.
        daemon_uid: under which the daemon runs.
    """
    if uid == OVERFLOW_UID:
        return frozenset({READ})
    member = gid in operate_gids or any(group in operate_gids for group in groups)
    if uid in (0, daemon_uid) or uid in operate_uids or member:
        return frozenset({READ, OPERATE})
    return frozenset({READ})


@dataclass(slots=True)
class Peers:
    """
    Peers by the address that libzmq reports, with roles that are looked up again after ``seconds``.

    Args:
        operate_users: names of users who may operate, beside root and the daemon's own.
        operate_groups: names of groups whose members may operate.
    """

    operate_users: Collection[str] = ()
    operate_groups: Collection[str] = ()
    seconds: float = 60.0
    monotonic: Callable[[], float] = time.monotonic
    _known: dict[str, Peer] = field(default_factory=dict)
    _until: float = 0.0

    def let_operate(self, users: Collection[str], groups: Collection[str]) -> None:
        """Other users and groups may operate from now on, and those who no longer may, may not."""
        self.operate_users, self.operate_groups = users, groups
        self._known.clear()

    def of(self, address: str) -> Peer | None:
        """The peer behind ``host:uid:gid:pid``; None where the address has another form."""
        now = self.monotonic()
        if now >= self._until or len(self._known) >= _PEERS_MAX:
            self._known.clear()
            self._until = now + self.seconds
        peer = self._known.get(address)
        if peer is None:
            match = _ADDRESS.match(address)
            if match is None:
                return None
            peer = self._known[address] = self._look_up(*(int(number) for number in match.groups()))
        return peer

    def _look_up(self, uid: int, gid: int, pid: int) -> Peer:
        try:
            user = pwd.getpwuid(uid).pw_name
            groups = os.getgrouplist(user, gid)
        except KeyError:
            user, groups = "", [gid]
        roles = roles_for(
            uid,
            gid,
            groups,
            operate_uids=[found for name in self.operate_users if (found := _uid(name)) is not None],
            operate_gids=[found for name in self.operate_groups if (found := _gid(name)) is not None],
            daemon_uid=os.getuid(),
        )
        return Peer(uid, gid, pid, user, roles)


def require(peer: Peer, role: str, operation: str) -> None:
    """
    Refuse a peer without the role.

    Raises:
        Refused: ``permission_denied``.
    """
    if role not in peer.roles:
        raise Refused(
            "permission_denied",
            f"{peer.user or 'uid'} ({peer.uid}) may not {_SAID.get(operation, operation)}: it needs the role {role}",
            "ask an operator, or have yourself added to operate_users or operate_groups in the daemon's config",
            uid=peer.uid,
            role=role,
        )


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
