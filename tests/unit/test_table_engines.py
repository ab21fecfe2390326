"""Every engine that this machine has comes to the same orders, bit for bit."""

from __future__ import annotations

import ipaddress
import os
import random
import subprocess
import sys

import pytest

from glb import _rendezvous
from glb._rendezvous import ENGINES, Order

from .table_samples import SEED, model_order, table

_N_ROWS = 1000  # no multiple of any number of lanes, but 8: see the test of odd numbers


def _addresses(count: int, seed: int = 1) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in random.Random(seed).sample(range(2**32), count)]


def _orders(count: int, *, n_rows: int = _N_ROWS, weights: bytes | None = None) -> dict[str, Order]:
    keep = min(8, count)
    return {engine: Order(SEED, _addresses(count), n_rows, keep, weights=weights, engine=engine) for engine in ENGINES}


def _weights(count: int, seed: int = 2) -> bytes:
    return bytes(random.Random(seed).choices(range(1, 101), k=count))


def test_scalar_is_always_there_and_the_last() -> None:
    assert ENGINES[-1] == "scalar"


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_equals_the_documented_order(engine: str) -> None:
    given = table(["active+*3", "active+", "active+*100", *["active+*2"] * 8])
    addresses = [entry.address.packed for entry in given.backends]
    order = Order(SEED, addresses, _N_ROWS, 8, weights=[entry.weight for entry in given.backends], engine=engine)
    assert order.engine_name == engine
    for row in range(_N_ROWS):
        assert list(order.heads[8 * row : 8 * row + 8]) == model_order(given, row)[:8]


# 255 to 257: where a lane's list of the best is skipped by a branch; 4,096: many blocks of the cache.
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 100, 255, 256, 257, 300, 1000, 4096])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_heads_agree(count: int, weighted: bool) -> None:
    n_rows = _N_ROWS if count < 4096 else 64
    scalar, *others = reversed(_orders(count, n_rows=n_rows, weights=_weights(count) if weighted else None).values())
    for order in others:
        assert order.heads == scalar.heads


@pytest.mark.parametrize("n_rows", [1, 2, 3, 5, 7, 9, 15, 17])
def test_odd_numbers_of_rows_agree(n_rows: int) -> None:
    for weights in (None, _weights(20)):
        whole = Order(SEED, _addresses(20), 64, 8, weights=weights, engine="scalar")
        for order in _orders(20, n_rows=n_rows, weights=weights).values():
            assert order.heads == whole.heads[: 8 * n_rows]


@pytest.mark.parametrize("count", [1, 9, 64, 65, 300])
def test_whole_rows_agree_and_begin_with_the_head(count: int) -> None:
    for weights in (None, _weights(count)):
        orders = _orders(count, n_rows=20, weights=weights)
        for row in range(20):
            found = {engine: order.row(row) for engine, order in orders.items()}
            assert all(each == found["scalar"] for each in found.values())
            head = list(orders["scalar"].heads[row * orders["scalar"].keep :][: orders["scalar"].keep])
            assert found["scalar"][2][: len(head)] == head
            assert sorted(found["scalar"][2]) == list(range(count))


@pytest.mark.parametrize("count", [2, 5, 8, 9, 30])
def test_moved_backends_agree(count: int) -> None:
    before, after = _weights(count), bytearray(_weights(count))
    after[1] = 101 - after[1]
    found = {engine: order.reweighed(bytes(after)) for engine, order in _orders(count, weights=before).items()}
    scalar = found["scalar"]
    assert scalar is not None
    for order in found.values():
        assert order is not None
        assert order.heads == scalar.heads


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [9, 10, 40, 256])
def test_backends_that_join_and_leave_come_to_the_order_of_those_that_are_left(count: int, engine: str) -> None:
    """Its heads are those of a whole order, or their beginnings; the rows that follow are the same."""
    chance = random.Random(count)
    addresses = _addresses(count)
    order = Order(SEED, addresses, _N_ROWS, 8, engine=engine)
    for step in range(8):
        addresses = [each for each in addresses if len(addresses) < 9 or chance.random() > 1 / count]
        addresses += _addresses(chance.randrange(3), seed=1000 + step)
        chance.shuffle(addresses)
        changed = order.with_backends(addresses, at_most=count)
        whole = Order(SEED, addresses, _N_ROWS, min(8, len(addresses)), engine=engine)
        if changed is None:
            assert min(8, len(addresses)) != order.keep
            changed = whole
        for start in range(0, len(changed.heads), changed.keep):
            head = changed.heads[start : start + changed.keep]
            known = [index for index in head if index != _rendezvous.NO_BACKEND]
            assert list(whole.heads[start : start + len(known)]) == known
        kinds = bytes(chance.choice([_rendezvous.KIND_USABLE, _rendezvous.KIND_LIVE]) for _ in addresses)
        assert changed.derive(kinds, 2, 2, False) == whole.derive(kinds, 2, 2, False)
        twice = [*addresses, chance.choice(addresses)]
        assert changed.with_backends(twice, at_most=count) is None
        assert Order(SEED, twice, _N_ROWS, changed.keep).with_backends(addresses, at_most=count) is None
        order = changed


def test_other_backends_are_no_gain_where_many_change_or_weights_differ() -> None:
    addresses = _addresses(20)
    order = Order(SEED, addresses, 64, 8)
    assert order.with_backends(addresses[:18]) is None
    assert order.with_backends(addresses[:7], at_most=20) is None, "shorter heads"
    assert order.with_backends([*addresses[:19], bytes(4)], at_most=2) is not None
    assert Order(SEED, addresses, 64, 8, weights=_weights(20)).with_backends(addresses[:19]) is None


