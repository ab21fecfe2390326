"""The eBPF program and the Cython path agree on every frame: what goes to the host, and every byte of what is sent."""

from __future__ import annotations

from collections import Counter

import corpus
import pytest
from classifier import MINIMUM_BYTES, SOURCE_MAC, Program, shared_forwarding

from fuzz.mutations import mutated

pytestmark = pytest.mark.bpf

ENVS = ("plain", "two-fields", "four-fields", "dst-only", "alt", "alt-four", "no-ping", "carry")
FRAMES = [bytes.fromhex(record["frame"]) for record in corpus.packets()]


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize(
    ("rule", "hops"), [("glb2", None), ("first_usable", None), ("first_usable", 3), ("first_usable", 4)]
)
def test_program_agrees_with_cython_on_every_vector(env: str, accelerate: bool, rule: str, hops: int | None) -> None:
    frames = [bytes.fromhex(record["frame"]) for record in corpus.packets() if record["env"] == env] + FRAMES[::7]
    done = _agree(env, frames, accelerate, rule, hops)
    assert bool(done["sent"]) == accelerate and done["over"]


@pytest.mark.parametrize("accelerate", [False, True])
def test_program_agrees_with_cython_on_every_prefix_of_every_kind_of_frame(accelerate: bool) -> None:
    one_of_each = {record["note"]: bytes.fromhex(record["frame"]) for record in corpus.packets()}
    cuts = {frame[:n] for frame in one_of_each.values() for n in range(MINIMUM_BYTES, min(len(frame), 140))}
    _agree("plain", sorted(cuts), accelerate)


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize(
    "tags", ["81000064", "88a80007", "88a8000781000064", "8100000781000064", "810000018100000281000003"]
)
def test_program_agrees_with_cython_on_tagged_frames(accelerate: bool, tags: str) -> None:
    one_of_each = {record["note"]: bytes.fromhex(record["frame"]) for record in corpus.packets()}.values()
    frames = [frame[:12] + bytes.fromhex(tags) + frame[12:] for frame in one_of_each]
    cuts = [frame[:n] for frame in frames[::40] for n in range(MINIMUM_BYTES, min(len(frame), 140))]
    done = _agree("plain", frames + cuts, accelerate)
    assert done["host"] and bool(done["over"]) == (len(tags) <= 16)


@pytest.mark.parametrize("mtu_bytes", [60, 576, 1500])
def test_packets_that_are_too_big_are_handed_over(mtu_bytes: int) -> None:
    frames = [bytes.fromhex(record["frame"]) for record in corpus.packets() if record["group"] == "sizes"]
    done = _agree("plain", frames, True, mtu_bytes=mtu_bytes)
    assert done["over"] and bool(done["sent"]) == (mtu_bytes > 60)


@pytest.mark.parametrize("env", ["plain", "alt-four"])
@pytest.mark.parametrize(("redirects", "ifindex"), [(True, 1), (True, 0), (False, 1)])
def test_program_agrees_with_cython_on_what_leaves_by_another_interface(
    env: str, redirects: bool, ifindex: int
) -> None:
    egress = (77, bytes.fromhex("020000000077"), redirects)
    forwarding = shared_forwarding(env, egress=egress)
    frames = [bytes.fromhex(record["frame"]) for record in corpus.packets() if record["env"] == env] + FRAMES[::7]
    tagged = [frame[:12] + bytes.fromhex("81000064") + frame[12:] for frame in frames[::5]]
    done: Counter[tuple[str, str]] = Counter()
    frames = [frame for frame in frames + tagged if len(frame) >= MINIMUM_BYTES]
    with Program(forwarding, accelerate=True, ifindex=ifindex) as program:
        sent_by_cython = forwarding.encapsulate(frames, forwarding.new_counters())
        for frame, (verdict, sent) in zip(frames, sent_by_cython, strict=True):
            result = program.run(frame)
            elsewhere = False
            if sent is not None and verdict == "forward":
                link = corpus.link_bytes(sent)
                elsewhere = sent[link + 19] % 2 == 1  # of the outer destination
                assert sent[6:12] == (egress[1] if elsewhere else SOURCE_MAC), frame.hex()
                assert link == (14 if elsewhere else corpus.link_bytes(frame)), frame.hex()
            if isinstance(result, bytes):
                assert result == sent and (redirects or not elsewhere), frame.hex()
            done["elsewhere" if elsewhere else "here", result if isinstance(result, str) else "sent"] += 1
        tx, redirect = 3, 4
        assert tx in program.actions if ifindex else tx not in program.actions
        assert redirect in program.actions if redirects else redirect not in program.actions
    assert done["here", "sent"] and bool(done["elsewhere", "sent"]) == redirects and done["elsewhere", "over"]


@pytest.mark.parametrize("seed", range(6))
def test_program_agrees_with_cython_on_mutated_frames(seed: int) -> None:
    done = _agree(ENVS[seed], list(mutated(FRAMES, seed, 5000)), seed != 0)
    assert done["host"] and done["over"]


def _agree(
    env: str,
    frames: list[bytes],
    accelerate: bool,
    rule: str = "glb2",
    hops: int | None = None,
    mtu_bytes: int = 0xFFFF,
) -> Counter[str]:
    frames = [frame for frame in frames if len(frame) >= MINIMUM_BYTES]
    forwarding = shared_forwarding(env, rule, hops, mtu_bytes)
    expected = forwarding.encapsulate(frames, forwarding.new_counters())
    done: Counter[str] = Counter()
    with Program(forwarding, accelerate=accelerate) as program:
        for frame, (verdict, sent) in zip(frames, expected, strict=True):
            result = program.run(frame)
            if isinstance(result, bytes):
                assert result == sent, frame.hex()
                done["sent"] += 1
            else:
                assert (result == "host") == (verdict == "host"), f"{verdict}: {frame.hex()}"
                done[result] += 1
    return done
