"""nginx and HAProxy behind the agent, wherever they listen, with every mode of reverse-path filtering."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.agents import VIP4, VIP6
from tests.netns.servers import KINDS, Browser, serving
from tests.netns.test_agent_second_chance import Site, standing

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

RP_FILTER = {"off": 0, "strict": 1, "loose": 2}


@pytest.fixture(scope="module", params=["netfilter", "xdp"])
def standing_site(
    request: pytest.FixtureRequest, netfilter: None, bpffs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with standing(request.param, bpffs, tmp_path_factory) as site:
        yield site


@pytest.mark.parametrize("rp_filter", RP_FILTER)
@pytest.mark.parametrize(("kind", "where"), [(name, where) for name, kind in KINDS.items() for where in kind.listen])
def test_flows_of_a_drained_proxy_go_on_and_new_ones_begin_at_the_next(
    site: Site, kind: str, where: str, rp_filter: str, tmp_path: Path
) -> None:
    for host in (site.proxy1, site.proxy2):
        for name in ("all", "eth0"):
            site.sysctl(host, f"net/ipv4/conf/{name}/rp_filter", RP_FILTER[rp_filter])
        site.cleanup.enter_context(serving(kind, where, host, tmp_path))

    def connect(vip: str) -> Browser:
        browser = Browser(site.client, vip)
        site.cleanup.callback(browser.close)
        return browser

    site.director.lead(site.proxy2)
    old = [connect(vip) for vip in (VIP4, VIP6)]
    assert [browser.get() for browser in old] == ["proxy2"] * 2
    site.director.lead(site.proxy1, site.proxy2)  # a drain of proxy2
    assert [browser.get() for browser in old] == ["proxy2"] * 2
    assert [connect(vip).get() for vip in (VIP4, VIP6)] == ["proxy1"] * 2
    counters = site.agents[0].counters()
    assert counters["bounce"] >= 4  # of both flows the request and the ACK of its answer
    assert set(counters) == {"syn", "established", "bounce"}
    assert "last_resort" not in site.agents[1].counters()
