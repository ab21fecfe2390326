"""Our own vectors through the Cython path: exact, cut at every byte, and with padding behind them."""

from __future__ import annotations

import corpus
import make_own
import own
import pytest

from glb._fastpath import VERDICTS

CASES = [
    pytest.param(file, vector, id=f"{file}-{vector['name']}") for file in own.FILES for vector in own.vectors(file)
]


def run(file: str, frames: list[bytes]) -> list[tuple[str, bytes | None]]:
    plan = own.forwarding(file)
    return plan.encapsulate(frames, plan.new_counters())


@pytest.mark.parametrize("file", own.FILES)
def test_files_are_what_the_generator_writes(file: str) -> None:
    """`python tests/vectors/make_own.py` writes them again."""
    assert (make_own.OWN / f"{file}.jsonl").read_text() == make_own.lines(file)


def test_no_file_is_left_over() -> None:
    assert sorted(path.stem for path in make_own.OWN.iterdir()) == own.FILES


@pytest.mark.parametrize(("file", "vector"), CASES)
def test_vector_ends_as_it_says(file: str, vector: dict[str, str]) -> None:
    ((verdict, sent),) = run(file, [bytes.fromhex(vector["input_hex"])])
    assert (verdict, sent.hex() if sent is not None else None) == (vector["verdict"], vector["output_hex"])


@pytest.mark.parametrize("file", own.FILES)
def test_cut_at_any_byte_it_is_refused(file: str) -> None:
    """Never forwarded or answered: its length field tells. On a sanitizer build, never read beyond its end."""
    for vector in own.vectors(file):
        frame = bytes.fromhex(vector["input_hex"])
        if vector["output_hex"] is None:
            continue
        link = corpus.link_bytes(frame)
        ipv4 = frame[link] >> 4 == 4
        length = int.from_bytes(frame[link + 2 : link + 4] if ipv4 else frame[link + 4 : link + 6], "big")
        end = link + length + (0 if ipv4 else 40)
        for verdict, sent in run(file, [frame[:n] for n in range(end)]):
            assert verdict in ("host", "truncated", "malformed") and sent is None, vector["name"]


@pytest.mark.parametrize("file", own.FILES)
def test_padding_changes_nothing_and_is_only_sent_along(file: str) -> None:
    for vector in own.vectors(file):
        frame = bytes.fromhex(vector["input_hex"])
        if "truncated" in vector["name"] or "cut-" in vector["name"]:
            continue  # with more bytes they are another case
        ((verdict, sent),) = run(file, [frame + b"\xee" * 7])
        padding = "ee" * 7 if verdict == "forward" else ""
        assert verdict == vector["verdict"], vector["name"]
        assert (sent.hex() if sent is not None else None) == (
            vector["output_hex"] + padding if vector["output_hex"] is not None else None
        )


def test_verdicts_of_all_kinds_are_among_them() -> None:
    seen = {vector["verdict"] for file in own.FILES for vector in own.vectors(file)}
    # Those that depend on the machine or on time are in the tests of the director.
    assert seen == set(VERDICTS) - {"no_next_hop", "no_backend", "stale_bind"}
