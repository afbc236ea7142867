"""Checks the machine as one would before the first job: alone, or under a launcher on all its hosts."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.distributed.device import announce_device
from pipeline.distributed.launcher import rank, world_size
from pipeline.doctor import hardware, network, ranks, software
from pipeline.doctor.check import Check, run_checks

COLOURS = {"ok": "\033[32m", "warning": "\033[33m", "failure": "\033[31m"}


def doctor(run: str | None = None) -> list[Check]:
    """Prints a table of what was found and what to do about it, on rank 0; gives its rows.

    `run` is the run directory a job will use. Needs nothing but Python: where torch is missing, that is one of the
    rows. Raises UserError on rank 0 where a check failed.
    """
    folder = Path(run) if run else None
    results = run_checks([software.python, software.packages, hardware.torch_and_driver])
    torch_works = "torch" in sys.modules  # the check has imported it, if that can be done
    if torch_works:
        announce_device()
        results += run_checks([software.deepspeed, software.bitsandbytes])
    results += run_checks([software.launchers, hardware.memory, partial(hardware.disks, folder)])
    results += run_checks([network.hub, network.host_name, network.port])
    if torch_works:
        results = _with_other_ranks(results, folder)
    if rank() != 0:
        return results
    print(table(results, colours=sys.stdout.isatty()))
    failed = [result.name for result in results if result.state == "failure"]
    if failed:
        raise UserError(f"{len(failed)} check(s) failed: {', '.join(failed)}; what to do stands beside each")
    return results


def _with_other_ranks(results: list[Check], folder: Path | None) -> list[Check]:
    """Adds what the ranks find out together, and the other ranks' troubles."""
    met = run_checks([ranks.join])
    results = results + met
    if any(check.state == "failure" for check in met):
        return results
    if world_size() > 1:
        results += run_checks([ranks.same_software, partial(ranks.shared_folder, folder), ranks.clocks])
        results = merged(ranks.gathered(results))
    ranks.leave()
    return results


def merged(by_rank: Sequence[Sequence[Check]]) -> list[Check]:
    """Rank 0's rows, and every different trouble of other ranks with the ranks that have it."""
    rows = list(by_rank[0])
    troubles: dict[Check, list[int]] = {}
    for number, checks in enumerate(by_rank[1:], start=1):
        for check in checks:
            if check.state != "ok" and check not in rows:
                troubles.setdefault(check, []).append(number)
    for check, numbers in troubles.items():
        who = f"rank {', '.join(map(str, numbers[:8]))}{', ...' if len(numbers) > 8 else ''}"
        rows.append(Check(check.name, check.state, f"{who}: {check.found}", check.advice))
    return rows


def table(results: Sequence[Check], *, colours: bool = False, width: int | None = None) -> str:
    """Aligned text: state, name, what was found, and below it what to do."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    name_width = max(len(check.name) for check in results)
    margin = " " * (9 + name_width + 2)
    lines = []
    for check in results:
        state = f"{check.state:<9}"
        head = f"{COLOURS[check.state]}{state}\033[0m" if colours else state
        texts = textwrap.wrap(check.found, max(40, width - len(margin)), break_on_hyphens=False) or [""]
        texts += textwrap.wrap(check.advice, max(40, width - len(margin)), initial_indent="→ ", subsequent_indent="  ")
        lines.append(f"{head}{check.name:<{name_width}}  {texts[0]}")
        lines += [f"{margin}{text}" for text in texts[1:]]
    counts = {state: sum(check.state == state for check in results) for state in COLOURS}
    return "\n".join([*lines, "", ", ".join(f"{count} {state}" for state, count in counts.items())])
