"""Stage 4: scores every label for every text of the evaluated splits."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from datasets import load_from_disk
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipeline.adapter.directory import Adapter, load_adapter, write_card
from pipeline.backbone.loading import weights_fingerprint
from pipeline.backbone.model_config import load_model_config
from pipeline.config import RunConfig
from pipeline.core.artefact import differences
from pipeline.core.checksums import check_sums, is_whole
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_dir, read_json, write_json
from pipeline.core.run_dir import RunDir
from pipeline.data.splits import load_split
from pipeline.data.tokenizer import load_tokenizer, pad_token_id, tokenizer_fingerprint
from pipeline.distributed.ranks import Ranks
from pipeline.engine.models import build_model, load_frozen, load_inside, prepare_inference, release
from pipeline.engine.provenance import current_data, evaluation_fingerprint, training_changes
from pipeline.engine.startup import on_main_process, start
from pipeline.evaluation.calibration import Calibration, calibrated_figures, fit_temperature, keep_calibration
from pipeline.evaluation.metrics import predictions, split_metrics
from pipeline.evaluation.scoring import score
from pipeline.methods.limits import window_warning

log = logging.getLogger(__name__)


def evaluate(config: RunConfig) -> dict[str, Any]:
    """Writes evaluation/ in the run directory, or finds it current; gives metrics.json: split -> figures.

    Every rank must call it. Raises UserError where an earlier stage has not run or was given something else, where the
    adapter was made from another backbone or with other settings, and where scores are not finite.
    """
    accelerator = start(config)
    run_dir = config.run_dir
    on_main_process(accelerator, lambda: check_sums(run_dir.data))
    manifest = on_main_process(accelerator, lambda: current_data(config))
    splits: list[str] = [split for split in config.evaluate.splits if split in manifest["splits"]]
    if not splits:
        raise UserError(
            f"none of evaluate.splits ({', '.join(config.evaluate.splits)}) is in the data: set data.test or data.split"
        )
    adapter = load_adapter(run_dir.adapter)
    check_adapter(adapter, config, manifest["labels"])
    wanted = evaluation_fingerprint(run_dir, manifest, splits)
    if on_main_process(accelerator, lambda: _is_current(run_dir, wanted)):
        log.info("evaluate: %s is current", run_dir.evaluation)
        metrics = dict(read_json(run_dir.metrics_file))
    else:
        metrics, tables = _score_splits(accelerator, config, adapter, splits, majority_label(manifest))
        on_main_process(accelerator, lambda: _write(run_dir, adapter, metrics, tables, wanted))
    on_main_process(accelerator, lambda: _keep_temperature(run_dir, metrics))
    for name, figures in metrics.items():
        log.info("evaluate: %s", summary_line(name, figures))
        for note in figures["notes"]:
            log.warning("evaluate: %s: %s", name, note)
    return metrics


def _score_splits(
    accelerator: Accelerator, config: RunConfig, adapter: Adapter, splits: list[str], majority: int
) -> tuple[dict[str, Any], list[pa.Table]]:
    """The figures by split, and each split's predictions."""
    tokenizer = load_tokenizer(config.backbone, special_tokens=config.data.special_tokens)
    model = _load_model(accelerator, config, adapter, tokenizer)
    rows, names = load_model_config(config.backbone).vocab_size, adapter.labels.names
    pad_token = pad_token_id(tokenizer, rows)
    metrics, tables, scored = {}, [], {}
    for name in splits:
        split = load_split(config.run_dir.data / name)
        scores = score(
            model,
            split.rows,
            len(names),
            config.evaluate.batch_size,
            ranks=Ranks.joined(),
            pad_token_id=pad_token,
            device=accelerator.device,
            readings=config.method.joint_readings(len(names)),
            description=f"evaluate {name}",
        )
        metrics[name] = split_metrics(scores, split.labels, names, majority, f"{name} split")
        scored[name] = (scores, split.labels)
        tables.append(_prediction_table(name, config.run_dir.data / name, names, split.labels, scores))
    release(accelerator, model)
    if "validation" in scored:
        calibration = fit_temperature(*scored["validation"])
        for name, (scores, truth) in scored.items():
            metrics[name]["calibrated"] = calibrated_figures(scores, truth, calibration)
    return metrics, tables


