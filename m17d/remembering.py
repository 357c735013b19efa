"""
Remembering: what was answered under each idempotency key, over restarts, so that a mutation sent twice is done once.

A framed, synced log beside the audit log; old keys are dropped when it is opened. This module must never do a mutation.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

import msgspec

from ledger.documents import KEYS_FILE, KEYS_KIND, KEYS_VERSION
from ledger.framed import FramedFile
from ledger.state import State
from m17d.envelopes import REPLIES, Refused, operation_of
from m17d.outcomes import OperationRecord
from m17d.peers import Peer
from m17d.protocol import Request
from m17d.replies import Operator, Reply

KEEP_NS: Final = 7 * 24 * 3600 * 10**9


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    uid: int
    gid: int
    pid: int
    user: str
    op: str
    request: str
    """SHA-256 of the request, so that a key cannot be used for another."""
    ts: int
    reply: msgspec.Raw


class Remembering:
    """Keys and answers of one state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._file, payloads = FramedFile.open(
            state.system,
            state.directory / KEYS_FILE,
            KEYS_KIND,
            KEYS_VERSION,
            {"year": state.year},
            closed=state.closed_at(KEYS_FILE),
        )
        state.ends[KEYS_FILE] = lambda: self._file.length
        decoder = msgspec.msgpack.Decoder(_Kept)
        oldest = state.system.now_ns() - KEEP_NS
        everything = [decoder.decode(payload) for payload in payloads]
        kept = [one for one in everything if one.ts >= oldest]
        if len(kept) < len(everything) // 2:
            self._file.rewrite([msgspec.msgpack.encode(one) for one in kept])
        self._kept: dict[tuple[int, str], _Kept] = {(one.uid, one.key): one for one in kept}

    def replayed(self, key: str, request: Request, peer: Peer) -> Reply | None:
        """What this user was answered under the key; None for a new key. Raises Refused ``key_reused``."""
        kept = self._kept.get((peer.uid, key))
        if kept is None:
            return None
        if kept.request != _hash(request):
            raise Refused(
                "key_reused", f"the key {key} was used for another request", "give every operation its own key"
            )
        reply: Reply = msgspec.msgpack.decode(kept.reply, type=REPLIES[kept.op])
        return reply

    def remember(self, key: str, request: Request, peer: Peer, reply: Reply) -> None:
        """Keep the answer, durably; called after the effect and before the reply leaves."""
        self._keep(remembered_facts(key, request, peer, reply))

    def remember_again(self, facts: dict[str, Any]) -> None:
        """Keep an answer, from :func:`remembered_facts`, that was not kept when its process ended; once kept is enough."""
        if facts.get("key") and (facts["uid"], facts["key"]) not in self._kept:
            self._keep(facts)

    def _keep(self, facts: dict[str, Any]) -> None:
        reply = msgspec.Raw(msgspec.msgpack.encode(facts["reply"]))
        kept = msgspec.convert({**facts, "reply": reply, "ts": self._state.system.now_ns()}, _Kept)
        self._file.append([msgspec.msgpack.encode(kept)])
        self._kept[kept.uid, kept.key] = kept

    def record(self, key: str, peer: Peer) -> OperationRecord:
        """What became of the mutation under a key; raises Refused ``not_found``."""
        kept = self._kept.get((peer.uid, key))
        if kept is None:
            raise Refused(
                "not_found", f"nothing is known of the key {key}", "it was not applied; send the operation again"
            )
        reply: Any = msgspec.msgpack.decode(kept.reply)
        return OperationRecord(
            key=key,
            operation=str(reply.get("operation", "")) if isinstance(reply, dict) else "",
            op=kept.op,
            ts=kept.ts,
            outcome="applied",
            operator=Operator(uid=kept.uid, gid=kept.gid, pid=kept.pid, user=kept.user),
            reply=reply if isinstance(reply, dict) else {},
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def remembered_facts(key: str, request: Request, peer: Peer, reply: Reply) -> dict[str, Any]:
    """What is kept of a mutation and its answer, as plain JSON values."""
    return {
        "key": key,
        "uid": peer.uid,
        "gid": peer.gid,
        "pid": peer.pid,
        "user": peer.user,
        "op": operation_of(request),
        "request": _hash(request),
        "reply": msgspec.to_builtins(reply),
    }


def _hash(request: Request) -> str:
    return sha256(msgspec.msgpack.encode(request)).hexdigest()
