"""bpf/glb_verdicts.h, proxy_agent/xdp.py and decide.py name the same reasons, counters and bytes."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

from proxy_agent import config, syncookie, xdp
from proxy_agent.decide import REASONS
from proxy_agent.engine import Guard

HEADER = (Path(__file__).parents[2] / "bpf" / "glb_verdicts.h").read_text()


def enumerators(name: str) -> list[str]:
    body = re.search(rf"enum {name} \{{(.*?)\}}", HEADER, re.DOTALL)
    assert body is not None
    return re.findall(r"^\s+GLB_(\w+)", body[1], re.MULTILINE)


def test_reasons_are_those_of_the_vocabulary_in_its_order() -> None:
    assert enumerators("glb_why") == [f"WHY_{reason.name.upper()}" for reason in REASONS] + ["N_REASONS"]


def test_further_counters_follow_the_reasons() -> None:
    names = enumerators("glb_counter")
    assert [len(REASONS) + i for i in range(len(names))] == [getattr(xdp, name) for name in names]
    assert "GLB_COUNT_RECALLED = GLB_N_REASONS" in HEADER


def test_structures_have_the_size_that_the_header_asserts() -> None:
    sizes = dict(re.findall(r"_Static_assert\(sizeof\(struct (\w+)\) == (\d+)", HEADER))
    assert int(sizes["glb_cookie_question"]) == syncookie.QUESTION_BYTES
    assert len(xdp.options(19523, 3, by_redirect=True)) == int(sizes["glb_agent_options"])
    guard = Guard((ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")), None, ("10.0.0.1",))
    assert len(xdp.settings(guard, [1, 2])) == int(sizes["glb_agent_settings"])
    defined = dict(re.findall(r"^#define GLB_(MAX_\w+) (\d+)", HEADER, re.MULTILINE))
    for name in ("MAX_NAMESPACES", "MAX_VIPS", "MAX_SOURCES"):
        assert int(defined[name]) == getattr(config, name)
    assert re.search(rf"#define GLB_SHORT_LIST {xdp.SHORT_LIST}\b", HEADER)


def test_constants_and_keys_are_in_the_byte_order_of_the_program() -> None:
    assert xdp.options(19523, 3, by_redirect=True) == bytes.fromhex("4c43 0000 03000000 01000000")
    assert xdp.prefix_key(ip_network("10.1.0.0/16")) == bytes.fromhex("10000000 0a010000")
    assert len(xdp.prefix_key(ip_network("::/0"))) == 20
