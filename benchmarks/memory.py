"""What a frozen backbone costs each rank in memory: our loader beside transformers' own, under the same ZeRO-3 config.

    python benchmarks/memory.py --world-size 4 --quantization int8 --json

Makes a Llama of `--size` random parameters on the spot, or with `--experts 8` a Mixtral, starts one process per rank on
this machine's CPU, loads the model, trains a soft prompt for two steps, and prints per loader and rank:

    backbone_bytes_total            the model's weights as they are stored, once
    backbone_bytes_at_rest          of them held by this rank before the first step
    code_bytes_total                those of the quantized matrices without their scales, once
    code_bytes_alive_after_forward  of codes in this process between forward and backward of the second step
    anon_peak_bytes                 largest growth of anonymous memory (RssAnon: no mapped files) while loading
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.anon_peak import AnonPeak
from pipeline.core.imports import quick_imports, without_compiler

with quick_imports():
    import torch

LOADERS = ("ours", "transformers")
QUANTIZATIONS = ("none", "int8", "int8_weight_only", "int4")
HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS_PER_FILE = 1024, 2816, 16000, 4
ATTENTION_PARAMETERS, EXPERT_PARAMETERS = 4 * HIDDEN**2, 3 * HIDDEN * INTERMEDIATE
LIVE_ELEMENTS = 6_000_000
"""What ZeRO-3 may keep gathered, and again fetch ahead: about half a layer of the model above."""


def main() -> None:
    """Runs both loaders, one process per rank, and prints a JSON object per line or a table."""
    arguments = _arguments()
    if arguments.rank is not None:
        _measure_here(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", arguments.size, arguments.experts)
        for loader in arguments.loaders:
            for row in _measure(loader, model, arguments):
                print(json.dumps(row) if arguments.json else _readable(row), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-size", type=int, default=2, help="ranks on this machine")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="int8")
    parser.add_argument("--size", type=float, default=400e6, help="parameters of the model, about (default 400e6)")
    parser.add_argument("--experts", type=int, default=1, help="of each layer, two for a token; 1: a Llama (default)")
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=LOADERS)
    parser.add_argument("--timeout-seconds", type=int, default=900, help="for each loader")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quantization == "int4" and "transformers" in arguments.loaders:
        parser.error("transformers' 4 bits are another format: give --loaders ours")
    return arguments


def write_model(folder: Path, size: float, experts: int) -> Path:
    """A model of about `size` random bfloat16 parameters, in several safetensors files with an index."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel

    layers = max(1, round((size - VOCABULARY * HIDDEN) / (ATTENTION_PARAMETERS + experts * EXPERT_PARAMETERS)))
    config = AutoConfig.for_model(
        "llama" if experts == 1 else "mixtral",
        num_local_experts=experts,
        num_experts_per_tok=2,
        num_key_value_heads=16,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        num_attention_heads=16,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModel.from_config(config).state_dict().items()}
    placed: dict[str, str] = {}
    for name in shapes:
        layer = int(name.split(".")[1]) if name.startswith("layers.") else 0
        placed[name] = f"model-{layer // LAYERS_PER_FILE:05d}.safetensors"
    for file in sorted(set(placed.values())):
        held = {name: (0.02 * torch.randn(shapes[name])).bfloat16() for name in placed if placed[name] == file}
        save_file(held, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 2 * sum(shape.numel() for shape in shapes.values())}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _measure(loader: str, model: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One process per rank; their rows in order. Ends them all when one fails or the time is up."""
    from pipeline.distributed.launcher import free_port

    command = [sys.executable, __file__, "--quantization", arguments.quantization, "--loaders", loader]
    command += ["--model", str(model), "--world-size", str(arguments.world_size)]
    shared = {"WORLD_SIZE": str(arguments.world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ranks = [
        subprocess.Popen(
            [*command, "--rank", str(rank)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(arguments.world_size)
    ]
    deadline = time.monotonic() + arguments.timeout_seconds
    try:
        while any(process.poll() is None for process in ranks):
            if any(process.poll() for process in ranks) or time.monotonic() > deadline:
                sys.exit(f"{loader}: a rank failed or took more than {arguments.timeout_seconds} s")
            time.sleep(0.1)
    finally:
        for process in ranks:
            process.kill()
    return [json.loads(process.stdout.read().splitlines()[-1]) for process in ranks if process.stdout is not None]


def _measure_here(arguments: argparse.Namespace) -> None:
    """Loads on this rank, trains two steps, prints the row."""
    _import_everything()
    import deepspeed

    from pipeline.distributed.zero import keep_quiet

    warnings.simplefilter("ignore")
    keep_quiet()
    deepspeed.init_distributed("gloo", verbose=False)
    loader = arguments.loaders[0]
    load = _load_ours if loader == "ours" else _load_with_transformers
    gc.collect()
    with AnonPeak() as anon:
        backbone = load(arguments.model, arguments.quantization)
    engine = _start(backbone)
    at_rest = _held_bytes(backbone)
    alive = 0
    for _ in range(2):  # in the second step ZeRO-3 knows the order of the layers and fetches ahead
        loss = engine(torch.arange(8).unsqueeze(0)).square().mean()
        alive = _code_bytes_alive()
        engine.backward(loss)
        engine.step()
    codes, total = _totals(backbone)
    row = {
        "loader": loader,
        "quantization": arguments.quantization,
        "world_size": arguments.world_size,
        "rank": arguments.rank,
        "backbone_bytes_total": total,
        "backbone_bytes_at_rest": at_rest,
        "code_bytes_total": codes,
        "code_bytes_alive_after_forward": alive,
        "anon_peak_bytes": anon.peak_bytes,
    }
    print(json.dumps(row), flush=True)


def _import_everything() -> None:
    """So that the memory of code is not counted as the model's."""
    with quick_imports(), without_compiler():
        import bitsandbytes
        import deepspeed.runtime.zero.muon.muon_optimizer
        import transformers.models.llama.modeling_llama

        import pipeline.backbone.loading

    del bitsandbytes, deepspeed, transformers, pipeline


def _zero_config() -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 10_000,
            "stage3_max_live_parameters": LIVE_ELEMENTS,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": LIVE_ELEMENTS,
        },
    }


