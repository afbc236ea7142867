"""A server's routes, asked by a real client over loopback: answers, refusals, limits.

covers serving/app, serving/guard, serving/service, serving/messages, serving/faults, serving/limits, serving/monitor
"""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.serving.adapters import Adapters, Choices
from pipeline.serving.guard import Tokens
from pipeline.serving.limits import Limits
from pipeline.serving.server import JsonLines
from pipeline.serving.service import Service
from tests.support.served import METHODS, serving

SHARED = [name for name in METHODS if name != "lora"]
LIMITS = Limits(texts=8, labels=4, characters=2000, tokens=1500, body=20_000, body_seconds=1.0, head_seconds=1.0)
USER, ADMIN = "a-token-of-a-user", "a-token-of-an-admin"


@pytest.fixture(scope="module")
def loaded(adapters: dict[str, Path]) -> Adapters:
    return Adapters({name: adapters[name] for name in SHARED}, Choices(device="cpu"))


@pytest.fixture(scope="module")
def client(loaded: Adapters) -> Iterator[httpx2.Client]:
    service = Service(loaded, LIMITS, positions=4096, longest_wait=0.005)
    with serving(service, Tokens(admin=ADMIN)) as address, httpx2.Client(base_url=address, timeout=60) as client:
        yield client


def scores_of(adapter: LoadedAdapter, text: str) -> dict[str, float]:
    return adapter.predict([text])[0].scores


@pytest.mark.parametrize("name", SHARED)
def test_a_request_alone_is_answered_as_predict_does_bit_for_bit(
    name: str, client: httpx2.Client, loaded: Adapters
) -> None:
    texts = ["a goal", "shares fell on monday", "word " * 99]
    found = client.post("/v1/classify", json={"model": name, "texts": texts}).json()
    assert found["model"] == name and found["usage"]["texts"] == 3
    assert found["usage"]["tokens"] == sum(len(row["input_ids"]) for row in loaded[name].rows(texts))
    for result, want in zip(found["results"], loaded[name].predict(texts), strict=True):
        assert result == vars(want), "floats pass JSON whole"
    assert [result["truncated"] for result in found["results"]] == [False, False, True]


def test_labels_of_a_request(client: httpx2.Client, loaded: Adapters) -> None:
    asked: dict[str, Any] = {"model": "prefix", "texts": "a goal", "labels": ["war", "art"]}
    [result] = client.post("/v1/classify", json=asked).json()["results"]
    assert result["scores"] == scores_of(loaded["prefix"].with_labels(["war", "art"]), "a goal")
    asked["labels"] = {"war": "A text on peace.", "art": None}
    [worded] = client.post("/v1/classify", json=asked).json()["results"]
    words = loaded["prefix"].with_labels(["war", "art"], {"war": "A text on peace."})
    assert worded["scores"] == scores_of(words, "a goal") != result["scores"]
    closed = client.post("/v1/classify", json=asked | {"model": "probe"})
    assert closed.status_code == 422 and "probe knows only the labels of its training" in closed.json()["error"]


def test_the_shape_of_text_embeddings_inference(client: httpx2.Client, loaded: Adapters) -> None:
    def ask(inputs: Any, **more: Any) -> Any:
        return client.post("/predict", json={"inputs": inputs, "model": "prefix", **more}).json()

    def best_first(*texts: str) -> list[list[dict[str, Any]]]:
        found = [one.probabilities for one in loaded["prefix"].predict(texts)]
        ordered = [sorted(one.items(), key=lambda pair: -pair[1]) for one in found]
        return [[{"score": share, "label": name} for name, share in one] for one in ordered]

    assert ask("a goal") == ask(["a goal"]) == best_first("a goal")[0]
    assert ask([["a goal"], ["x"]]) == best_first("a goal", "x")
    assert ask("a goal", raw_scores=True)[0]["score"] == max(scores_of(loaded["prefix"], "a goal").values())
    assert "text 1 is longer than the adapter reads" in ask("word " * 99)["error"]
    assert len(ask("word " * 99, truncate=True)) == 3
    assert ask(["a", "b"])["error"] == "text 1 has 2 part(s), those of training have 1"


