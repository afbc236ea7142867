"""Reads a run directory into what the report's template shows."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.adapter.directory import Adapter, load_adapter
from pipeline.adapter.label_states import LabelStates
from pipeline.backbone.facts import facts_of
from pipeline.backbone.model_config import load_model_config
from pipeline.backbone.pooling import pool
from pipeline.config import RunConfig, load_config
from pipeline.core.checksums import check_sums
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, read_json_lines
from pipeline.core.run_dir import RunDir
from pipeline.data.config import SPLITS
from pipeline.data.sources import texts_of_rows
from pipeline.engine.provenance import (
    REWORDINGS_PART,
    evaluated_from,
    evaluation_artefact,
    evaluation_fingerprint,
    texts_have_changed,
)
from pipeline.methods import AnyMethodConfig
from pipeline.methods.heads import LabelAwareHead
from pipeline.methods.label_tuning import LabelTuning
from pipeline.methods.model import parameter_count
from pipeline.reports import run_metrics
from pipeline.reports.run_metrics import Rows, ScoredSplit
from pipeline.training.provenance import training_changes, training_fingerprint


@dataclass(frozen=True)
class Run:
    """One finished run."""

    config: RunConfig
    adapter: Adapter
    manifest: dict[str, Any]
    metrics: dict[str, Any]
    """Metrics of the shown split."""
    split: ScoredSplit
    """The test split, or what was evaluated last."""
    log: Rows

    @property
    def temperature(self) -> float | None:
        calibrated = self.metrics.get("calibrated")
        return None if calibrated is None else float(calibrated["temperature"])

    @property
    def training(self) -> Rows:
        return [line for line in self.log if "loss" in line]

    @property
    def validation(self) -> Rows:
        """Metrics of the validation split by step, without the prefix of their names."""
        lines = [line for line in self.log if "validation/accuracy" in line]
        return [{name.removeprefix("validation/"): value for name, value in line.items()} for line in lines]


def load_run(path: Path, trust_remote_code: bool = False) -> Run:
    """Raises UserError where the run is not evaluated yet, or its parts are damaged or do not belong together."""
    run_dir = RunDir(path)
    if not run_dir.config_file.is_file():
        raise UserError(f"'{path}' is not a run directory (config.yaml is missing)")
    config = load_config(run_dir.config_file, [f"run.dir={json.dumps(str(path))}"])
    check_sums(run_dir.adapter)
    check_sums(run_dir.evaluation)
    adapter, manifest = load_adapter(run_dir.adapter), read_json(run_dir.manifest_file)
    metrics = read_json(run_dir.metrics_file)
    try:
        _check_evaluation(run_dir, manifest)
        sections = (config.method, config.train, config.backbone, config.run.seed)
        trained = training_fingerprint(*sections, manifest, adapter.labels)
        _check_training(run_dir, config.method, trained)
        splits = [name for name in metrics if name in SPLITS]
        name = "test" if "test" in splits else splits[-1]
        log = read_json_lines(run_dir.metrics_log)
        scored = _scored(run_dir, name, metrics[name]["labels"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, pa.ArrowException) as error:
        raise UserError(f"'{run_dir.evaluation}' cannot be read ({error!r}): run evaluate again") from error
    return Run(config.trusted(trust_remote_code), adapter, manifest, metrics[name], scored, log)


def _check_evaluation(run_dir: RunDir, manifest: dict[str, Any]) -> None:
    """Raises UserError where evaluation/ is not of the adapter/ and data/ that are there."""
    made_from = evaluated_from(run_dir, manifest)
    given = made_from["evaluate.splits"].split(", "), made_from.get(REWORDINGS_PART)
    wanted = evaluation_fingerprint(run_dir, manifest, *given)
    evaluation_artefact(run_dir).check(made_from, wanted)


def _check_training(run_dir: RunDir, method: AnyMethodConfig, wanted: dict[str, str]) -> None:
    if changed := training_changes(run_dir, method, wanted):
        raise UserError(
            f"'{run_dir.config_file}' is not what the adapter was trained with: {'; '.join(changed)}; run train again"
        )


def _scored(run_dir: RunDir, name: str, labels: list[str]) -> ScoredSplit:
    table = pq.read_table(run_dir.predictions_file)
    table = table.filter(pc.equal(table["split"], name))
    scores = np.stack([table[f"score/{label}"].to_numpy() for label in labels], axis=1)
    index = {label: number for number, label in enumerate(labels)}
    truth = np.array([index[label] for label in table["label"].to_pylist()])
    return ScoredSplit(name, labels, scores, truth, table["row"].to_numpy())


def finding(run: Run, worst: Rows) -> str:
    """What the run came to, in one sentence; `worst`: the most frequent confusion, if there is one."""
    metrics, majority = run.metrics, run.metrics["majority"]
    names = {"test": "test texts", "validation": "validation texts", "train": "training texts"}
    right = (
        f"{metrics['accuracy']:.1%} of the {metrics['n']:,} {names.get(run.split.name, 'texts')} are labelled rightly"
    )
    beside = f"to answer “{majority['label']}” always would be right for {majority['accuracy']:.1%}"
    ends = [
        f"; most often “{row['true']}” is taken for “{row['predicted']}” ({row['count']} of {row['of']} texts)"
        for row in worst
    ]
    return f"{right}; {beside}{''.join(ends)}."


def mistakes(run: Run, *, texts: bool) -> tuple[Rows, str]:
    """The most confident mistakes with their texts; and why there are none, where they are not wanted or gone."""
    rows = run_metrics.confident_mistakes(run.split, run.temperature or 1.0)
    numbers = {row["row"] for row in rows}
    found, why_not = _texts(run, numbers) if texts else ({}, "The page was made without the texts.")
    return [row | {"texts": found.get(row["row"], [])} for row in rows], why_not


def _texts(run: Run, numbers: set[int]) -> tuple[dict[int, list[str]], str]:
    """The text, or the two, of rows of the shown split's source; or why there are none."""
    data = run.config.data
    origin = data.origin(run.split.name)
    source = getattr(data, origin)
    try:
        if texts_have_changed(data, run.split.name, run.manifest):
            # Row numbers would lead to other texts.
            return {}, f"{source} has changed since preprocess read the texts."
        return texts_of_rows(source, origin, data, numbers), ""
    except (UserError, OSError) as error:
        return {}, f"the texts cannot be read any more: {error}"


