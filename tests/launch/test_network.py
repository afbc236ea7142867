"""Training on two hosts, each with a network of its own, that lose each other on the way.

covers distributed/heartbeat
"""

from pathlib import Path

import pytest

from tests.launch.hosts import CARD, Host, missing, two_hosts
from tests.launch.runs import adapter_files, copy_of_run, environment, start, steps_logged, wait_until

pytestmark = pytest.mark.skipif(bool(reason := missing()), reason=str(reason))

HEARTBEAT_SECONDS = 10


def start_on(hosts: tuple[Host, Host], arguments: list[str], logs: list[Path], slow_while: Path) -> list:
    """`launch/torchrun.sh train` as a user starts it, once on each host."""
    common = ["bash", "launch/torchrun.sh", "--nodes", "2", "--processes", "1", "--master", hosts[0].name]
    variables = environment(slow_while=slow_while) | {"GLOO_SOCKET_IFNAME": CARD}
    return [
        start(host.command([*common, "--node-rank", str(rank), "train", *arguments]), logs[rank], **variables)
        for rank, host in enumerate(hosts)
    ]


def test_hosts_that_lose_each_other_end_soon_and_go_on_when_they_meet_again(
    folder: Path, by_hand: dict[str, bytes]
) -> None:
    logs, slow = [folder / f"host-{rank}.log" for rank in range(2)], folder / "slow-network"
    arguments = [*copy_of_run(folder, "network"), "train.save_every=1"]
    slow.touch()
    with two_hosts() as hosts:
        children = start_on(hosts, [*arguments, f"engine.heartbeat_seconds={HEARTBEAT_SECONDS}"], logs, slow)
        wait_until(lambda: steps_logged(folder / "network") >= 2, "two steps", 240)
        hosts[1].plug("down")
        # Besides the heartbeat: torchrun's own farewell to a host that does not answer.
        statuses = [child.wait(HEARTBEAT_SECONDS + 140) for child in children]
        shown = [log.read_text() for log in logs]
        # Each host is the one that is left, as far as it can tell.
        assert statuses == [1, 1], shown
        for rank, text in enumerate(shown):
            assert f"rank {rank}: error: rank {1 - rank} on " in text and "no sign of life" in text, text
        slow.unlink()
        hosts[1].plug("up")
        children = start_on(hosts, arguments, logs, slow)
        assert [child.wait(240) for child in children] == [0, 0], [log.read_text() for log in logs]
    assert "goes on after step" in logs[0].read_text()
    assert adapter_files(folder / "network") == by_hand
