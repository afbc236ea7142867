"""A plain baseline for any run: logistic regression on the frozen backbone's pooled states of the same texts.

    python benchmarks/linear_probe.py --run runs/sst2_lt_prefix

Reads the run's config and tokenized splits; the regularization is chosen on validation, the metrics are of test.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, matthews_corrcoef

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.pooling import pool, resolve_pooling
from pipeline.config import RunConfig, load_config
from pipeline.data.splits import Split, load_split
from pipeline.distributed.ranks import Ranks

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Inverse regularization strengths that validation chooses from."""


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run directory with data/train, data/validation and data/test")
    run = Path(parser.parse_args().run)
    config = load_config(run / "config.yaml")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_backbone(config.backbone, zero_config=None, device=device, ranks=Ranks.alone())
    backbone = FrozenBackbone(model, facts_of(model.config)).eval()
    splits = {name: load_split(run / "data" / name) for name in ("train", "validation", "test")}
    states = {name: pooled_states(backbone, config, split, device) for name, split in splits.items()}
    print(json.dumps(probe(states, {name: split.labels for name, split in splits.items()})))


def pooled_states(
    backbone: FrozenBackbone, config: RunConfig, split: Split, device: torch.device, rows: int = 64
) -> NDArray[np.float32]:
    """[N, H], in the split's order."""
    how = resolve_pooling(config.backbone.pooling, backbone.facts)
    found = np.empty((len(split), backbone.facts.hidden_size), dtype=np.float32)
    order = np.argsort(split.lengths)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        inputs = {name: value.to(device) for name, value in split.batch(chosen, 0).items()}
        with torch.no_grad():
            hidden = backbone(**inputs)
        found[chosen] = pool(hidden, inputs["attention_mask"], how).float().cpu().numpy()
    return found


def probe(states: dict[str, NDArray[np.float32]], labels: dict[str, NDArray[np.int64]]) -> dict[str, float]:
    """Test metrics of the regression that did best on validation."""
    fitted = [
        LogisticRegression(C=strength, max_iter=5000).fit(states["train"], labels["train"]) for strength in STRENGTHS
    ]
    best = max(fitted, key=lambda model: accuracy_score(labels["validation"], model.predict(states["validation"])))
    answer = best.predict(states["test"])
    return {
        "accuracy": float(accuracy_score(labels["test"], answer)),
        "mcc": float(matthews_corrcoef(labels["test"], answer)),
        "strength": best.C,
        "n": len(answer),
    }


if __name__ == "__main__":
    main()
