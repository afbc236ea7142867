"""Run directories from elsewhere: manifests, checkpoints, metrics, links."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import Bench, Case, deep
from tests.hostile.configs import bomb


def report(name: str, file: str, content: str | bytes, says: str) -> Case:
    def make(bench: Bench) -> list[str]:
        run = bench.copy("run")
        bench.file(f"run/{file}", content)
        (run / file).parent.joinpath("SHA256SUMS").unlink(missing_ok=True)
        return ["report", "--run", str(run)]

    return Case(f"report: {name}", make, says)


def stage(
    name: str, command: str, spoil: Callable[[Path], object], says: str, *overrides: str, status: int = 2
) -> Case:
    """A copy of the run in which something is changed, and a stage on it."""

    def make(bench: Bench) -> list[str]:
        run = bench.copy("run")
        spoil(run)
        return [*bench.run(command, *overrides)]

    return Case(name, make, says, status)


def replaced_by_link(name: str, target: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).symlink_to(target)

    return spoil


def spoil_file(file: str, content: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        (run / file).parent.mkdir(exist_ok=True, parents=True)
        (run / file).write_text(content)
        (run / file).parent.joinpath("SHA256SUMS").unlink(missing_ok=True)

    return spoil


def unfinished(then: Callable[[Path], object]) -> Callable[[Path], None]:
    """A run that goes on from a checkpoint."""

    def spoil(run: Path) -> None:
        for name in ("adapter", "adapter-final", "evaluation"):
            shutil.rmtree(run / name)
        then(run)

    return spoil


def each_state(content: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        for file in (run / "checkpoints").glob("step-*/state.json"):
            file.write_text(content)
            (file.parent / "SHA256SUMS").unlink(missing_ok=True)

    return spoil


DEEP = deep("[", "]")
MARK = {"directory": "run", "version": 10**12}
REPORTS = [
    report("metrics.json nested 100,000 deep", "evaluation/metrics.json", DEEP, "metrics.json"),
    report("metrics.json of 5,000 digits", "evaluation/metrics.json", "1" * 5000, "metrics.json"),
    report("metrics.json that is a list", "evaluation/metrics.json", "[]", "evaluation' cannot be read"),
    report("predictions that are a text", "evaluation/predictions.parquet", "hello", "predictions.parquet"),
    report("a config of aliases", "config.yaml", bomb("x"), "config.yaml' cannot be read: its aliases"),
    report("a config nested 100,000 deep", "config.yaml", "run: " + DEEP, "config.yaml"),
    report("a config of another program", "config.yaml", "run: {dir: x}\nname: y\n", "config.yaml"),
    report("a log of noise", "logs/metrics.jsonl", DEEP + "\n", "cannot be read"),
    Case("report: no such run", lambda bench: ["report", "--run", "/nowhere"], "'/nowhere' is not a run directory"),
    Case("report: a device", lambda bench: ["report", "--run", "/dev/zero"], "'/dev/zero' is not a run directory"),
    Case(
        "report: a page over the run",
        lambda b: ["report", "--run", str(b.copy("run")), "--output", "/tmp"],
        "is a folder",
    ),
]

DAMAGED_STATE = "step-000001' is damaged: state.json cannot be read .*; passed over"
STAGES = [
    stage("data/ is a link to somebody's folder", "run", replaced_by_link("data", "/etc"), "data' is a symbolic link"),
    stage(
        "labels/ is a link to somebody's folder",
        "run",
        replaced_by_link("labels", "/etc"),
        "labels' is a symbolic link",
    ),
    stage("checkpoints/ is a link", "run", replaced_by_link("checkpoints", "/tmp"), "checkpoints' is a symbolic link"),
    stage("adapter/ is a link", "run", replaced_by_link("adapter", "/etc"), "adapter' is a symbolic link"),
    stage("checkpoints/ is a link to itself", "run", replaced_by_link("checkpoints", "checkpoints"), "checkpoints"),
    stage("config.yaml is a link", "run", lambda run: _link_config(run), "config.yaml' is a symbolic link"),
    stage("data/ is somebody's", "run", spoil_file("data/notes.txt", "mine"), "run/data is current", status=0),
    stage("a mark of version 10^12", "run", spoil_file("ltune.json", json.dumps(MARK)), "layout version 1000000000000"),
    stage("a mark nested 100,000 deep", "run", spoil_file("ltune.json", DEEP), "ltune.json' is damaged"),
    stage(
        "a mark of a comparison",
        "run",
        spoil_file("ltune.json", '{"directory": "comparison", "version": 1}'),
        "not a run dir",
    ),
    stage("a manifest nested 100,000 deep", "train", spoil_file("data/manifest.json", DEEP), "run/data'"),
    stage("a manifest of 5,000 digits", "evaluate", spoil_file("data/manifest.json", "1" * 5000), "run/data'"),
    stage(
        "a summary nested 100,000 deep",
        "train",
        spoil_file("adapter-final/summary.json", DEEP),
        "made again by this command, since .*adapter-final/summary.json' cannot be read",
        status=0,
    ),
    stage("states nested 100,000 deep", "train", unfinished(each_state(DEEP)), DAMAGED_STATE, status=0),
    stage(
        "states that name other files",
        "train",
        unfinished(each_state('{"files": ["../../x"]}')),
        DAMAGED_STATE,
        status=0,
    ),
    stage(
        "resume from nothing",
        "train",
        unfinished(lambda run: None),
        "not a checkpoint directory",
        "train.resume=/nowhere",
    ),
    stage(
        "resume from a device",
        "train",
        unfinished(lambda run: None),
        "'/dev/zero' is not a checkpoint",
        "train.resume=/dev/zero",
    ),
]


def _link_config(run: Path) -> None:
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to("/etc/passwd")


CASES = [*REPORTS, *STAGES]
