"""Two hosts on one machine: network namespaces joined by a virtual cable."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CARD = "lt0"
SETTINGS = Path("/etc/netns")
"""`ip netns exec NAME` puts the files of SETTINGS/NAME in the place of those in /etc."""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


@dataclass(frozen=True)
class Host:
    """One network namespace."""

    name: str
    address: str

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs `arguments` on this host."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def plug(self, state: Literal["up", "down"]) -> None:
        """Down: from now on nothing comes and nothing goes, and nobody is told."""
        _ip("-n", self.name, "link", "set", CARD, state)

    def end_processes(self) -> None:
        """Kills what still runs on this host."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, timeout=20)
        for pid in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def missing() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if shutil.which("ip") is None:
        return "no `ip` program (apt-get install iproute2)"
    name = f"lt-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made: {error.stderr.strip()}"
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else; they are gone afterwards."""
    hosts = [Host(f"lt-{os.getpid()}-{number}", f"10.213.0.{number}") for number in (1, 2)]
    cables = [f"lt{os.getpid()}-{number}" for number in (1, 2)]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        _ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for host, cable in zip(hosts, cables, strict=True):
            _ip("link", "set", cable, "netns", host.name, "name", CARD)
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", CARD)
            _ip("-n", host.name, "link", "set", "lo", "up")
            host.plug("up")
            _write_names(host, hosts)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.end_processes()
            shutil.rmtree(SETTINGS / host.name, ignore_errors=True)
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, timeout=20)


def _write_names(host: Host, hosts: Sequence[Host]) -> None:
    """The host's own /etc/hosts. There is no name server, so that nothing waits for an answer."""
    folder = SETTINGS / host.name
    folder.mkdir(parents=True)
    lines = ["127.0.0.1 localhost", f"{host.address} {socket.gethostname()}"]
    lines += [f"{other.address} {other.name}" for other in hosts]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "nsswitch.conf").write_text("hosts: files\n")
