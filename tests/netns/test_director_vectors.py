"""Our own vectors on the wire: each frame into a running director, and what comes out."""

from __future__ import annotations

import json
import sys

import make_own
import own
import pytest

from tests.netns.directors import PACKET_AUXDATA, SOL_PACKET, Director, port_of
from tests.netns.topology import eventually

TP_STATUS_VLAN_VALID = 1 << 4

pytestmark = [pytest.mark.netns, pytest.mark.bpf]


def test_every_frame_that_is_sent_is_the_one_of_the_vector(director: Director) -> None:
    director.configure(
        f'outbound_src_ip = "{make_own.SOURCE}"\noutbound_src_mac = "{make_own.SOURCE_MAC}"\n'
        f'outbound_gateway_mac = "{make_own.GATEWAY_MAC}"\n'
    )
    director.replace_table(json.dumps(make_own.TABLES))
    director.start()
    files = [file for file, hashed in make_own.HASHED.items() if hashed == ("src_addr",)]
    vectors = [vector for file in files for vector in own.vectors(file) if vector["output_hex"]]
    with port_of(director.net, "director") as port:
        port.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)

        def received() -> str | None:
            """The next frame of the director's, with the tag that the kernel takes out."""
            while True:
                try:
                    data, ancillary, _, _ = port.recvmsg(65535, 64)
                except BlockingIOError:
                    return None
                if data[6:12].hex() in (sender, receiver):
                    auxiliary = ancillary[0][2]
                    status = int.from_bytes(auxiliary[:4], sys.byteorder)
                    tci, tpid = (int.from_bytes(auxiliary[at : at + 2], sys.byteorder) for at in (16, 18))
                    tag = tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") if status & TP_STATUS_VLAN_VALID else b""
                    return (data[:12] + tag + data[12:]).hex()

        sender, receiver = (own.mac(text).hex() for text in (make_own.SOURCE_MAC, make_own.RECEIVED_MAC))
        for vector in vectors:
            port.send(bytes.fromhex(vector["input_hex"]))
            assert eventually(received) == vector["output_hex"], vector["name"]
    forwarded = sum(vector["verdict"] == "forward" for vector in vectors)
    assert director.metric("glb_director_packets_total") == forwarded
    assert director.metric("glb_director_too_big_answers_total") == len(vectors) - forwarded
