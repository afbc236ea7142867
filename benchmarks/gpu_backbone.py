"""One GPU, a backbone of Llama-2-7B's shape with random weights: LT-prefix and LT-prompt beside PEFT.

`late` is LT-prefix from the middle layer on, `behind` LT-prompt behind the text.

    python benchmarks/gpu_backbone.py
    python benchmarks/gpu_backbone.py --tiny --device cpu

Ours trains under ZeRO-3 (`--zero 2`: with whole weights) with world size 1 through this project's loader, PEFT in a
plain loop over `from_pretrained` (with `load_in_8bit` for int8). Each case runs in a process of its own and gives: the
peak of allocated GPU memory while loading and while training (on a CPU, of resident memory), text tokens per second,
and the share of the matrix-multiply ceiling: the operations of the frozen layers (forward, and the inputs' gradient)
per second, over what one large bf16 product reaches in the same process.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.core.imports import quick_imports

with quick_imports():
    import torch
    from torch import Tensor, nn

CASES = [
    *map("/".join, itertools.product(["ours"], ["int8", "none"], ["lt_prefix", "lt_prompt", "late", "behind"])),
    *map("/".join, itertools.product(["peft"], ["int8", "none"], ["prefix", "prompt"])),
]
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCABULARY, LABELS, PROMPT_TOKENS, WARM_UP_STEPS = 32000, 2, 16, 3  # DeepSpeed watches two steps, then fetches ahead


def main() -> None:
    """Runs every case in its own process and prints a table, or a JSON object per line."""
    options = _options()
    if options.case:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = write_llama(Path(folder) / "llama", TINY if options.tiny else LLAMA_7B, options.device)
        for case in options.cases:
            row = _run_case(case.split("/"), model, options)
            print(json.dumps(row) if options.json else _readable(row), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, to try the script itself")
    parser.add_argument("--rows", type=int, default=16, help="texts per step")
    parser.add_argument("--text-tokens", type=int, default=256)
    parser.add_argument("--zero", type=int, choices=[2, 3], default=3, help="stage of ZeRO that ours runs under")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--folder", help="where the weights (13 GB) are written for the time of the run")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_case(case: list[str], model: Path, options: argparse.Namespace) -> dict[str, Any]:
    sizes = ("rows", "text_tokens", "steps", "zero")
    given = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in sizes]
    command = [sys.executable, __file__, "--case", *case, "--model", str(model), "--device", options.device, *given]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if options.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode != 0:
        return dict(zip(("loader", "quantization", "method"), case, strict=True)) | {"failed": found.returncode}
    return json.loads(found.stdout.splitlines()[-1])


def _readable(row: dict[str, Any]) -> str:
    name = f"{row['loader']:<5} {row['quantization']:<5} {row['method']:<10}"
    if "failed" in row:
        return f"{name} failed with exit status {row['failed']}"
    return (
        f"{name} {row['peak_loading_bytes'] / 1e9:7.2f} GB loading {row['peak_training_bytes'] / 1e9:7.2f} GB training"
        f" {row['tokens_per_second']:9.0f} tokens/s {row['share_of_ceiling']:6.1%} of {row['ceiling_flops'] / 1e12:.0f}"
        f" TFLOP/s ({row['device']})"
    )


def write_llama(folder: Path, sizes: dict[str, int], device: str) -> Path:
    """Random bfloat16 weights in one safetensors file per layer, with index and config."""
    with quick_imports():
        from accelerate import init_empty_weights
        from safetensors.torch import save_file
        from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=4096, pad_token_id=0)
    config.save_pretrained(folder)
    with init_empty_weights():
        shapes = {name: parameter.shape for name, parameter in LlamaModel(config).named_parameters()}
    files: dict[str, list[str]] = {}
    for name in shapes:
        file = f"layer-{name.split('.')[1]}.safetensors" if name.startswith("layers.") else "rest.safetensors"
        files.setdefault(file, []).append(name)
    for file, names in files.items():
        # A norm's weight is one number per column, near 1.
        values = {
            f"model.{name}": torch.randn(shapes[name], dtype=torch.bfloat16, device=device) * 0.02
            + (len(shapes[name]) == 1)
            for name in names
        }
        save_file({name: value.cpu() for name, value in values.items()}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {f"model.{name}": file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains one case and returns its figures."""
    loader, quantization, method = options.case
    torch.manual_seed(0)
    build = build_ours if loader == "ours" else build_peft
    step, layer_elements = build(Path(options.model), quantization, method, options)
    peak_loading = _peak_bytes(options.device)
    for _ in range(WARM_UP_STEPS):
        step()
    seconds = _seconds(step, options.steps, options.device)
    peak_training = _peak_bytes(options.device)
    operations = layer_elements * options.rows * operations_per_weight(method, options.text_tokens)
    ceiling = matmul_flops(options.device)
    return {
        "loader": loader,
        "quantization": quantization,
        "method": method,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "peak_loading_bytes": peak_loading,
        "peak_training_bytes": peak_training,
        "tokens_per_second": options.rows * options.text_tokens / seconds,
        "ceiling_flops": ceiling,
        "share_of_ceiling": operations / seconds / ceiling,
    }