def test_many_clients_and_adapters_get_each_their_own(client: httpx2.Client, loaded: Adapters) -> None:
    """A sample of the campaign in tests/hostile: no answer is another's."""
    cases = [(SHARED[number % len(SHARED)], f"text {number} of {number * 7919}") for number in range(200)]

    def ask(case: tuple[str, str]) -> Any:
        found = client.post("/v1/classify", json={"model": case[0], "texts": [case[1]]})
        return found.json()["results"][0]["scores"]

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, cases))
    for (name, text), scores in zip(cases, found, strict=True):
        assert scores == pytest.approx(scores_of(loaded[name], text), rel=1e-6, abs=3e-6)
    sums = {
        line.split()[0]: float(line.split()[1]) for line in client.get("/metrics").text.splitlines() if line[0] != "#"
    }
    assert sums["ltune_batch_adapters_sum"] > 1.5 * sums["ltune_batch_adapters_count"], "adapters share batches"
    assert sums['ltune_texts_total{adapter="late"}'] >= 200 // len(SHARED)


REFUSED: list[tuple[str, Any, int, str]] = [
    ("/v1/classify", {"texts": ["a"]}, 422, "name the adapter in 'model': prefix, late"),
    ("/v1/classify", {"texts": ["a"], "model": "prefx"}, 404, "no adapter is called 'prefx' (nearest: 'prefix')"),
    ("/v1/classify", {"texts": [], "model": "prefix"}, 422, "there is no text"),
    ("/v1/classify", {"texts": ["a", " "], "model": "prefix"}, 422, "text 2 is empty"),
    ("/v1/classify", {"texts": ["a"] * 9, "model": "prefix"}, 413, "9 texts; a request has at most 8"),
    ("/v1/classify", {"texts": ["a" * 2001], "model": "prefix"}, 413, "text 1 has 2001 characters"),
    ("/v1/classify", {"texts": ["word " * 99] * 8, "model": "prefix"}, 413, "takes 1536 tokens to read"),
    ("/v1/classify", {"texts": ["a"], "model": "prefix", "labels": list("abcde")}, 413, "5 labels; a request has"),
    ("/v1/classify", {"texts": ["a"], "labels": {"a": {"b": -1}, "c": None}}, 422, "labels.a: must be a string; or"),
    ("/v1/classify", {"texts": ["a"], "model": "prefix", "labels": ["a"]}, 422, "at least two different names"),
    ("/v1/classify", {"texts": ["a"], "model": "prefix", "labels": ["a", "\ud800"]}, 422, "label 2 is not Unicode"),
    ("/v1/classify", {"texts": ["a", "\ud800"], "model": "prefix"}, 422, "text 2 is not Unicode text"),
    ("/v1/classify", {"texts": ["a"], "model": "\ud800\x1b[2J"}, 404, "no adapter is called"),
    ("/v1/classify", {"texts": [["a", "b"]], "model": "prefix"}, 422, "text 1 has 2 part(s)"),
    ("/v1/classify", {"texts": [3], "model": "prefix"}, 422, "texts."),
    ("/v1/classify", {"texts": [["a", "b", "c"]], "model": "prefix"}, 422, "texts.0: List should have at most 2 items"),
    ("/v1/classify", {"text": "a"}, 422, "texts: Field required"),
    ("/v1/classify", {"texts": "a", "lables": []}, 422, "lables: Extra inputs"),
    ("/v1/classify", [], 422, "the body: Input should be"),
    ("/predict", {"inputs": []}, 422, "inputs: List should have at least 1 item"),
    ("/nothing", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("route", "body", "status", "line"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_answered_gets_one_line(
    client: httpx2.Client, route: str, body: Any, status: int, line: str
) -> None:
    headers = {"Content-Type": "application/json"}
    found = client.post(route, content=json.dumps(body), headers=headers)
    answer = found.json()
    assert found.status_code == status and line in answer["error"], answer
    assert "\n" not in answer["error"] and "\x1b" not in answer["error"] and set(answer) == {"error", "error_type"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 10_000, b"1" * 10_000, b'{"texts": NaN}'])
def test_malformed_bodies(client: httpx2.Client, body: bytes) -> None:
    found = client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code in (400, 422) and found.json()["error_type"] == "validation"


def test_a_body_that_is_not_called_json_is_refused_for_that(client: httpx2.Client) -> None:
    """As curl sends one, unless it is told otherwise."""
    body, headers = b'{"model": "prefix", "texts": "a goal"}', {"Content-Type": "application/x-www-form-urlencoded"}
    found = client.post("/v1/classify", content=body, headers=headers)
    assert found.status_code == 422 and "add the header 'Content-Type: application/json'" in found.json()["error"]


def test_a_key_that_is_there_twice_is_refused(client: httpx2.Client) -> None:
    """Of two hypotheses of a label the first would be lost without a word."""
    body = b'{"model": "prefix", "texts": "a goal", "labels": {"sport": "A goal.", "it": null, "sport": "A match."}}'
    found = client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == 400 and found.json()["error_type"] == "validation"
    assert "the key 'sport' is there twice" in found.json()["error"]


def test_bodies_that_are_too_large_or_too_slow(client: httpx2.Client) -> None:
    large = b" " * 20_001
    assert client.post("/v1/classify", content=large).status_code == 413
    found = client.post("/v1/classify", content=(large[:1000] for _ in range(30)))
    assert found.status_code == 413 and "more than 20000 bytes" in found.json()["error"]
    started = time.monotonic()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
        slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    for head in (b"", b"POST /v1/cla", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            slow.sendall(head)
            while slow.recv(10_000):
                pass  # until the server closes it
    assert time.monotonic() - started < 20
    assert client.get("/health").json() == {"status": "ok"}


def test_what_is_no_http(client: httpx2.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port)) as stranger:
        stranger.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert stranger.recv(100).startswith(b"HTTP/1.1 400")
    assert client.get("/health").status_code == 200


def test_adapters_come_and_go_while_it_runs(client: httpx2.Client, adapters: dict[str, Path], loaded: Adapters) -> None:
    admin = {"Authorization": f"Bearer {ADMIN}"}
    place = "/v1/adapters/new"
    assert client.put(place, json={"path": str(adapters["prompt"])}).status_code == 401
    for path in ("/nowhere", "no\0where", "/nowhere" * 1000):
        assert client.put(place, json={"path": path}, headers=admin).status_code == 422
    refused = client.put(place, json={"path": str(adapters["lora"])}, headers=admin)
    assert refused.status_code == 422 and "lora changes the backbone's own layers" in refused.json()["error"]
    added = client.put(place, json={"path": str(adapters["prompt"])}, headers=admin).json()
    assert added == {"name": "new", "method": "lt_prompt", "labels": loaded["prompt"].labels} | {
        "open_labels": True,
        "pairs": False,
        "max_length": 64,
    }
    asked = {"model": "new", "texts": ["a goal"]}
    [result] = client.post("/v1/classify", json=asked).json()["results"]
    assert result["scores"] == scores_of(loaded["prompt"], "a goal")
    assert "new" in [one["name"] for one in client.get("/v1/adapters").json()["adapters"]]
    assert client.delete(place, headers=admin).status_code == 204
    assert client.delete(place, headers=admin).status_code == 404
    assert client.post("/v1/classify", json=asked).status_code == 404


def test_a_token_is_asked_for(loaded: Adapters) -> None:
    service = Service(loaded, LIMITS, positions=4096, longest_wait=0.005)
    with serving(service, Tokens(user=USER)) as address, httpx2.Client(base_url=address) as client:
        for route in ("/", "/health", "/metrics", "/docs", "/openapi.json"):
            assert client.get(route).status_code == 200
        for wrong in ({}, {"Authorization": USER}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {USER}"}):
            assert client.get("/v1/adapters", headers=wrong).status_code == 401
            assert client.post("/predict", json={"inputs": "a"}, headers=wrong).status_code == 401
        right = {"Authorization": f"bearer {USER}"}
        assert client.get("/v1/adapters", headers=right).status_code == 200
        assert client.delete("/v1/adapters/prefix", headers=right).status_code == 401, "nobody may, without its token"


def test_a_full_queue_and_clients_that_leave(loaded: Adapters) -> None:
    """Requests of those who left are dropped, and counted; those who wait are answered."""
    service = Service(loaded, Limits(waiting=3), positions=4096, longest_wait=0.005)
    with (
        serving(service) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        free = threading.Event()
        busy = service.batcher.run(lambda: free.wait(60))
        asked = {"model": "probe", "texts": ["a goal"]}
        leaver = httpx2.Client(base_url=address, timeout=0.3)
        with pytest.raises(httpx2.ReadTimeout):
            leaver.post("/v1/classify", json=asked | {"texts": ["x", "y"]})
        leaver.close()
        waiting = [pool.submit(client.post, "/v1/classify", json=asked) for _ in range(6)]
        while sum(one.done() for one in waiting) < 3:  # refused
            time.sleep(0.02)
        free.set()
        answers = [one.result() for one in waiting]
        assert busy.result()
        assert sorted(one.status_code for one in answers) == [200] * 3 + [429] * 3
        assert {one.headers.get("retry-after") for one in answers} == {None, "1"}
        counts = client.get("/metrics").text
        assert 'ltune_requests_total{route="/v1/classify",status="499"} 1.0' in counts
        assert 'ltune_texts_total{adapter="probe"} 3.0' in counts


def test_the_log_has_a_line_for_each_request_and_no_text(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline.serving")
    secret = {"texts": ["sesame"], "labels": ["sesame", "x"], "model": "prefix"}
    found = client.post("/v1/classify", json=secret, headers={"X-Request-Id": "mine\x1b"})
    assert found.status_code == 200 and found.headers["x-request-id"] == "mine"
    assert client.post("/v1/classify", json=secret | {"texts": ["sesame", " "]}).status_code == 422
    client.post("/v1/classify", json={"texts": [["sesame"]]})
    client.get("/sesame")
    time.sleep(0.2)
    lines = [JsonLines().format(record) for record in caplog.records]
    assert not any("sesame" in line for line in lines)
    [line] = [found for line in lines if (found := json.loads(line)).get("request") == "mine"]
    assert line.items() >= {"status": 200, "texts": 1, "labels": 2, "adapter": "prefix", "level": "info"}.items()
    assert [json.loads(line)["status"] for line in lines if '"event": "request"' in line] == [200, 422, 422, 404]


@pytest.mark.parametrize("path", ["/health", "/v1/adapters", "/", "/nowhere"])
def test_head_has_the_status_and_headers_of_get_and_no_body(path: str, client: httpx2.Client) -> None:
    found, whole = client.head(path), client.get(path)
    assert found.status_code == whole.status_code and not found.content
    for name in ("content-type", "content-length"):
        assert found.headers[name] == whole.headers[name]
    assert client.get("/health").json() == {"status": "ok"}  # on the same connection


def test_its_schema_names_every_route(client: httpx2.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/v1/classify",
        "/predict",
        "/v1/adapters",
        "/v1/adapters/{name}",
        "/health",
        "/metrics",
    }
    page = client.get("/docs")
    assert "POST /v1/classify" in page.text and "names with hypotheses" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
