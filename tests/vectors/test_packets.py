"""Every frame of the reference vectors: the reference's bytes, or a difference listed with its reason."""

from __future__ import annotations

from collections import Counter

import corpus
import pytest

SAME_GROUPS = ("tcp", "udp", "echo", "sizes", "same_client", "values")

# reason in differences.jsonl -> why we differ from one or both paths of the reference (docs/protocol/binds.md)
REASONS = {
    "bad-header": "version or header length contradict themselves: the reference does not look, we drop",
    "cut-off": "the length field exceeds the frame, or ports are cut off: the reference trusts it or passes, we drop",
    "checksum-carry": "the reference's XDP path folds the carry of the header checksum once only and sends a wrong one",
    "echo-code": "type 8 with another code than 0 is no echo request",
    "echo-prefix": "the reference's XDP path ignores prefix lengths of binds",
    "prefix-bind": "the reference's XDP path ignores prefix lengths of binds",
    "echo-switched-off": "the reference's XDP path ignores forward_icmp_ping_responses",
    "icmp-error-followed": "one rule for both families: all kinds of errors that quote a flow of ours follow it",
    "icmp-error-not-ours": "the outer destination is no VIP, or the quoted packet has no bind or ports: host's stack",
    "ipv4-options": "ports are read behind the options; the reference reads the options as ports",
    "ipv6-extensions": "ports are read behind the extension headers; the reference does not follow them",
    "later-fragment": "a later fragment has no ports; the reference hashes its payload as such",
    "tagged": "VLAN tags are looked past and kept; the reference leaves tagged frames to the host",
    "other-icmp": "the reference's XDP path takes every ICMP type that is sent to a bound address",
}
DIFFERENCES = {record["id"]: record for record in corpus.json_lines("../differences.jsonl")}


def agree(ours: corpus.Outcome, theirs: corpus.Outcome) -> bool:
    """Equal; a drop is a drop, whatever its reason is called."""
    if theirs.verdict == "drop":
        return ours.verdict not in ("forward", "host")
    return ours == theirs


@pytest.mark.parametrize("group", sorted({record["group"] for record in corpus.packets()}))
def test_every_frame_is_as_the_reference_or_a_listed_difference(group: str) -> None:
    for record in corpus.packets():
        if record["group"] != group:
            continue
        ours = corpus.our_outcome(record)
        theirs = [corpus.reference_outcome(record, path) for path in ("xdp", "dpdk")]
        listed = DIFFERENCES.get(record["id"])
        if all(agree(ours, outcome) for outcome in theirs):
            assert listed is None, f"{record['id']} agrees with both paths, and is listed all the same"
        else:
            assert listed is not None, f"{record['id']} ({record['note']}): ours {ours}, theirs {theirs}"
            assert listed["ours"] == ours.verdict, record
            assert listed["reason"] in REASONS


@pytest.mark.parametrize("group", SAME_GROUPS)
def test_common_groups_are_encapsulated_as_one_path_of_the_reference_does(group: str) -> None:
    for record in corpus.packets():
        if record["group"] == group:
            ours = corpus.our_outcome(record)
            assert any(agree(ours, corpus.reference_outcome(record, path)) for path in ("xdp", "dpdk")), record["id"]


def test_every_reason_is_used_and_every_listed_frame_exists() -> None:
    assert {record["reason"] for record in DIFFERENCES.values()} == set(REASONS)
    assert set(DIFFERENCES) <= {record["id"] for record in corpus.packets()}


def test_alternative_hops_are_listed_once_by_our_own_rule_and_twice_by_glb2() -> None:
    frames = {
        env: [bytes.fromhex(r["frame"]) for r in corpus.packets() if r["env"] == env] for env in ("alt", "alt-four")
    }
    lengths: Counter[tuple[str, int]] = Counter()
    for env, batch in frames.items():
        for rule in ("glb2", "first_usable"):
            for frame, (_, sent) in zip(batch, corpus.run(env, batch, rule), strict=True):
                if sent is None:
                    continue
                front = len(sent) - len(frame) + 14
                hops = [sent[30:34], *(sent[at : at + 4] for at in range(50, front, 4))]
                lengths[rule, len(hops)] += 1
                assert rule == "glb2" or len(set(hops)) == len(hops)
    assert {n for rule, n in lengths if rule == "glb2"} == {4}
    assert {n for rule, n in lengths if rule == "first_usable"} > {4}
