"""What a process can reach: the model hub, its own host name, a free port."""

import os
import socket
import urllib.error
import urllib.request

from pipeline.distributed.launcher import world_size
from pipeline.doctor.check import Check, ok, reason, warning
from pipeline.doctor.hardware import hub_cache

RENDEZVOUS_PORT = 29500
"""Where torchrun, deepspeed and accelerate meet by default."""


def hub() -> list[Check]:
    """Models can be fetched, or nothing will wait for a network that is not there."""
    kept = len(list(hub_cache().glob("models--*"))) if hub_cache().is_dir() else 0
    local = f"{kept} model(s) in '{hub_cache()}', and local folders"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return [ok("model hub", f"offline (HF_HUB_OFFLINE): {local}")]
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        advice = f"export HF_HUB_OFFLINE=1, so that no job waits for it; backbones then are: {local}"
        return [warning("model hub", f"{endpoint} does not answer ({reason(error)})", advice)]
    token = os.environ.get("HF_TOKEN") or (hub_cache().parent / "token").is_file()
    return [ok("model hub", f"{endpoint} answers, {'with' if token else 'no'} token (gated models need one)")]


def host_name() -> list[Check]:
    """gloo and NCCL find each other by it."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError:
        advice = "several processes may not find each other: add it to /etc/hosts, or set GLOO_SOCKET_IFNAME"
        return [warning("host name", f"'{name}' has no address", advice)]
    loopback = all(address.startswith(("127.", "::1")) for address in addresses)
    found = f"{name} is {', '.join(addresses[:3])}"
    return [ok("host name", f"{found}{' (this machine alone)' if loopback else ''}")]


def port() -> list[Check]:
    """The launchers' usual port is free. (Under a launcher, it is the launcher's.)"""
    if world_size() > 1:
        return []
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", RENDEZVOUS_PORT))
    except OSError:
        advice = "another job uses it: torchrun --standalone, or --rdzv-endpoint / --master_port with another one"
        return [warning("port", f"{RENDEZVOUS_PORT}, the launchers' usual one, is taken", advice)]
    return [ok("port", f"{RENDEZVOUS_PORT}, the launchers' usual one, is free")]
