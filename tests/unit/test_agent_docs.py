"""docs/operate/agent.md says what the code does: its keys, reasons, metrics, sysctls and example."""

from __future__ import annotations

import json
import re
from pathlib import Path

from proxy_agent import config, tcpmss, tun
from proxy_agent.decide import REASONS
from proxy_agent.engine import ENGINE_SYSCTLS
from proxy_agent.metrics import Reading
from proxy_agent.netfilter import chain_name
from proxy_agent.vips import ARP_SYSCTLS

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "operate" / "agent.md").read_text()
PROTOCOL = (DOCS / "protocol" / "gue.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Cells of the rows of the table whose first heading this is."""
    _, _, rest = TEXT.partition(f"\n| {heading} |")
    rows = re.match(r"(?:[^\n]*\n)(\|[-| ]+\n)((?:\|.*\n)+)", rest)
    assert rows is not None, heading
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2].splitlines()]


def test_every_key_is_listed_with_its_default() -> None:
    rows = {row[0].strip("`"): row[1] for row in table("key")}
    assert set(rows) == set(config.KEYS)
    assert rows["gue_port"] == rows["queue_num"] == str(config.DEFAULT_QUEUE)
    assert rows["state_dir"] == f'`"{config.DEFAULT_STATE_DIR}"`'


def test_example_is_accepted_without_a_warning() -> None:
    example = re.search(r"\n\n((?:    \w+ = .*\n)+)", TEXT)
    assert example is not None
    assert config.parse(example[1].replace("    ", "").encode(), "agent.toml").warnings() == []


def test_every_reason_is_listed_as_it_is_in_the_code() -> None:
    assert table("reason") == [[f"`{r.name}`", r.action.value, r.meaning] for r in REASONS]


def test_every_known_difference_of_the_engines_is_listed_as_in_the_data_file() -> None:
    lines = (DOCS.parent / "tests" / "vectors" / "agent_differences.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert table("packet") == [[f"`{e['name']}`", e["netfilter"], e["xdp"], e["why"]] for e in entries]


def test_every_verdict_of_the_protocol_is_a_reason() -> None:
    names = {reason.name for reason in REASONS}
    rows = re.findall(r"^\| \d+ \|.*\| `(\w+)` \|$", PROTOCOL, re.MULTILINE)
    assert len(rows) == 10
    assert set(rows) <= names


def test_every_metric_is_listed() -> None:
    internals = {
        "look_ups": 0,
        "recalled": 0,
        "cookies_judged": 0,
        "verdict_errors": 0,
        "syn_cookies_in_use": 0,
        "by_host": 0,
    }
    reading = Reading("netfilter", {r.name: 0 for r in REASONS}, {}, internals, {"198.51.100.1": 0})
    lines = [line for line in reading.prometheus().decode().splitlines() if not line.startswith("#")]
    for name in {re.split(r"[{ ]", line)[0] for line in lines}:
        assert f"`{name}" in TEXT, name


def test_every_change_to_the_host_is_listed() -> None:
    for name, value in (*ENGINE_SYSCTLS, *((name, str(value)) for name, value in ARP_SYSCTLS.items())):
        assert f"{name.rpartition('/')[2]}={value}" in TEXT
    assert chain_name("<interface>") in TEXT
    assert tcpmss.chain_name("<interface>") in TEXT
    assert tun.device_name(1)[:-1] in TEXT
