"""Texts without labels as a second stream of training: what a teacher says of them takes the place of their labels.

The loss is the mean over texts of w_i * loss_i, where loss_i is the cross-entropy with a text's label or its pseudo
label. Labelled texts are read as often as unlabelled ones, however few they are.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.core.files import atomic_file
from pipeline.data.batches import Ints
from pipeline.data.splits import Split

TENSOR = "probabilities"


@dataclass(frozen=True)
class PseudoLabels:
    """What a teacher says of N unlabelled texts, and how it is taken."""

    probabilities: NDArray[np.float32]
    """[N, K] of the labels, by the teacher"""
    kind: Literal["hard", "soft"]
    """The likeliest label, or all of them with their probabilities."""
    weighting: Literal["confidence", "equal"]

    @property
    def shares(self) -> NDArray[np.float32]:
        """[N, K] what is learnt of each text"""
        if self.kind == "soft":
            return self.probabilities
        return np.eye(self.probabilities.shape[1], dtype=np.float32)[self.likeliest]

    @property
    def likeliest(self) -> NDArray[np.int64]:
        """[N] the label that the teacher would give"""
        return self.probabilities.argmax(axis=1)

    @property
    def weights(self) -> NDArray[np.float32]:
        """[N], of mean 1: all alike, or in proportion to the probability of the likeliest label."""
        if self.weighting == "equal":
            return np.ones(len(self.probabilities), dtype=np.float32)
        confidence = self.probabilities.max(axis=1)
        return (confidence / confidence.mean(dtype=np.float64)).astype(np.float32)

    def digest(self) -> str:
        """Hash of all that is learnt from them."""
        return f"{self.kind}, {self.weighting}, {_digest(self.probabilities)}"


@dataclass(frozen=True)
class Targets:
    """What the texts of a joined split are to be scored as: those with labels come first."""

    shares: NDArray[np.float32]
    """[rows, K] of each text among its labels: 1 for the label of a labelled text"""
    weights: NDArray[np.float32]
    """[rows]"""
    labelled: int
    """The first so many rows have labels."""

    @property
    def repeats(self) -> int:
        """How often an epoch reads each labelled text, so that it has as many of them as of the others."""
        return max(1, round((len(self.weights) - self.labelled) / self.labelled))

    @property
    def epoch_rows(self) -> Ints:
        """The rows that an epoch reads, in order."""
        return np.concatenate([np.tile(np.arange(self.labelled), self.repeats), self.unlabelled_rows])

    @property
    def unlabelled_rows(self) -> Ints:
        return np.arange(self.labelled, len(self.weights))

    @property
    def fitted_weights(self) -> NDArray[np.float32]:
        """[rows] what each text counts, against a labelled one, in a fit that sees every text once."""
        weights = self.weights.copy()
        weights[self.labelled :] /= self.repeats
        return weights

    def among(self, rows: Ints, candidates: Ints) -> NDArray[np.float32]:
        """The weighted target of each of a text's candidates: rows [B], candidates [B, C] -> [B, C], of sum w_i.

        The likeliest label of each text has to be among its candidates.
        """
        found = np.take_along_axis(self.shares[rows], candidates, axis=1)
        weighted: NDArray[np.float32] = found / found.sum(axis=1, keepdims=True) * self.weights[rows, None]
        return weighted


def joined(train: Split, unlabelled: Split, pseudo: PseudoLabels) -> Split:
    """The training texts, and behind them the others with their pseudo labels, as one split."""
    from datasets import concatenate_datasets  # slow to import

    own = np.eye(pseudo.probabilities.shape[1], dtype=np.float32)[train.labels]
    weights = np.concatenate([np.ones(len(train), dtype=np.float32), pseudo.weights])
    states, tokens = train.states, train.token_states
    return replace(
        train,
        rows=concatenate_datasets([train.rows, unlabelled.rows]),
        lengths=np.concatenate([train.lengths, unlabelled.lengths]),
        labels=np.concatenate([train.labels, pseudo.likeliest]),
        states=states and unlabelled.states and states + unlabelled.states,
        token_states=tokens and unlabelled.token_states and tokens + unlabelled.token_states,
        targets=Targets(np.concatenate([own, pseudo.shares]), weights, len(train)),
    )


def write_pseudo_labels(file: Path, probabilities: NDArray[np.float32], made_from: dict[str, str]) -> None:
    """Writes probabilities [N, K], and what they were made from, whole or not at all."""
    tensors = {TENSOR: np.ascontiguousarray(probabilities)}
    with atomic_file(file) as temporary:
        temporary.write_bytes(save(tensors, metadata={**made_from, "sha256": _digest(probabilities)}))


def read_pseudo_labels(file: Path, made_from: dict[str, str]) -> NDArray[np.float32] | None:
    """Probabilities [N, K]; None where there are none, or they are damaged or were made from something else."""
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata, found = opened.metadata(), opened.get_tensor(TENSOR)
    except (OSError, SafetensorError):
        return None
    return found if metadata == {**made_from, "sha256": _digest(found)} else None


def _digest(probabilities: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(probabilities).tobytes()).hexdigest()
