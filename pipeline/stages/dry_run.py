"""`run --dry-run`: what a run would do and need, without loading a weight or writing to the run directory."""

from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipeline.config import RunConfig
from pipeline.core.output import say
from pipeline.data.hypotheses import Hypotheses, hypotheses
from pipeline.distributed.launcher import world_size
from pipeline.engine.backbone import backbone_of, text_encoder
from pipeline.engine.checks import check_all
from pipeline.estimate.case import Sections, build_case, gpu_here, rows_per_text
from pipeline.estimate.costs import Case
from pipeline.estimate.table import report
from pipeline.methods.limits import check_positions, check_shortlist, check_size
from pipeline.stages.preprocess import preprocess
from pipeline.training.config import TrainConfig
from pipeline.training.judging import judge_readings
from pipeline.training.start import check_start


def plan(config: RunConfig) -> None:
    """Prints rows, steps, tokens per step, trainable parameters and memory. The data are read and checked for it."""
    backbone = backbone_of(config.backbone, config.data)
    check_all([(config, backbone)], config.run_dir.path)
    check_start(config.train.start_from, config.method, config.run_dir)
    with TemporaryDirectory() as folder:
        elsewhere = config.run.model_copy(update={"dir": folder})
        manifest = preprocess(config.model_copy(update={"run": elsewhere}), backbone)
    words = hypotheses(manifest["labels"], config.labels)
    tokens = text_encoder(backbone, config.data).hypotheses(words.texts, config.method.starts_from)
    hypothesis_tokens = tokens.kept.shape[1]
    ranks, gpu = world_size(), gpu_here()
    # Words that are now known: how many labels a text is judged against depends on them.
    labels = config.labels.model_copy(update={"names": manifest["labels"]})
    sections = Sections(config.backbone, config.data, labels, config.method, config.train, config.engine)
    case = build_case(sections, backbone.model_config, ranks, gpu, hypothesis_tokens=hypothesis_tokens)
    check_positions(config.method, case.facts, hypothesis_tokens, config.data.max_length)
    count = len(manifest["labels"])
    check_shortlist(config.method, count, config.train.objective)
    check_size(config.method, case.facts, hypothesis_tokens, count)
    with torch.device("meta"):
        method = config.method.build(case.facts, hypothesis_tokens, count)
    counted = sum(parameter.numel() for parameter in method.parameters())
    formula = config.method.trainable_count(case.facts, hypothesis_tokens, count)
    elements = case.inventory.trained_elements
    inside = f", {elements:,} in the backbone" if elements else ""
    lines = [
        *(
            f"{split}: {found['rows']:,} rows, {found['tokens']:,} tokens"
            for split, found in manifest["splits"].items()
        ),
        f"labels: {count}{_several(words)}, at most {hypothesis_tokens} tokens each",
        *_judge(sections, manifest["splits"]),
        *_steps(sections, case, manifest["splits"]["train"], ranks),
        f"trainable parameters: {formula:,} by formula, {counted:,} by count{inside}",
        "",
        report(sections, case, gpu, _step_count(config.train, manifest["splits"]["train"], ranks)),
    ]
    say("\n".join(lines))


def _several(words: Hypotheses) -> str:
    return "" if words.weights is None else f" of {len(words.texts)} hypotheses"


def _judge(config: Sections, splits: dict[str, Any]) -> list[str]:
    if not config.method.wants_judge:
        return []
    rows = {name: found["rows"] for name, found in splits.items()}
    count = config.label_count
    shortlist = config.method.joint_readings(count) or count
    readings = judge_readings(rows["train"], rows.get("validation", 0), count, shortlist)
    return [
        f"judge: {readings * config.labels.most_hypotheses:,} readings of a text with a label, before the first step"
    ]


def _steps(config: Sections, case: Case, train: dict[str, Any], ranks: int) -> list[str]:
    if config.why_no_steps is not None:
        return [f"steps: none, {config.why_no_steps}"]
    settings, injected_tokens = config.train, case.workload.injected_tokens
    global_batch = _global_batch(settings, ranks)
    readings = rows_per_text(config.method, settings, config.label_count, config.labels.most_hypotheses, ranks)
    whole, how = readings, f"{readings} reading(s) per text, {injected_tokens} injected tokens each"
    if case.workload.texts_behind:
        whole, how = 1, f"a text is read once, and {readings} prompt(s) of {injected_tokens} tokens behind it"
    elif case.shortlist_rows:
        whole, how = readings + 1, f"{how}, and one alone"
    tokens = global_batch * (whole * train["tokens"] / train["rows"] + readings * injected_tokens)
    total, per_epoch = _step_count(settings, train, ranks), _per_epoch(settings, train, ranks)
    sessions = f"sessions: {settings.self_training + 1}, each with so many steps, or with such epochs of more texts"
    return [
        f"steps: {total:,} ({per_epoch:,} per epoch of batches of {global_batch} texts)",
        f"tokens per step: {tokens:,.0f} ({how})",
        *([sessions] if settings.self_training else []),
    ]


def _global_batch(settings: TrainConfig, ranks: int) -> int:
    return settings.batch_size * settings.gradient_accumulation * ranks


def _per_epoch(settings: TrainConfig, train: dict[str, Any], ranks: int) -> int:
    return -(-int(train["rows"]) // _global_batch(settings, ranks))


def _step_count(settings: TrainConfig, train: dict[str, Any], ranks: int) -> int:
    return settings.steps(_per_epoch(settings, train, ranks))