def label_points(run: Run) -> tuple[Rows, str]:
    """Labels in two dimensions before and after tuning, and what "after" is; or no points, and why not."""
    labels = run.adapter.labels
    try:
        backbone = run.adapter.config.backbone.trusted(run.config.backbone.trust_remote_code)
        facts = facts_of(load_model_config(backbone), backbone)
    except UserError:
        return [], "The backbone is not where it was in training, so the tuned labels cannot be computed."
    method = run.adapter.build_method(facts).float()
    if not isinstance(method, LabelTuning) or len(run.split.labels) < 3:
        return [], "Shown for label tuning with three labels or more."
    before = pool(labels.states.float(), labels.mask, "mean")
    with torch.no_grad():
        after, what = _tuned(method, labels, before)
    if labels.mean is not None:  # of a label's hypotheses
        before, after = (labels.mean.of_all(vectors.T).T for vectors in (before, after))
    return run_metrics.label_map(run.split.labels, _array(before), _array(after)), what


def _tuned(method: LabelTuning, labels: LabelStates, before: Tensor) -> tuple[Tensor, str]:
    """Mean states [K, H] -> one vector per label [K, H'], and in words what it is."""
    if isinstance(method.head, LabelAwareHead):
        return method.head.similarity.label_map(before), "what the head compares texts with"
    start = None if labels.start is None else labels.start.float()
    injection = method.inject(labels.states.float(), labels.mask.bool(), start)
    if injection.prompt is not None:
        return pool(injection.prompt, injection.mask, "mean"), "the mean of the label's prompt"
    assert injection.prefix is not None
    return injection.prefix.flatten(1), "all keys and values of the label's prefix"


def _array(tensor: Tensor) -> NDArray:
    array: NDArray = tensor.numpy()
    return array


def cost(run: Run, run_dir: RunDir) -> list[tuple[str, str]]:
    """What the run took."""
    parameters = parameter_count(run.adapter.method_state)
    size = sum(file.stat().st_size for file in run_dir.adapter.iterdir())
    trained = f"{parameters:,}" if parameters else "none"
    rows = [("trained or fitted parameters", trained), ("adapter on disk", f"{size / 1e6:.2f} MB")]
    if run.training:
        rows.append(("steps", f"{run.log[-1]['step']:,}"))
        seconds = sum(line.get("seconds", 0.0) for line in run.training)
        if seconds:
            rows.append(("training time", _duration(seconds)))
        speeds = [line["examples_per_second"] for line in run.training]
        rows.append(("texts per second, median", f"{np.median(speeds):.1f}"))
    if run_dir.cost_file.is_file():
        rows += _peak(run_dir.cost_file)
    return rows


def _peak(file: Path) -> list[tuple[str, str]]:
    try:
        peak = read_json(file)
        memory = (f"peak {peak['memory']} memory of rank 0", f"{peak['peak_memory_bytes'] / 2**30:.2f} GiB")
        return [memory, ("ranks", str(peak["ranks"]))]
    except (LookupError, TypeError, UserError) as error:
        raise UserError(f"'{file}' is damaged ({error!r}): remove it, to go on without what it says") from error


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
