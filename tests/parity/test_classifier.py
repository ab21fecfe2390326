"""The eBPF classifier and the Cython path agree on every frame: what one leaves to the host, the other does."""

from __future__ import annotations

import corpus
import pytest
from classifier import MINIMUM_BYTES, Classifier

from fuzz.mutations import mutated

pytestmark = pytest.mark.bpf

ENVS = ("plain", "no-ping")


@pytest.mark.parametrize("env", ENVS)
def test_classifier_agrees_with_cython_on_every_vector(env: str) -> None:
    frames = [bytes.fromhex(record["frame"]) for record in corpus.packets()]
    _agree(env, [frame for frame in frames if len(frame) >= MINIMUM_BYTES])


def test_classifier_agrees_with_cython_on_every_prefix_of_every_kind_of_frame() -> None:
    one_of_each = {record["note"]: bytes.fromhex(record["frame"]) for record in corpus.packets()}
    cuts = {frame[:n] for frame in one_of_each.values() for n in range(MINIMUM_BYTES, min(len(frame), 140))}
    _agree("plain", sorted(cuts))


@pytest.mark.parametrize("seed", range(4))
def test_classifier_agrees_with_cython_on_mutated_frames(seed: int) -> None:
    frames = [bytes.fromhex(record["frame"]) for record in corpus.packets()]
    _agree(ENVS[seed % 2], [f for f in mutated(frames, seed, 5000) if len(f) >= MINIMUM_BYTES])


def _agree(env: str, frames: list[bytes]) -> None:
    verdicts = [verdict for verdict, _ in corpus.run(env, frames)]
    assert {"host", "forward"} <= set(verdicts)
    with Classifier(corpus.forwarding(env)) as classifier:
        for frame, verdict in zip(frames, verdicts, strict=True):
            assert classifier.host(frame) == (verdict == "host"), f"{verdict}: {frame.hex()}"