def check_adapter(adapter: Adapter, config: RunConfig, names: list[str]) -> None:
    """Raises UserError, naming the part, if the adapter is not what this config and data would train."""
    adapter.check_backbone(weights_fingerprint(config.backbone), tokenizer_fingerprint(load_tokenizer(config.backbone)))
    changed = differences(adapter.config.flat(), config.adapter_config().flat())
    changed += differences({"the labels": str(adapter.labels.names)}, {"the labels": str(names)})
    changed = changed or training_changes(config, adapter.labels)
    if changed:
        raise UserError(f"'{config.run_dir.adapter}' was trained otherwise: {'; '.join(changed)}; run train again")


def majority_label(manifest: dict[str, Any]) -> int:
    """Index of the label most frequent in the training texts, the lowest of equals."""
    counts = manifest["splits"]["train"]["per_label"]
    return int(np.argmax([counts[name] for name in manifest["labels"]]))


def summary_line(split: str, figures: dict[str, Any]) -> str:
    """A split's main figures beside the majority baseline, for people."""
    baseline = figures["majority"]
    shown = ", ".join(
        f"{key} {figures[key]:.4f} (majority {baseline[key]:.4f})" for key in ("accuracy", "macro_f1", "mcc")
    )
    return f"{split}: {shown}, {figures['n']} texts"


def _is_current(run_dir: RunDir, wanted: dict[str, str]) -> bool:
    file = run_dir.evaluation_fingerprint_file
    if not (file.is_file() and is_whole(run_dir.evaluation, "evaluate")):
        return False
    changed = differences(read_json(file), wanted)
    if changed:
        log.info("evaluate: %s is stale (%s), made again", run_dir.evaluation, "; ".join(changed))
    return not changed


def _keep_temperature(run_dir: RunDir, metrics: dict[str, Any]) -> None:
    if calibrated := metrics.get("validation", {}).get("calibrated"):
        calibration = Calibration(temperature=calibrated["temperature"], texts=metrics["validation"]["n"])
        keep_calibration(run_dir.adapter, calibration)


def _load_model(
    accelerator: Accelerator, config: RunConfig, adapter: Adapter, tokenizer: PreTrainedTokenizerBase
) -> nn.Module:
    backbone = load_frozen(accelerator, config.backbone, output_layer=config.method.reads_wordings)
    hidden = window_warning(
        backbone.facts, config.method.injected_tokens(adapter.labels.prompt_tokens), config.data.max_length
    )
    if hidden and accelerator.is_main_process:
        log.warning("evaluate: %s", hidden)
    method = adapter.build_method(backbone.facts)
    wordings = adapter.wordings(tokenizer, backbone.facts, adapter.labels.hypotheses)
    model = build_model(accelerator, config.backbone, backbone, method, adapter.labels, wordings)
    load_inside(model, adapter.method_state)
    return prepare_inference(accelerator, model, config.backbone.dtype)


def _prediction_table(split: str, folder: Path, names: list[str], truth: NDArray, scores: NDArray) -> pa.Table:
    """One row per text: split, row (of the source, from 1), label, prediction, and a column score/<label> per label."""
    words = pa.array(names)
    columns = {
        "split": pa.repeat(pa.scalar(split), len(truth)),
        "row": pa.array(load_from_disk(str(folder))["row"][:], pa.int64()),
        "label": words.take(pa.array(truth)),
        "prediction": words.take(pa.array(predictions(scores))),
    }
    return pa.table(columns | {f"score/{name}": pa.array(scores[:, index]) for index, name in enumerate(names)})


def _write(
    run_dir: RunDir, adapter: Adapter, metrics: dict[str, Any], tables: list[pa.Table], fingerprint: dict[str, str]
) -> None:
    """Brings the figures into the model card, then replaces evaluation/ whole or not at all."""
    write_card(run_dir.adapter, adapter, metrics)  # first: what stops in between is made again
    with atomic_dir(run_dir.evaluation, sums=True) as folder:
        write_json(folder / run_dir.metrics_file.name, metrics)
        pq.write_table(pa.concat_tables(tables), folder / run_dir.predictions_file.name)
        write_json(folder / run_dir.evaluation_fingerprint_file.name, fingerprint)
