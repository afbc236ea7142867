"""`run --dry-run`: what a run would do and need, without loading a weight or writing to the run directory."""

from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipeline.backbone.model_config import load_model_config
from pipeline.config import RunConfig
from pipeline.core.output import say
from pipeline.data.hypotheses import encode_hypotheses, hypotheses
from pipeline.data.tokenizer import load_tokenizer
from pipeline.distributed.launcher import world_size
from pipeline.engine.checks import check_all
from pipeline.estimate.case import build_case, rows_per_text
from pipeline.estimate.table import report
from pipeline.methods.limits import check_positions, check_size
from pipeline.stages.preprocess import preprocess

GPU = "h200"


def plan(config: RunConfig) -> None:
    """Prints rows, steps, tokens per step, trainable parameters and memory. The data are read and checked for it."""
    check_all([config], config.run_dir.path)
    manifest = _checked_data(config)
    words = hypotheses(manifest["labels"], config.labels)
    tokenizer = load_tokenizer(config.backbone, special_tokens=config.data.special_tokens)
    _, mask = encode_hypotheses(tokenizer, words, config.data.max_length)
    prompt_tokens = mask.shape[1]
    ranks = world_size()
    # Words that are now known: how many labels a text is judged against depends on them.
    config = config.model_copy(update={"labels": config.labels.model_copy(update={"names": manifest["labels"]})})
    case = build_case(config, load_model_config(config.backbone), ranks, GPU, prompt_tokens=prompt_tokens)
    check_positions(config.method, case.facts, prompt_tokens, config.data.max_length)
    check_size(config.method, case.facts, prompt_tokens, len(words))
    with torch.device("meta"):
        method = config.method.build(case.facts, prompt_tokens, len(words))
    counted = sum(parameter.numel() for parameter in method.parameters())
    formula = config.method.trainable_count(case.facts, prompt_tokens, len(words))
    elements = case.inventory.trained_elements
    inside = f", {elements:,} in the backbone" if elements else ""
    lines = [
        *(
            f"{split}: {found['rows']:,} rows, {found['tokens']:,} tokens"
            for split, found in manifest["splits"].items()
        ),
        f"labels: {len(words)}, at most {prompt_tokens} tokens each",
        *_steps(config, manifest["splits"]["train"], config.method.injected_tokens(prompt_tokens), ranks),
        f"trainable parameters: {formula:,} by formula, {counted:,} by count{inside}",
        "",
        report(config, case, GPU),
    ]
    say("\n".join(lines))


def _checked_data(config: RunConfig) -> dict[str, Any]:
    """The manifest that preprocess makes, in a folder that is gone afterwards."""
    with TemporaryDirectory() as folder:
        run = config.run.model_copy(update={"dir": folder})
        return preprocess(config.model_copy(update={"run": run}))


def _steps(config: RunConfig, train: dict[str, Any], injected_tokens: int, ranks: int) -> list[str]:
    settings = config.train
    global_batch = settings.batch_size * settings.gradient_accumulation * ranks
    per_epoch = -(-train["rows"] // global_batch)
    total = settings.max_steps or settings.epochs * per_epoch
    if not config.method.is_trained:
        return ["steps: none, the method is not trained"]
    readings = rows_per_text(config)
    tokens = global_batch * readings * (train["tokens"] / train["rows"] + injected_tokens)
    return [
        f"steps: {total:,} ({per_epoch:,} per epoch of batches of {global_batch} texts)",
        f"tokens per step: {tokens:,.0f} ({readings} reading(s) per text, {injected_tokens} injected tokens each)",
    ]
