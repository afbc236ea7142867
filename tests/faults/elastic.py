"""A run that moves between numbers of ranks."""

import math
from typing import Any

from tests.faults.runs import Workshop, results

SETTINGS = ("train.batch_size=3", "method.dropout=0")
"""Two ranks, with two accumulations: 12 texts per step, which 1, 2, 3 and 4 ranks can share. Without dropout, which is
drawn for a whole forward pass: three ranks take two texts in each, not three."""


def moved(workshop: Workshop, world: int) -> dict[str, Any]:
    """Two ranks, killed after four steps; `world` ranks, killed two steps later; two ranks again, to the end."""
    if not (workshop.folder / "pair").exists():
        assert workshop.start("pair", *SETTINGS, world=2) == [0, 0]
    name = f"moved-{world}"
    everyone = range(world)
    workshop.start(name, *SETTINGS, world=2, fault="strike:SIGKILL,step,6,0", faulty=(0, 1))
    workshop.start(name, *SETTINGS, world=world, fault="strike:SIGKILL,step,4,0", faulty=everyone)
    last = workshop.start(name, *SETTINGS, world=2)
    said = workshop.log(name).read_text()
    return {
        "world": world,
        "last": last,
        "shared": f"{world} rank(s) share batches of 12 texts" in said,
        "resumed": said.count("goes on after step"),
        "close": close(workshop, name, "pair"),
    }


def refused(workshop: Workshop) -> dict[str, Any]:
    """Three ranks cannot share batches of eight texts."""
    workshop.start("uneven", world=2, fault="strike:SIGKILL,step,4,0", faulty=(0, 1))
    return {"statuses": workshop.start("uneven", world=3), "said": workshop.log("uneven").read_text()}


def close(workshop: Workshop, run: str, undisturbed: str) -> bool:
    """The same steps, and losses equal to float tolerance."""
    ours, wanted = (results(workshop.folder / name)["metrics.jsonl"] for name in (run, undisturbed))
    return [line["step"] for line in ours] == [line["step"] for line in wanted] and all(
        math.isclose(mine[key], theirs[key], rel_tol=1e-4)
        for mine, theirs in zip(ours, wanted, strict=True)
        for key in mine.keys() & {"loss", "validation/log_loss"}
    )
