"""What the two ranks of test_startup.py do."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.distributed.launcher import world_size
from pipeline.engine.startup import start
from tests.support.tiny_run import tiny_config


def main_process(folder: Path) -> dict[str, Any]:
    accelerator, ranks = start(tiny_config(folder / "rank"))
    _, again = start(tiny_config(folder / "rank", train={"batch_size": 2}))
    calls: list[int] = []
    groups: list[Any] = []
    make_group = dist.new_group

    def noted_group(*args: Any, **keywords: Any) -> Any:
        groups.append(args)
        return make_group(*args, **keywords)

    def work() -> dict[str, int]:
        calls.append(1)
        return {"rows": 3}

    dist.new_group = noted_group
    results = [ranks.on_main(work), again.on_main(work)]
    dist.new_group = make_group
    return {
        "results": results,
        "calls": len(calls),
        "groups made": len(groups),
        "same ranks": ranks is again,
        "world": [world_size(), accelerator.num_processes, accelerator.process_index, ranks.size, ranks.rank],
    }
