"""Heads of label tuning: scores by the paper's definition, and by ours."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.methods.heads import build_head
from tests.methods.test_label_tuning import FACTS, MASK, K, states


def test_linear_head_is_the_difference_of_two_logits() -> None:
    """So that binary cross-entropy on it is softmax cross-entropy on the logits."""
    torch.manual_seed(0)
    head = build_head("linear", replace(FACTS, hidden_size=5), 2).double()
    pooled = torch.randn(7, 5, dtype=torch.float64)
    scores = head(pooled, torch.empty(7, 0, 5), torch.empty(7, 0))
    logits = pooled @ head.logits.weight.T
    torch.testing.assert_close(scores, logits[:, 0] - logits[:, 1])
    targets = torch.tensor([1.0, 0, 1, 1, 0, 0, 1], dtype=torch.float64)
    binary = nn.functional.binary_cross_entropy_with_logits(scores, targets)
    torch.testing.assert_close(binary, nn.functional.cross_entropy(logits, 1 - targets.long()))


def test_label_aware_head_by_definition() -> None:
    head = build_head("label_aware", FACTS, K).double()
    pooled = torch.randn(K, FACTS.hidden_size, dtype=torch.float64)
    label = torch.stack([states()[k, : int(MASK[k].sum())].mean(0) for k in range(K)])

    def by_hand() -> Tensor:
        mapped = label @ head.similarity.label_map.weight.T
        cosine = (pooled * mapped).sum(1) / (pooled.norm(dim=1) * mapped.norm(dim=1))
        return pooled @ (head.logits.weight[0] - head.logits.weight[1]) + head.similarity.log_scale.exp() * cosine

    # It starts as the scaled cosine of the untouched states: the zero-shot classifier.
    start = 10 * nn.functional.cosine_similarity(pooled, label)
    torch.testing.assert_close(head(pooled, states(), MASK).double(), start, rtol=1e-5, atol=1e-5)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(head(pooled, states(), MASK).double(), by_hand(), rtol=1e-5, atol=1e-5)