# Found by search: in row 0, by SEED, the ranks of each pair are equal but for their last 16 bits, which are where a key
# of the fast selection holds the backend's index.
_NEAR_TWINS = [("10.88.50.247", "10.149.245.95"), ("10.239.57.253", "11.197.57.103"), ("10.164.80.222", "10.216.6.76")]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("twins", _NEAR_TWINS)
def test_ranks_that_differ_in_their_last_bits_only_are_told_apart(twins: tuple[str, str], engine: str) -> None:
    addresses = [ipaddress.ip_address(address).packed for address in twins]
    _, ranks, _ = Order(SEED, addresses, 1, 1, engine=engine).row(0)
    assert ranks[0] >> 16 == ranks[1] >> 16
    assert ranks[0] < ranks[1]
    assert list(Order(SEED, addresses, 1, 2, engine=engine).heads) == [0, 1]
    assert list(Order(SEED, addresses[::-1], 1, 2, engine=engine).heads) == [1, 0]


# Found likewise: the row, and two addresses whose ranks in it are so near that with weight 100 their scores are equal.
_EQUAL_SCORES = [(4, "13.68.141.144", "10.255.93.150"), (5, "10.41.148.72", "10.208.177.168")]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("row", "lower", "higher"), _EQUAL_SCORES)
def test_equal_scores_are_ordered_by_rank(row: int, lower: str, higher: str, engine: str) -> None:
    first, second = (ipaddress.ip_address(address).packed for address in (lower, higher))
    third = bytes([192, 0, 2, 1])  # of another weight: else scores would not be used
    for addresses in ([first, second, third], [second, first, third]):
        order = Order(SEED, addresses, row + 1, 3, weights=[100, 100, 1], engine=engine)
        ranks, whole = order.row(row)[1:]
        assert len({_rendezvous.score(rank, 100) for rank in ranks[:2]}) == 1
        expected = [addresses.index(first), addresses.index(second)]
        assert [index for index in whole if index != 2] == expected
        assert [index for index in order.heads[3 * row :] if index != 2] == expected
        moved = Order(SEED, addresses, row + 1, 3, weights=[1, 100, 1], engine=engine).reweighed([100, 100, 1])
        assert moved is not None
        assert moved.heads[3 * row :] == order.heads[3 * row :]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("row", "lower", "higher"), _EQUAL_SCORES)
def test_equal_scores_are_ordered_by_rank_behind_many(row: int, lower: str, higher: str, turned: bool) -> None:
    """Where a row is sorted in full, or decided without sorting."""
    twins = [ipaddress.ip_address(address).packed for address in (lower, higher)]
    first, second = (1, 0) if turned else (0, 1)
    order = Order(
        SEED, [twins[first], twins[second], *_addresses(700)], row + 1, 8, weights=[100] * 701 + [1], engine="scalar"
    )
    whole = order.row(row)[2]
    assert whole.index(first) + 1 == whole.index(second) > 64
    kinds = bytes([_rendezvous.KIND_USABLE] * 2 + [_rendezvous.KIND_SKIPPED] * 700)
    assert list(order.derive(kinds, 2, 2, False)[2 * row :]) == [first, second]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_last_that_is_kept_is_told_apart_from_the_first_that_is_not(engine: str) -> None:
    twins = [ipaddress.ip_address(address).packed for address in _NEAR_TWINS[0]]
    for pair in (twins, twins[::-1]):
        assert pair[Order(SEED, pair, 1, 1, engine=engine).heads[0]] == twins[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_address_given_twice_keeps_the_order_of_the_list(engine: str) -> None:
    addresses = _addresses(10)
    for weights in (None, _weights(10) * 2):
        order = Order(SEED, addresses * 2, _N_ROWS, 8, weights=weights, engine=engine)
        for row in range(_N_ROWS):
            head = list(order.heads[8 * row : 8 * row + 8])
            for place, index in enumerate(head):
                assert index < 10 or index - 10 in head[:place]


def test_ipv6_backends_are_ordered_by_the_scalar_engine() -> None:
    addresses = [*_addresses(3), *(bytes([0x20, 1]) + bytes([number] * 14) for number in range(9))]
    orders = [Order(SEED, addresses, 64, 8, engine=engine) for engine in ENGINES]
    assert {order.engine_name for order in orders} == {"scalar"}
    for row in range(64):
        row_seed, ranks, indexes = orders[0].row(row)
        expected = [
            int.from_bytes(_rendezvous.siphash24(SEED, row_seed + address).to_bytes(8, "little"), "big")
            for address in addresses
        ]
        assert ranks == expected
        assert indexes == sorted(range(12), key=ranks.__getitem__)
        assert list(orders[0].heads[8 * row : 8 * row + 8]) == indexes[:8]


# ---- the choice


def _run(engine: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from glb import _rendezvous; print(_rendezvous.ENGINE)"],
        env={**os.environ, "GLB_SIMD": engine},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_the_environment_forces_an_engine(engine: str) -> None:
    assert _run(engine).stdout == f"{engine}\n"


def test_an_empty_variable_is_none() -> None:
    assert _run("").stdout == f"{ENGINES[0]}\n"


def test_an_engine_that_is_not_there_is_refused_by_name() -> None:
    result = _run("avx1024")
    assert result.returncode == 1
    assert f"GLB_SIMD=avx1024: this machine can do {', '.join(ENGINES)}" in result.stderr
    with pytest.raises(ValueError, match="no engine 'mmx'"):
        Order(SEED, _addresses(2), 16, 2, engine="mmx")
