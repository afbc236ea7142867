"""Comparisons: what a compare.yaml multiplies, names and points at."""

import json
from typing import Any

from tests.hostile.case import Bench, Case, deep
from tests.hostile.configs import bomb
from tests.support.devices import device


def values(bench: Bench) -> dict[str, Any]:
    run = bench.values()
    return {
        "dir": str(bench.folder / "compared"),
        "base": {"train": {"max_steps": 1, "batch_size": 4}, "logging": {"trackers": ["jsonl"]}},
        "backbones": {"tiny": {"backbone": run["backbone"]}},
        "datasets": {"news": {"data": run["data"]}},
        "methods": {"prompt": {}, "majority": {}},
        "seeds": [0],
    }


def compared(name: str, says: str, *arguments: str, status: int = 2, **keys: Any) -> Case:
    def make(bench: Bench) -> list[str]:
        file = bench.file("compare.yaml", json.dumps(values(bench) | keys))
        return ["compare", "--config", str(file), *(arguments or ("--dry-run",))]

    return Case(f"compare: {name}", make, says, status)


def into_a_device(bench: Bench) -> list[str]:
    keys = values(bench) | {"dir": str(device(bench.folder, "null"))}
    return ["compare", "--config", str(bench.file("compare.yaml", json.dumps(keys))), "--dry-run"]


def missing(bench: Bench, *arguments: str) -> list[str]:
    """342 runs whose data files are all missing, with a DeepSpeed file that is missing too."""
    given = values(bench)
    datasets = {
        f"d{n}": {"data": dict.fromkeys(("train", "validation", "test"), f"/nowhere/d{n}.csv")} for n in range(3)
    }
    methods = {"prompt": {}, "prefix": {}, "lt_prompt": {}}
    engine = given["base"] | {"engine": {"deepspeed": "none.json"}}
    keys = {"datasets": datasets, "methods": methods, "seeds": list(range(38)), "base": engine}
    return ["compare", "--config", str(bench.file("compare.yaml", json.dumps(given | keys))), *arguments]


def raw(name: str, content: str, says: str) -> Case:
    def make(bench: Bench) -> list[str]:
        return ["compare", "--dry-run", "--config", str(bench.file("compare.yaml", content))]

    return Case(f"compare: {name}", make, says)


CASES = [
    Case(
        "compare: data files that are missing",
        lambda b: missing(b, "--dry-run"),
        r"^/nowhere/d0\.csv.*none\.json.*d1\.csv.*d2\.csv",
    ),
    Case("compare: the same without a dry run", missing, r"^/nowhere/d0\.csv.*none\.json.*d1\.csv.*d2\.csv"),
    compared(
        "a grid of 10^12 runs",
        "makes .* runs, at most 100,000",
        grid={f"train.k{n}": list(range(100)) for n in range(6)},
    ),
    compared(
        "20,000 seeds", "makes 120,000 runs, at most", seeds=list(range(20_000)), grid={"train.epochs": [1, 2, 3]}
    ),
    compared("a size of 10^13", "train_per_label", sizes=[10**13]),
    compared("a size of nothing", "'sizes.0': must be all, or a number of texts from 1 on$", sizes=[0]),
    compared("a seed below nothing", "'seeds.0': .*greater than or equal to 0", seeds=[-1]),
    compared("no methods", "'methods': .*at least 1", methods={}),
    compared("a method that leads out", "becomes a folder", methods={"../../x": {"method": {"name": "prompt"}}}),
    compared("a data set of 500 characters", "becomes a folder", datasets={"x" * 500: {}}),
    compared("a grid of an unknown key", "unknown key", grid={"train.nothing": [1, 2]}),
    compared("a grid without values", "'grid.train.learning_rate': .*at least 1", grid={"train.learning_rate": []}),
    compared("a reference that is none", "reference 'nobody'", reference="nobody"),
    compared("figures of no cell", "published.a.b.c is not a cell", published={"a": {"b": {"c": 1.0}}}),
    compared("a directory that is somebody's", "not a comparison directory", dir="/etc"),
    Case("compare: a directory that is a device", into_a_device, "^dir '.*null' cannot be written .*another dir$"),
    compared("share 5/4", "--cells '5/4'", "--cells", "5/4"),
    compared("share of 5,000 digits", "--cells", "--cells", "1" * 5000 + "/" + "2" * 5000),
    compared("share of a word", "--cells 'a/b'", "--cells", "a/b"),
    compared("a template with a width", "labels.template", base={"labels": {"template": "{label:>9999999999}"}}),
    compared("code of its own", "trust_remote_code", trust_remote_code=True),
    compared("a value twice", "0.1 is given twice", grid={"train.learning_rate": [0.1, 0.1]}),
    compared("what is right", "2 groups, 2 runs", status=0),
    raw("aliases of aliases", bomb("x"), "its aliases"),
    raw("nested 100,000 deep", "dir: " + deep("[", "]"), "cannot be read"),
    raw("nothing", "", "does not hold a 'section"),
    raw(
        "sections that are lists",
        "dir: x\nbase: []\nbackbones: 1\ndatasets: x\nmethods: null\n",
        "'base': .*'backbones': .*'datasets': .*'methods': ",
    ),
]
