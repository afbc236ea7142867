"""Files of a run directory, damaged one at a time: mended, or refused by name, never taken for whole."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.runs import Workshop

KINDS = ("truncated", "flipped", "empty", "version")
FILES = {
    "interrupted": (
        "checkpoints/LATEST",
        "checkpoints/step-000008/state.json",
        "checkpoints/step-000008/parameters.safetensors",
        "checkpoints/step-000008/exp_avg.safetensors",
        "checkpoints/step-000008/exp_avg_sq.safetensors",
        "checkpoints/step-000008/best.safetensors",
        "logs/metrics.jsonl",
        "labels/labels.json",
        "labels/label_states.safetensors",
        "data/manifest.json",
        "data/train/data-00000-of-00001.arrow",
        "data/validation/data-00000-of-00001.arrow",
        "data/train/dataset_info.json",
        "data/train/state.json",
        "config.yaml",
    ),
    "finished": (
        "adapter/adapter.safetensors",
        "adapter/adapter_config.json",
        "adapter/labels.json",
        "adapter/label_states.safetensors",
        "adapter/SHA256SUMS",
        "adapter-final/adapter.safetensors",
        "adapter-final/summary.json",
        "evaluation/metrics.json",
        "evaluation/predictions.parquet",
        "evaluation/fingerprint.json",
        "data/test/data-00000-of-00001.arrow",
        "data/SHA256SUMS",
    ),
}
"""Every kind of file, in a run that was killed just before its end, and in one that is finished."""


@dataclass(frozen=True)
class Damage:
    """What is done to one file; where the flipped bit lies follows from the seed."""

    state: str
    file: str
    kind: str
    seed: int

    def apply(self, path: Path) -> None:
        """The file keeps its name and loses its worth."""
        content = path.read_bytes()
        if self.kind == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif self.kind == "empty":
            path.write_bytes(b"")
        elif self.kind == "version":
            path.write_text(json.dumps(json.loads(content) | {"version": 99}))
        else:
            at = random.Random(self.seed).randrange(len(content))
            path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])


def damages(kinds_per_file: int = len(KINDS)) -> list[Damage]:
    """Every file with the first kinds that suit it, in an order that begins with another kind for each file."""
    found = []
    for state, files in FILES.items():
        for number, file in enumerate(files):
            suited = [kind for kind in KINDS if kind != "version" or file.endswith(("state.json", "labels.json"))]
            suited += ["version"] if file.endswith(("manifest.json", "adapter_config.json")) else []
            turn = [suited[(number + shift) % len(suited)] for shift in range(len(suited))]
            found += [Damage(state, file, kind, number) for kind in turn[:kinds_per_file]]
    return [damage for damage in found if not (damage.kind == "version" and "data/train/state" in damage.file)]


def interrupted(workshop: Workshop, finished: str) -> str:
    """A copy of a finished run as a kill just before its end would have left it."""
    name = "interrupted"
    if not (workshop.folder / name).exists():
        workshop.copy(finished, name)
        for folder in ("adapter-final", "evaluation"):
            shutil.rmtree(workshop.folder / name / folder)
    return name


def outcome(workshop: Workshop, damage: Damage, finished: str) -> dict[str, Any]:
    """`mended` (the undisturbed results), `refused` (status 2 and the file's name), `told` (a warning), or `wrong`."""
    source = interrupted(workshop, finished) if damage.state == "interrupted" else finished
    name = f"damaged-{damage.state}-{damage.file.replace('/', '-')}-{damage.kind}"
    workshop.copy(source, name)
    damage.apply(workshop.folder / name / damage.file)
    status = workshop.start(name)
    said = workshop.log(name).read_text()
    differing = workshop.differing(name, finished) if status == [0] else []
    if status == [0] and not differing:
        result = "mended"
    elif status == [2] and Path(damage.file).parts[0] in said:
        result = "refused"
    elif status == [0] and differing == ["metrics.jsonl"] and "is not what it was" in said:
        result = "told"
    else:
        result = "wrong"
    return {
        "damage": f"{damage.state}: {damage.file}: {damage.kind}",
        "outcome": result,
        "status": status,
        "differing": differing,
        "said": said[-400:] if result == "wrong" else "",
    }
