"""The benchmark of serving: its adapters, its clients and what it compares with, on a tiny model."""

import argparse
import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.serving import LABELS, TEXTS, make_adapters, measure, transformers_classifier
from pipeline.serving.adapters import Adapters, Choices
from pipeline.serving.limits import Limits
from pipeline.serving.service import Service
from tests.support.served import serving
from tests.support.tiny import save_tiny


def test_what_is_compared_is_measured(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama_gqa")
    options = argparse.Namespace(model=str(folder), dtype="float32", device="cpu")
    [result] = transformers_classifier(options)("", [TEXTS[0]])
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    assert result["label"] == max(result["probabilities"], key=result["probabilities"].__getitem__)
    paths = make_adapters(tmp_path, options, 2)
    assert list(paths) == ["a0", "a1", "probe"]
    adapters = Adapters(paths, Choices(device="cpu"))
    first, second = (adapters[name].predict(TEXTS[:1])[0].scores for name in ("a0", "a1"))
    assert first != second and set(first) == set(LABELS)
    service = Service(adapters, Limits(), positions=4096, longest_wait=0.005)
    with serving(service) as address:
        port = urlsplit(address).port
        assert port is not None
        found = asyncio.run(measure(port, ["a0", "a1", "probe"], clients=4, requests=12))
        assert 'ltune_texts_total{adapter="probe"} 4.0' in service.monitor.exposition().decode()
        with pytest.raises(AssertionError, match="404"):
            asyncio.run(measure(port, ["none"], clients=1, requests=2))
    assert 0 < found["p50"] <= found["p95"] <= found["p99"] and found["requests_per_s"] > 0
