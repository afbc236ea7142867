"""Adapters of every kind on one tiny backbone, and servers that have them."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pipeline.adapter.directory import save_adapter
from pipeline.adapter.label_states import LabelStates
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.config import RunConfig
from pipeline.methods.heads import FittedHead
from pipeline.methods.logistic import Fit
from pipeline.methods.model import LTuningModel
from pipeline.serving.app import create_app
from pipeline.serving.guard import Tokens
from pipeline.serving.server import BACKLOG, Server
from pipeline.serving.service import Service
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from tests.launch.runs import REPOSITORY, environment
from tests.support.tiny import save_tiny, tiny_model
from tests.support.tiny_run import tiny_config, tiny_facts, untrained_state

NO_TOKENS = Tokens()
METHODS: dict[str, dict[str, Any]] = {
    "prefix": {"name": "lt_prefix", "head": "label_aware"},
    "late": {"name": "lt_prefix", "head": "label_aware", "first_layer": 1, "shortlist": 2},
    "prompt": {"name": "lt_prompt", "head": "linear"},
    "late_prompt": {"name": "lt_prompt", "head": "linear", "first_layer": 1},
    "after": {"name": "lt_prompt", "head": "linear", "position": "after"},
    "after_fitted": {"name": "lt_prompt", "position": "after", "shortlist": 2},
    "fitted": {"name": "lt_prefix", "shortlist": 2},
    "plain": {"name": "prefix", "tokens": 4},
    "static": {"name": "prompt", "tokens": 2},
    "generated": {"name": "generated", "tokens": 3, "rank": 2},
    "late_generated": {"name": "generated", "tokens": 4, "rank": 2, "first_layer": 1, "source": "attended"},
    "places": {"name": "decomposed", "kind": "dept", "tokens": 3, "rank": 2},
    "edit": {"name": "edit", "layers": [1]},
    "probe": {"name": "probe"},
    "zero": {"name": "zero_shot"},
    "majority": {"name": "majority"},
    "lora": {"name": "lora"},
}


def save_adapters(folder: Path, methods: Mapping[str, dict[str, Any]] = METHODS, **sections: Any) -> dict[str, Path]:
    """Adapter directories by name, with random parameters, all of which matter, on one backbone."""
    if not (folder / "backbone").is_dir():
        save_tiny(folder / "backbone", "llama_gqa", AutoModelForCausalLM)
    found = {}
    for name, method in methods.items():
        config = tiny_config(folder, method=method, run={"dir": str(folder / "run")}, **sections)
        preprocess(config)
        labels = encode_labels(config)
        state = untrained_state(config, labels)
        if method["name"] == "majority":
            state = {"counts": torch.tensor([3, 5, 4])}
        elif method["name"] == "lora":
            state |= _inside(config, labels)
        elif config.method.wants_states and method["name"] != "probe":
            fit = Fit(torch.randn(3, tiny_facts(config.backbone).pooled_width), torch.randn(3), 0.5)
            head = {f"head.{key}": value for key, value in FittedHead.state_of(fit).items()}
            state |= head | {"is_tuned": torch.ones(1, dtype=torch.int64)}
        found[name] = folder / name
        save_adapter(found[name], state, config.adapter_config(), labels)
    return found


def _inside(config: RunConfig, labels: LabelStates) -> dict[str, torch.Tensor]:
    """Random values of what the method puts into the backbone."""
    backbone = FrozenBackbone(tiny_model("llama_gqa"), tiny_facts())
    method = config.method.build(backbone.facts, labels.hypothesis_tokens, len(labels.names))
    inside = LTuningModel(backbone, method, labels.states, labels.mask, "last").inside()
    return {name: torch.randn_like(tensor).mul(0.3) for name, tensor in inside.items()}


@contextmanager
def serving(service: Service, tokens: Tokens = NO_TOKENS) -> Iterator[str]:
    """A real server in a thread; yields its address."""
    server = Server(create_app(service, tokens), service.limits, grace=30)
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join()
    service.close()


@dataclass
class ServerProcess:
    """`ltune serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    log_file: Path
    address: str

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its lines so far."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def served_by_process(log_file: Path, *arguments: str, most_memory: int | None = None) -> Iterator[ServerProcess]:
    """`most_memory`: bytes of address space that it may take beyond what it has when it listens."""
    command = [sys.executable, "-m", "pipeline", "serve", "--device=cpu", "--port=0", *arguments]
    with log_file.open("ab") as file:
        process = subprocess.Popen(command, env=environment(), stderr=file, cwd=REPOSITORY)
    server = ServerProcess(process, log_file, "")
    try:
        until = time.monotonic() + 120
        while not (found := [line for line in server.log if line["event"] == "listening"]):
            assert process.poll() is None and time.monotonic() < until, log_file.read_text()[-3000:]
            time.sleep(0.1)
        server.address = f"http://127.0.0.1:{found[-1]['port']}"
        if most_memory is not None:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + most_memory
            resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
