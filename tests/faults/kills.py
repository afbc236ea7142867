"""Runs that are killed again and again, seeded, and what they end with."""

import random
import signal
from dataclasses import asdict, dataclass
from typing import Any

from tests.faults.runs import VARIANTS, Workshop
from tests.support.faults import PHASES

CALLS = {"step": 8, "save": 4, "background write": 4, "latest": 4, "prune": 4, "evaluation": 6, "best adapter": 3}
"""How often a phase's function is called in an undisturbed run, where that is more than once."""
BY_ALL_RANKS = {"load", "step", "save", "evaluation", "best adapter", "end", "encode labels", "evaluate"}


@dataclass(frozen=True)
class Blow:
    """SIGKILL to these ranks, so many milliseconds after this call of the phase's function begins."""

    phase: str
    call: int
    milliseconds: int
    ranks: tuple[int, ...]

    @property
    def fault(self) -> str:
        return f"strike:SIGKILL,{self.phase},{self.call},{self.milliseconds}"


@dataclass(frozen=True)
class Chain:
    """One run, begun in an empty directory and killed by each blow in turn."""

    seed: int
    variant: str
    world: int
    blows: tuple[Blow, ...]


def chain(seed: int, blows: int = 3) -> Chain:
    """Everything follows from the seed. Seeds in a row go through all phases, variants and numbers of ranks."""
    generator = random.Random(seed)
    world = 1 + seed % 2
    names = list(PHASES)
    chosen = [names[(seed * blows + number) * 7 % len(names)] for number in range(blows)]
    struck = []
    for phase in sorted(chosen, key=names.index):  # a stage that is done cannot be struck any more
        every = world == 2 and phase in BY_ALL_RANKS
        ranks = generator.choice([(0,), (1,), (0, 1)]) if every else (0,)
        # Each restart has less left to do, so late calls come but once.
        call = generator.randint(1, max(1, CALLS.get(phase, 1) // 2))
        struck.append(Blow(phase, call, generator.choice([0, 0, 3, 15, 60]), ranks))
    return Chain(seed, list(VARIANTS)[seed % len(VARIANTS)], world, tuple(struck))


def reference(workshop: Workshop, variant: str, world: int) -> str:
    """Name of the undisturbed run."""
    name = f"undisturbed-{variant}-{world}"
    if not (workshop.folder / name).exists():
        assert workshop.start(name, variant=variant, world=world) == [0] * world
    return name


def survive(workshop: Workshop, plan: Chain) -> dict[str, Any]:
    """Carries out a chain; `kills` counts the blows that struck, `differing` what is not as in the undisturbed run."""
    undisturbed = reference(workshop, plan.variant, plan.world)
    name = f"chain-{plan.seed}"
    kills, statuses = 0, []
    for blow in plan.blows:
        how: dict[str, Any] = {"variant": plan.variant, "world": plan.world}
        ended = workshop.start(name, fault=blow.fault, faulty=blow.ranks, **how)
        statuses.append(ended)
        struck = [ended[rank] in (-signal.SIGKILL, -signal.SIGALRM) for rank in blow.ranks]
        kills += any(struck)
    last = workshop.start(name, variant=plan.variant, world=plan.world)
    return {
        "plan": asdict(plan),
        "kills": kills,
        "statuses": statuses,
        "last": last,
        "differing": workshop.differing(name, undisturbed) if set(last) == {0} else [],
    }