def _load_ours(model: str, quantization: str) -> torch.nn.Module:
    from pipeline.backbone.config import BackboneConfig
    from pipeline.backbone.loading import load_backbone
    from pipeline.distributed.ranks import Ranks

    config = BackboneConfig(name_or_path=model, quantization=quantization)
    return load_backbone(config, zero_config=_zero_config(), device=torch.device("cpu"), ranks=Ranks.joined())


def _load_with_transformers(model: str, quantization: str) -> torch.nn.Module:
    from transformers import AutoModel, BitsAndBytesConfig
    from transformers.integrations import HfDeepSpeedConfig

    options: dict[str, Any] = {}
    if quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    announced = HfDeepSpeedConfig(_zero_config())
    backbone = AutoModel.from_pretrained(model, dtype=torch.bfloat16, **options)
    del announced
    return backbone.requires_grad_(False)


class _Prompted(torch.nn.Module):
    """A frozen backbone behind a trainable prompt of four tokens."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompt = torch.nn.Parameter(torch.zeros(1, 4, HIDDEN, dtype=torch.bfloat16))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = self.backbone.get_input_embeddings()(ids)
        return self.backbone(inputs_embeds=torch.cat([self.prompt, embedded], 1), use_cache=False).last_hidden_state


def _start(backbone: torch.nn.Module) -> Any:
    import deepspeed

    module = _Prompted(backbone)
    optimizer = torch.optim.AdamW([module.prompt])
    return deepspeed.initialize(model=module, optimizer=optimizer, config=_zero_config())[0]


def _held_bytes(backbone: torch.nn.Module) -> int:
    """Bytes of weights on this rank: parameters or their partitions, and what quantized layers keep beside them."""
    held = []
    for module in backbone.modules():
        for parameter in module.parameters(recurse=False):
            held += [parameter.data, getattr(parameter, "ds_tensor", None)]
            held += [getattr(parameter, "CB", None), getattr(parameter, "SCB", None)]
        state = getattr(module, "state", None)
        held += [getattr(state, "CB", None), getattr(state, "SCB", None)]
        held += [buffer for name, buffer in module.named_buffers(recurse=False) if name.endswith("scale_bits")]
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in held if tensor is not None and tensor.numel()}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def _code_bytes_alive() -> int:
    tensors = (thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and thing.dtype == torch.int8)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _totals(backbone: torch.nn.Module) -> tuple[int, int]:
    """Bytes of codes, and of all weights with their scales, in the whole model."""
    from pipeline.distributed.zero import element_count

    sizes = [
        (parameter.dtype, element_count(parameter) * parameter.element_size()) for parameter in backbone.parameters()
    ]
    scales = [buffer.nbytes for name, buffer in backbone.named_buffers() if name.endswith("scale_bits")]
    codes = sum(size for dtype, size in sizes if dtype == torch.int8)
    return codes, sum(size for _, size in sizes) + sum(scales)


def _readable(row: dict[str, Any]) -> str:
    title = f"{row['loader']:<12} {row['quantization']} W={row['world_size']} rank {row['rank']}:"
    sizes = [f"{name.removeprefix('backbone_')} {value / 1e6:,.1f} M" for name, value in list(row.items())[4:]]
    return f"{title} {', '.join(sizes)}"


if __name__ == "__main__":
    main()