def operations_per_weight(method: str, text_tokens: int) -> float:
    """Of one text: two for each token that is read, and two for each through which the gradient goes to the inputs."""
    match method:
        case "late":  # the lower half has no backward pass
            return 3 * text_tokens
        case "behind":  # the text has none
            return 2 * text_tokens + 4 * PROMPT_TOKENS
        case "lt_prompt" | "prompt":
            return 4 * (text_tokens + PROMPT_TOKENS)
    return 4 * text_tokens


def settings_of(method: str, layers: int) -> dict[str, Any]:
    """The section `method` of a config."""
    drawn = {"head": "label_aware", "start": "random"}
    match method:
        case "late":
            return drawn | {"name": "lt_prefix", "first_layer": layers // 2}
        case "behind":
            return drawn | {"name": "lt_prompt", "position": "after"}
    return drawn | {"name": method}


def build_ours(
    model: Path, quantization: str, method: str, options: argparse.Namespace
) -> tuple[Callable[[], None], int]:
    """One training step of ours, by the parts the train stage uses; and the elements of the frozen layers."""
    with quick_imports():
        from pipeline.config import parse_config
        from pipeline.distributed.zero import element_count
        from pipeline.engine.backbone import Backbone
        from pipeline.engine.models import build_engine, load_frozen
        from pipeline.engine.startup import start
        from pipeline.methods.model import LTuningModel
        from pipeline.training.optimizer import build_optimizer

    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    sharded = "cpu" if options.device == "cpu" else "bf16" if quantization == "none" else "int8"
    zero_config = "zero2_int8" if options.zero == 2 else f"zero3_{sharded}"
    config = parse_config(
        {
            "run": {"dir": str(model.parent / "run")},
            "backbone": {"name_or_path": str(model), "quantization": quantization},
            "data": {"train": "none.csv"},
            "method": settings_of(method, layers),
            "train": {"batch_size": options.rows},
            "engine": {"deepspeed": f"ds_configs/{zero_config}.json"},
        }
    )
    accelerator, ranks = start(config)
    backbone = load_frozen(accelerator, ranks, Backbone(config.backbone))
    layer_elements = sum(element_count(p) for name, p in backbone.named_parameters() if ".layers." in name)
    trained = config.method.build(backbone.facts, PROMPT_TOKENS, LABELS)
    states = torch.randn(LABELS, PROMPT_TOKENS, backbone.facts.hidden_size)
    classifier = LTuningModel(backbone, trained, states, torch.ones(LABELS, PROMPT_TOKENS, dtype=torch.bool), "last")
    # DeepSpeed 0.19.8 neither casts nor moves a model that holds partitioned parameters.
    trained.to(accelerator.device, torch.bfloat16)
    classifier.label_states = states.to(accelerator.device, torch.bfloat16)
    classifier.label_mask = classifier.label_mask.to(accelerator.device)
    optimizer = build_optimizer(classifier.trainable().values(), config.train)
    engine, optimizer = build_engine(accelerator, classifier, optimizer)
    engine.train()
    ids, targets = _batch(options)
    candidates = torch.arange(options.rows, device=ids.device).unsqueeze(1) % LABELS

    def step() -> None:
        scores = engine(ids, torch.ones_like(ids), candidates)
        accelerator.backward(nn.functional.binary_cross_entropy_with_logits(scores[:, 0], targets.float()))
        optimizer.step()
        optimizer.zero_grad()

    return step, layer_elements


def build_peft(
    model: Path, quantization: str, method: str, options: argparse.Namespace
) -> tuple[Callable[[], None], int]:
    """One training step of PEFT's prefix or prompt tuning on the model that transformers loads."""
    with quick_imports():
        from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
        from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    classifier = AutoModelForSequenceClassification.from_pretrained(
        model,
        dtype=torch.bfloat16,
        num_labels=LABELS,
        device_map={"": options.device},
        quantization_config=BitsAndBytesConfig(load_in_8bit=True) if quantization == "int8" else None,
    )
    layer_elements = sum(p.numel() for name, p in classifier.named_parameters() if ".layers." in name)
    kind = PrefixTuningConfig if method == "prefix" else PromptTuningConfig
    tuned = get_peft_model(classifier, kind(task_type="SEQ_CLS", num_virtual_tokens=PROMPT_TOKENS))
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
    tuned.train()
    ids, targets = _batch(options)

    def step() -> None:
        # PEFT's prefix is fp32 beside a bf16 model: autocast joins them, as its own examples do.
        with torch.autocast(options.device, dtype=torch.bfloat16):
            logits = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        nn.functional.cross_entropy(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, layer_elements


def matmul_flops(device: str) -> float:
    """Operations per second of one large bf16 product."""
    size = 8192 if device == "cuda" else 256
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    multiply: Callable[[], Any] = lambda: a @ b  # noqa: E731
    _seconds(multiply, 5, device)
    return 2 * size**3 / _seconds(multiply, 20, device)


def _batch(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random input_ids [B, T] without padding, and labels [B]."""
    ids = torch.randint(1, VOCABULARY, (options.rows, options.text_tokens), device=options.device)
    return ids, torch.randint(0, LABELS, (options.rows,), device=options.device)


def _seconds(work: Callable[[], Any], times: int, device: str) -> float:
    """Mean of several runs."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _synchronize(device)
    return (time.perf_counter() - start) / times


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_bytes(device: str) -> int:
    """Since the last call on a GPU, since the process began on a CPU."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


if __name__ == "__main__":
    main()
