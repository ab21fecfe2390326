"""The lab's picture shows what the plan says."""

from __future__ import annotations

from lab import picture, plan


def test_picture_names_every_host_with_its_addresses_and_mtu() -> None:
    drawn = picture.draw()
    for host in plan.HOSTS:
        assert all(str(word) in drawn for word in (host.name, host.v4, host.v6, f"MTU {host.mtu_bytes}"))
    assert all(str(address) in drawn for vip in (plan.GLB_VIP, plan.ECMP_VIP) for address in vip.addresses)


def test_picture_is_a_rectangle_that_fits_a_terminal_of_112_columns() -> None:
    lines = picture.draw().splitlines()
    widths = {len(line) for line in lines if not line.startswith(" ")}
    assert len(widths) == 1
    assert max(map(len, lines)) <= 112
