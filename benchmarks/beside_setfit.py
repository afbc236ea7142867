"""Is a run's adapter better than SetFit, trained on the same texts?

    pip install setfit==1.2.0
    python benchmarks/beside_setfit.py runs/csv
    python benchmarks/beside_setfit.py runs/draw_5 runs/draw_6 --json

SetFit (Tunstall et al., arXiv 2209.11055) trains the whole sentence encoder on pairs of training texts, which have
equal labels or not, and fits a logistic regression to what it then makes of the texts. It starts from the run's own
backbone, a folder of sentence-transformers, and has the run's texts, cut at `data.max_length`. Per run:

setfit, run      accuracy on the test split, of SetFit and of the run's adapter
seconds          processor time of SetFit's training

and at last, if the runs have the same test texts, the mean difference, run less SetFit, with its 95 % interval over
texts and runs. `--iterations`: pairs of each kind per training text; 20 is the paper's.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from datasets import load_from_disk
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.comparison.statistics import compare_predictions
from pipeline.config import RunConfig, load_config
from pipeline.core.files import read_json


@dataclass(frozen=True)
class Case:
    """The texts of a run, their labels as indices, and what its adapter answered to the test texts."""

    config: RunConfig
    labels: list[str]
    train_texts: list[str]
    train_labels: list[int]
    test_texts: list[str]
    truth: NDArray[np.int64]
    answers: NDArray[np.int64]


def case_of(run: Path) -> Case:
    config = load_config(run / "config.yaml")
    place = config.run_dir
    manifest = read_json(place.manifest_file)
    if manifest["has_pair"]:
        sys.exit(f"{run}: SetFit reads single texts, not pairs")
    labels = manifest["labels"]
    train, test = (load_from_disk(str(place.data / name)) for name in ("train", "test"))
    table = parquet.read_table(place.predictions_file, filters=[("split", "=", "test")])
    answers = np.array([labels.index(label) for label in table["prediction"].to_pylist()])
    return Case(
        config, labels, list(train["text"]), list(train["label"]), list(test["text"]), np.array(test["label"]), answers
    )


def main() -> None:
    options = _options()
    cases = [case_of(run) for run in options.runs]
    found = []
    for run, case in zip(options.runs, cases, strict=True):
        started = time.process_time()
        found.append(setfit_answers(case, options.iterations))
        row = {
            "run_dir": str(run),
            "setfit": round(float((found[-1] == case.truth).mean()), 3),
            "run": round(float((case.answers == case.truth).mean()), 3),
            "seconds": round(time.process_time() - started),
        }
        show(row, as_json=options.json)
    if all(case.test_texts == cases[0].test_texts for case in cases):
        show(difference(cases, found), as_json=options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directories of evaluated runs")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one object a line")
    return parser.parse_args()


def show(row: dict[str, Any], *, as_json: bool) -> None:
    print(json.dumps(row) if as_json else "  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def difference(cases: list[Case], found: list[NDArray[np.int64]]) -> dict[str, Any]:
    answers = [case.answers for case in cases]
    measured = compare_predictions(cases[0].truth, answers, found, len(cases[0].labels), "accuracy", same_seeds=True)
    return {"difference": round(measured.mean, 3), "low": round(measured.low, 3), "high": round(measured.high, 3)}


def setfit_answers(case: Case, iterations: int) -> NDArray[np.int64]:
    """SetFit's labels [N] of the test texts, as indices."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(case.config.backbone.location)
    model.model_body.max_seq_length = case.config.data.max_length
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # its losses are no rows
        settings = TrainingArguments(
            folder, num_iterations=iterations, seed=case.config.run.seed, report_to="none", save_strategy="no"
        )
        texts = Dataset.from_dict({"text": case.train_texts, "label": case.train_labels})
        Trainer(model=model, args=settings, train_dataset=texts).train()
    return np.asarray(model.predict(case.test_texts))


if __name__ == "__main__":
    main()
