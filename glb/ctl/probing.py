"""Carries out the search of many links at once, in rounds: all sizes of a round are under way together."""

from __future__ import annotations

import itertools
import secrets
import time
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING

from glb.ctl.links import Link
from glb.ctl.probe_socket import ProbeSocket, own_address
from glb.ctl.wait import progress_shown
from glb.errors import DeviceError

if TYPE_CHECKING:
    from glb.table.fields import Address

TRIES = 3  # a size counts as lost when so many packets were
LISTEN_EVERY = 64  # packets sent, so that answers do not fill the socket meanwhile
SHOWN_AFTER_S = 1.0


class Probing:
    """One run. Afterwards every link's search knows what the link carries."""

    def __init__(self, sockets: ProbeSocket, gue_port: int, timeout_s: float) -> None:
        self._sockets = sockets
        self._gue_port = gue_port
        self._timeout_s = timeout_s
        self._keys = itertools.count(secrets.randbits(31))  # so that answers to another glbctl are not ours
        self._sent: dict[int, tuple[Link, int]] = {}  # key -> link and size
        self._answered: set[tuple[Link, int]] = set()
        self._missing: set[tuple[Link, int]] = set()  # of the round that is under way
        self._by_first: dict[Address, list[Link]] = {}
        self._sources: dict[Address, Address] = {}  # target -> this host's address towards it
        self._began_at = time.monotonic()

    def run(self, links: list[Link]) -> None:
        direct = [link for link in links if link.via is None]
        self._search(direct, "from this host to proxies")
        reached = {link.to: link.path_mtu for link in direct}
        onward = []
        for link in links:
            limit = reached.get(link.via) if link.via is not None else None
            if limit is not None and reached.get(link.to) is not None:
                link.search.limit(limit)  # more does not come as far as this link
                onward.append(link)
        self._search(onward, "from proxies to proxies")

    def _search(self, links: list[Link], label: str) -> None:
        with progress_shown() as progress:
            while True:
                sizes = {link: found for link in links if (found := link.search.next_sizes())}
                if time.monotonic() - self._began_at > SHOWN_AFTER_S:
                    done = len(links) - len(sizes)
                    progress.show(done, len(links), f"{done} of {len(links)} links {label}")
                if not sizes:
                    return
                self._round([(link, size) for link, found in sizes.items() for size in found])
                for link, found in sizes.items():
                    answered = {size for size in found if (link, size) in self._answered}
                    link.search.note(answered, set(found) - answered)

    def _round(self, todo: list[tuple[Link, int]]) -> None:
        """Send each size of each link until it is answered, TRIES times at most."""
        self._by_first = {}
        for link in dict.fromkeys(link for link, _ in todo):
            self._by_first.setdefault(link.first, []).append(link)
        for _ in range(TRIES):
            self._missing = {each for each in todo if each not in self._answered}
            if not self._missing:
                return
            sent = False
            for count, (link, size) in enumerate(list(self._missing), start=1):
                sent |= self._send(link, size)
                if count % LISTEN_EVERY == 0:
                    self._take(0)
            if sent:
                self._take(self._timeout_s)

    def _send(self, link: Link, size: int) -> bool:
        key = next(self._keys) & 0xFFFFFFFF
        self._sent[key] = link, size
        try:
            outer = self._source(link.first)
            inner = outer if link.vip.version == 4 else self._source(link.vip)
        except DeviceError as error:  # this link has no answer; others may
            link.refusal = str(error)
            return False
        assert isinstance(outer, IPv4Address)
        refusal = self._sockets.send(link.packet(outer, inner, key, size, self._gue_port))
        link.refusal = refusal or link.refusal
        return refusal is None

    def _source(self, target: Address) -> Address:
        if target not in self._sources:
            self._sources[target] = ip_address(own_address(str(target)))
        return self._sources[target]

    def _take(self, timeout_s: float) -> None:
        """Answers for so long, or until none is missing."""
        for answer in self._sockets.answers(timeout_s) if self._missing else ():
            if answer.kind == "too_big":
                for link in self._by_first.get(answer.destination or answer.source, ()):
                    link.routers[str(answer.source)] = answer.mtu_bytes
                    link.search.hint(answer.mtu_bytes)
                continue
            asked = self._sent.get(answer.key)
            if asked is not None and (answer.kind == "echo") == (asked[0].via is None):
                self._answered.add(asked)
                self._missing.discard(asked)
            if not self._missing:
                return
