"""The search for a path's MTU: always the right answer, in few rounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glb.ctl.path_mtu import AT_ONCE, Search

LEAST, WANTED = 140, 1540


def rounds(search: Search, carries: int) -> list[list[int]]:
    """Ask a path that carries so much until the search has no question."""
    asked = []
    while sizes := search.next_sizes():
        asked.append(sizes)
        search.note([s for s in sizes if s <= carries], [s for s in sizes if s > carries])
    return asked


@given(st.integers(LEAST, 2000))
def test_path_mtu_is_found_to_the_byte_in_few_rounds(carries: int) -> None:
    search = Search(LEAST, WANTED)
    asked = rounds(search, carries)
    assert search.path_mtu == min(carries, WANTED)
    assert search.fits == (carries >= WANTED)
    assert len(asked) <= 4
    assert max(map(len, asked)) <= 4 * AT_ONCE


@given(st.integers(LEAST, WANTED - 1), st.data())
def test_a_size_that_was_lost_though_it_fits_does_not_lead_above_the_truth(carries: int, data: st.DataObject) -> None:
    search = Search(LEAST, WANTED)
    while sizes := search.next_sizes():
        lost = data.draw(st.sets(st.sampled_from(sizes)))
        search.note(
            [s for s in sizes if s <= carries and s not in lost], [s for s in sizes if s > carries or s in lost]
        )
    assert search.path_mtu is None or search.path_mtu <= carries


def test_large_enough_path_is_asked_once_and_silent_one_too() -> None:
    assert rounds(Search(LEAST, WANTED), WANTED) == [[LEAST, WANTED]]
    silent = Search(LEAST, WANTED)
    assert rounds(silent, 0) == [[LEAST, WANTED]]
    assert silent.path_mtu is None and silent.tried


def test_usual_sizes_and_hints_are_decided_in_the_second_round() -> None:
    assert len(rounds(Search(LEAST, WANTED), 1500)) == 2
    hinted = Search(LEAST, WANTED)
    hinted.hint(1017)
    assert len(rounds(hinted, 1017)) == 2


def test_limit_is_never_exceeded() -> None:
    search = Search(LEAST, WANTED)
    search.limit(1500)
    assert rounds(search, 9000) == [[LEAST, 1500]]
    assert search.fits and search.path_mtu == 1500
