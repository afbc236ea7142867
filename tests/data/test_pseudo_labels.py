"""The second stream: what its texts count, how often an epoch reads each, and the file that keeps pseudo labels.

covers data/pseudo_labels
"""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.pseudo_labels import PseudoLabels, Targets, read_pseudo_labels, write_pseudo_labels

PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]], dtype=np.float32)


def targets(unlabelled: int, labelled: int = 2) -> Targets:
    shares = np.concatenate([np.eye(3)[:labelled], np.resize(PROBABILITIES, (unlabelled, 3))]).astype(np.float32)
    weights = np.concatenate([np.ones(labelled), np.linspace(0.5, 1.5, unlabelled)]).astype(np.float32)
    return Targets(shares, weights, labelled)


def test_labels_and_weights_are_those_of_the_teacher() -> None:
    soft = PseudoLabels(PROBABILITIES, "soft", "confidence")
    assert soft.shares is PROBABILITIES
    assert soft.weights == pytest.approx(np.array([0.5, 0.8, 0.7]) * 3 / 2)
    hard = PseudoLabels(PROBABILITIES, "hard", "equal")
    assert hard.shares.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]] and hard.weights.tolist() == [1, 1, 1]
    assert len({one.digest() for one in (soft, hard, PseudoLabels(PROBABILITIES, "soft", "equal"))}) == 3


@pytest.mark.parametrize(("unlabelled", "repeats"), [(1, 1), (2, 1), (9, 4), (40, 20)])
def test_labelled_texts_are_read_as_often_as_the_others(unlabelled: int, repeats: int) -> None:
    found = targets(unlabelled)
    rows = found.epoch_rows
    counts = np.bincount(rows)
    assert counts.tolist() == [repeats] * 2 + [1] * unlabelled
    in_a_fit = found.fitted_weights
    assert in_a_fit[:2].tolist() == [1, 1]
    assert in_a_fit[2:] * repeats == pytest.approx(found.weights[2:])


def test_candidates_share_the_weight_of_a_text() -> None:
    found = targets(3)
    rows, candidates = np.array([0, 3, 4]), np.array([[0, 2], [1, 2], [0, 1]])
    expected = [[1.0, 0.0], [0.1 / 0.9, 0.8 / 0.9], [1.5 * 0.2 / 0.9, 1.5 * 0.7 / 0.9]]
    assert found.among(rows, candidates) == pytest.approx(np.array(expected), rel=1e-6)


def test_what_is_kept_is_read_again_and_nothing_else(tmp_path: Path) -> None:
    file, made_from = tmp_path / "labels.safetensors", {"teacher": "a", "texts": "b"}
    assert read_pseudo_labels(file, made_from) is None
    write_pseudo_labels(file, PROBABILITIES, made_from)
    np.testing.assert_array_equal(read_pseudo_labels(file, made_from), PROBABILITIES)
    assert read_pseudo_labels(file, {**made_from, "teacher": "c"}) is None
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert read_pseudo_labels(file, made_from) is None
    file.write_bytes(content[:20])
    assert read_pseudo_labels(file, made_from) is None
