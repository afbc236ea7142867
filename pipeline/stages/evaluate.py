"""Stage 5: scores every label for every text of the evaluated splits."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from datasets import load_from_disk
from numpy.typing import NDArray

from pipeline.adapter.config import AdapterConfig
from pipeline.adapter.directory import Adapter, load_adapter, write_card
from pipeline.config import RunConfig
from pipeline.core.artefact import differences
from pipeline.core.checksums import check_sums
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_dir, read_json, write_json
from pipeline.core.run_dir import RunDir
from pipeline.data.config import LabelsConfig, weighted
from pipeline.data.hypotheses import Hypotheses, hypotheses
from pipeline.data.splits import Split, load_split
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.kept_states import with_states
from pipeline.engine.memory_limit import in_smaller_passes, within_memory
from pipeline.engine.provenance import current_data, evaluated_from, evaluation_artefact, evaluation_fingerprint
from pipeline.engine.rewordings import Reworded, inner_model, read_rewordings, reworded_hypotheses
from pipeline.engine.scorer import Scorer, loaded_scorer
from pipeline.engine.startup import start
from pipeline.evaluation.calibration import Calibration, calibrated_metrics, fit_temperature, keep_calibration
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.metrics import predictions, split_metrics
from pipeline.evaluation.rewordings import over_rewordings, wording_line
from pipeline.training.provenance import training_changes, training_fingerprint

log = logging.getLogger(__name__)


@in_smaller_passes
def evaluate(config: RunConfig, backbone: Backbone | None = None) -> dict[str, Any]:
    """Writes evaluation/ in the run directory, or finds it current; gives metrics.json: split -> metrics.

    `backbone`: the command's; None: one of its own.
    Every rank must call it. Raises UserError where an earlier stage has not run or was given something else, where the
    adapter was made from another backbone or with other settings, and where scores are not finite. Where memory is too
    short, passes become smaller.
    """
    accelerator, ranks = start(config)
    backbone = backbone or backbone_of(config.backbone, config.data)
    run_dir, seed = config.run_dir, config.run.seed
    ranks.on_main(lambda: check_sums(run_dir.data))
    manifest = ranks.on_main(lambda: current_data(run_dir, config.data, config.labels, seed, backbone))
    splits: list[str] = [split for split in config.evaluate.splits if split in manifest["splits"]]
    if not splits:
        raise UserError(
            f"none of evaluate.splits ({', '.join(config.evaluate.splits)}) is in the data: set data.test or data.split"
        )
    adapter = load_adapter(run_dir.adapter)
    adapter.check_backbone(backbone.opened(ranks).fingerprint, backbone.tokenizer_fingerprint)
    _check_adapter(adapter, config.adapter_config(), manifest["labels"], run_dir.adapter)
    trained = training_fingerprint(config.method, config.train, config.backbone, seed, manifest, adapter.labels)
    if changed := training_changes(run_dir, config.method, trained):
        raise _trained_otherwise(run_dir.adapter, changed)
    if ranks.is_main and not run_dir.is_finished:
        log.warning("evaluate: training has not ended: '%s' is what was best of it so far", run_dir.adapter)
    rewordings = config.evaluate.rewordings
    others = reworded_hypotheses(adapter.labels, rewordings)
    wanted = evaluation_fingerprint(run_dir, manifest, splits, json.dumps(rewordings) if rewordings else None)
    if ranks.on_main(lambda: _is_current(run_dir, manifest, wanted)):
        metrics = dict(read_json(run_dir.metrics_file))
    else:
        settings = ranks.on_every(lambda: within_memory(run_dir, config.evaluate, "evaluate"))
        reworded = read_rewordings(accelerator, ranks, backbone, adapter, others)
        metrics, tables = _score_splits(
            accelerator, ranks, settings, run_dir, backbone, adapter, splits, manifest, reworded
        )
        ranks.on_main(lambda: _write(run_dir, adapter, metrics, tables, wanted))
    ranks.on_main(lambda: _keep_temperature(run_dir, metrics))
    if ranks.is_main:  # the notes are warnings, which every rank would repeat
        _tell(metrics)
    return metrics


def _tell(metrics: dict[str, Any]) -> None:
    for name, found in metrics.items():
        log.info("evaluate: %s", summary_line(name, found))
        if "rewordings" in found:
            log.info("evaluate: %s: %s", name, wording_line(found["rewordings"]))
        for note in found["notes"]:
            log.warning("evaluate: %s: %s", name, note)


def _score_splits(
    accelerator: Accelerator,
    ranks: Ranks,
    settings: EvaluateConfig,
    run_dir: RunDir,
    backbone: Backbone,
    adapter: Adapter,
    splits: list[str],
    manifest: dict[str, Any],
    reworded: list[Reworded],
) -> tuple[dict[str, Any], list[pa.Table]]:
    """The metrics by split, and each split's predictions."""
    loaded = {name: load_split(run_dir.data / name) for name in splits}
    if adapter.config.method.reads_stored:
        loaded = with_states(run_dir, backbone, ranks, loaded)
    with loaded_scorer(accelerator, ranks, backbone, adapter, settings, "evaluate") as scorer:
        metrics, scored = _Evaluation(scorer, loaded, majority_label(manifest)).by_split(reworded)
    if "validation" in scored:
        calibration = fit_temperature(scored["validation"], loaded["validation"].labels)
        for name, scores in scored.items():
            metrics[name]["calibrated"] = calibrated_metrics(scores, loaded[name].labels, calibration)
    names = adapter.labels.names
    tables = [_prediction_table(name, run_dir.data / name, names, scored[name], loaded[name].labels) for name in loaded]
    return metrics, tables


@dataclass(frozen=True)
class _Evaluation:
    """How splits are scored."""

    scorer: Scorer
    splits: Mapping[str, Split]
    majority: int

    def by_split(self, reworded: list[Reworded]) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
        """Metrics, among them those under other words for the labels, and scores [N, K]."""
        scored = {name: self._scores(name, f"{name} split") for name in self.splits}
        metrics = {name: self._metrics(name, scores, f"{name} split") for name, scores in scored.items()}
        under: dict[str, list[dict[str, Any]]] = {name: [] for name in self.splits}
        for number, one in enumerate(reworded, start=1):
            one.put_into(inner_model(self.scorer.model))
            for name in self.splits:
                what = f"{name} split, rewording {number}"
                under[name].append(self._metrics(name, self._scores(name, what), what))
        rewordings = self.scorer.settings.rewordings
        for name in metrics if rewordings else ():
            metrics[name]["rewordings"] = over_rewordings(rewordings, under[name])
        return metrics, scored

    def _scores(self, name: str, what: str) -> NDArray[np.float32]:
        """[N, K] of a split, under the hypotheses that the model judges by now."""
        return self.scorer.scores(self.splits[name], f"evaluate {what}")

    def _metrics(self, name: str, scores: NDArray[np.float32], what: str) -> dict[str, Any]:
        names = self.scorer.adapter.labels.names
        return split_metrics(scores, self.splits[name].labels, names, self.majority, what)


def _check_adapter(adapter: Adapter, config: AdapterConfig, names: list[str], path: Path) -> None:
    """Raises UserError, naming the part, if the adapter is not what this config and data would train."""
    changed = differences(adapter.config.flat(), config.flat())
    changed += differences({"the labels": str(adapter.labels.names)}, {"the labels": str(names)})
    words = dict(zip(names, hypotheses(names, config.labels).by_label, strict=True))
    changed = changed or differences(
        _worded(adapter.config.labels, adapter.labels.by_label), _worded(config.labels, words)
    )
    if changed:
        raise _trained_otherwise(path, changed)


def _worded(labels: LabelsConfig, by_label: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The words for new labels, and those of each label: the same in whichever form `labels` states them."""
    [template] = Hypotheses.of([weighted(labels.template)]).by_label
    own = {f"the hypothesis of {name!r}": str(words) for name, words in by_label.items()}
    return {"labels.template": str(template), **own}


def _trained_otherwise(adapter: Path, changed: list[str]) -> UserError:
    return UserError(f"'{adapter}' was trained otherwise: {'; '.join(changed)}; run train again (--overwrite)")


def majority_label(manifest: dict[str, Any]) -> int:
    """Index of the label most frequent in the training texts, the lowest of equals."""
    counts = manifest["splits"]["train"]["per_label"]
    return int(np.argmax([counts[name] for name in manifest["labels"]]))


def summary_line(split: str, found: dict[str, Any]) -> str:
    """A split's main metrics beside the majority baseline, for people."""
    baseline = found["majority"]
    shown = ", ".join(
        f"{key} {found[key]:.4f} (majority {baseline[key]:.4f})" for key in ("accuracy", "macro_f1", "mcc")
    )
    return f"{split}: {shown}, {found['n']} texts"


def _is_current(run_dir: RunDir, manifest: dict[str, Any], wanted: dict[str, str]) -> bool:
    if not run_dir.evaluation_fingerprint_file.is_file():
        return False
    artefact = evaluation_artefact(run_dir)
    found = artefact.found(lambda: evaluated_from(run_dir, manifest))
    return found is not None and artefact.is_current(found, wanted)


def _keep_temperature(run_dir: RunDir, metrics: dict[str, Any]) -> None:
    if calibrated := metrics.get("validation", {}).get("calibrated"):
        calibration = Calibration(temperature=calibrated["temperature"], texts=metrics["validation"]["n"])
        keep_calibration(run_dir.adapter, calibration)


def _prediction_table(split: str, folder: Path, names: list[str], scores: NDArray, truth: NDArray) -> pa.Table:
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
    """Brings the metrics into the model card, then replaces evaluation/ whole or not at all."""
    write_card(run_dir.adapter, adapter, metrics)  # first: what stops in between is made again
    with atomic_dir(run_dir.evaluation, sums=True) as folder:
        write_json(folder / run_dir.metrics_file.name, metrics)
        pq.write_table(pa.concat_tables(tables), folder / run_dir.predictions_file.name)
        write_json(folder / run_dir.evaluation_fingerprint_file.name, fingerprint)
