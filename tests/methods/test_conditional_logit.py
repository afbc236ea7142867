"""The judge of label tuning: its fit against the plain objective, its scores by definition.

covers methods/conditional_logit, methods/heads, methods/label_tuning
"""

import pytest
import torch
from torch import Tensor, nn

from pipeline.methods.conditional_logit import CentredTexts, JudgedTexts, JudgeFit, choose_judge, fit_judge
from pipeline.methods.heads import FittedHead, FittedJudge
from pipeline.methods.label_tuning import JudgedLabelTuning
from pipeline.methods.logistic import Fit
from tests.methods.test_label_tuning import FACTS, MASK, K, method_of, states
from tests.methods.test_shortlist import TEXTS, TinyReader, read

H, N, C = FACTS.hidden_size, 60, 2
TRUE = torch.arange(N) % K


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def judged(strength: float, seed: int = 0) -> JudgedTexts:
    """Texts, each read with its label and one other, the true one `strength` farther along one direction."""
    wrong = (TRUE + 1 + torch.arange(N) % (K - 1)) % K
    candidates = torch.stack([TRUE, wrong], dim=1).sort(dim=1).values
    wordings = 5 * torch.randn(K, H, dtype=torch.float64, generator=drawn(1))
    noise = torch.randn(N, C, H, dtype=torch.float64, generator=drawn(2 + seed))
    found = wordings[candidates] + noise
    found[..., 3] += strength * (candidates == TRUE.unsqueeze(1))
    return JudgedTexts(found, candidates, TRUE)


def fitted(texts: JudgedTexts, label_count: int = K, c: float = 0.1) -> JudgeFit:
    return fit_judge(CentredTexts.of(texts, label_count), c)


def test_the_fit_is_the_minimum_of_the_plain_objective() -> None:
    texts, c = judged(1.0), 0.1
    fit = fitted(texts, c=c)
    means = torch.stack([texts.states[texts.candidates == label].mean(dim=0) for label in range(K)])
    spread = (texts.states - means[texts.candidates]).flatten(0, 1).std(dim=0, correction=0)
    direction = (fit.weight * spread).requires_grad_()
    bias = (fit.bias + means @ fit.weight).requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for text, (states_, candidates) in enumerate(zip(texts.states, texts.candidates, strict=True)):
        scores = ((states_ - means[candidates]) / spread) @ direction + bias[candidates]
        loss = loss - scores.log_softmax(0)[candidates.tolist().index(int(TRUE[text]))] / N
    loss = loss + (direction.square().sum() + bias.square().sum()) / (2 * c * N)
    loss.backward()
    for slope in (direction.grad, bias.grad):
        assert slope is not None and slope.abs().max() < 2e-4
    assert direction.abs().argmax() == 3 and direction[3] > 0


def test_a_unit_that_never_changes_is_no_matter() -> None:
    texts = judged(1.0)
    still = JudgedTexts(torch.cat([texts.states, torch.full((N, C, 1), 7.0)], dim=2), texts.candidates, TRUE)
    torch.testing.assert_close(fitted(still).scores(still), fitted(texts).scores(texts))


def test_a_label_that_no_text_was_read_with_has_a_bias_like_the_others() -> None:
    fit, known = (fitted(judged(1.0), count) for count in (K + 1, K))
    torch.testing.assert_close(fit.weight, known.weight)
    torch.testing.assert_close(fit.bias[:K], known.bias)
    assert fit.bias[K].isfinite() and fit.bias[:K].min() - 1 < fit.bias[K] < fit.bias[:K].max() + 1


@pytest.mark.parametrize("strength", [3.0, 0.0])
def test_tuning_begins_with_a_judge_that_is_better_on_validation(strength: float) -> None:
    """Beside a probe that is right in two of three texts."""
    alone = nn.functional.one_hot(torch.where(TRUE == 2, 0, TRUE), K).double()
    alone += 0.01 * torch.randn(N, K, dtype=torch.float64, generator=drawn(9))
    validation = judged(strength, seed=1)
    if strength == 0.0:  # what has no use on validation: the truth is another
        validation = JudgedTexts(-judged(3.0, seed=1).states, validation.candidates, TRUE)
    found = choose_judge(judged(3.0), K, validation, alone)
    assert found.is_better == (strength > 0)
    accuracy = (found.beside(alone, validation).argmax(1) == TRUE).double().mean()
    assert (accuracy > 0.8) == found.is_better


def test_without_validation_the_penalty_is_chosen_by_what_is_left_out() -> None:
    found = choose_judge(judged(3.0), K, None, None)
    assert found.is_better
    others = judged(3.0, seed=5)
    assert (found.scores(others).argmax(1) == others.places).double().mean() > 0.9
    one = JudgedTexts(*(part[:1] for part in (others.states, others.candidates, others.labels)))
    assert choose_judge(one, K, None, None).weight.isfinite().all()


FIT = JudgeFit(
    torch.randn(H, dtype=torch.float64, generator=drawn(3)), torch.randn(K, dtype=torch.float64, generator=drawn(4))
)


def judge_of(fit: JudgeFit) -> FittedJudge:
    judge = FittedJudge(H, K)
    judge.load_state_dict(FittedJudge.state_of(fit, states(), MASK, torch.arange(K)))
    return judge


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_judge_is_its_fit_in_any_dtype(dtype: torch.dtype) -> None:
    """A label that was not in training makes up for its wording as the others do on average."""
    pooled, rows = torch.randn(5, 2, H, dtype=torch.float64, generator=drawn(6)), torch.tensor([[0, 2]] * 5)
    own = torch.stack([states()[k, MASK[k]].mean(dim=0) for k in range(K)])
    unseen = (FIT.bias + own @ FIT.weight).mean() - own[2] @ FIT.weight
    expected = pooled @ FIT.weight + torch.stack([FIT.bias[1], unseen])
    judge = judge_of(FIT).to(dtype)
    assert not list(judge.parameters())
    torch.testing.assert_close(judge(pooled, rows, states(), MASK, torch.tensor([1, 0, -1])), expected)


def tuning(shortlist: int | None) -> JudgedLabelTuning:
    method = method_of(name="lt_prompt", judge="fitted", shortlist=shortlist)
    assert isinstance(method, JudgedLabelTuning)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    weight = torch.randn(K, H, dtype=torch.float64, generator=drawn(7))
    method.head.load_state_dict(FittedHead.state_of(Fit(weight, torch.zeros(K).double(), 0.7)))
    method.judge.load_state_dict(judge_of(FIT).state_dict())
    return method


def alone_by_definition(method: JudgedLabelTuning, trained: Tensor | None) -> Tensor:
    scores = method.head(TEXTS.tanh(), states(), MASK, trained)
    assert isinstance(scores, Tensor)
    return scores.float()


@pytest.mark.parametrize("trained", [None, [1, -1, 0]])
@pytest.mark.parametrize("shortlist", [None, 2])
def test_scores_by_definition(shortlist: int | None, trained: list[int] | None) -> None:
    method, candidates = tuning(shortlist), torch.tensor([[2, 0, 1], [1, 2, 0]])
    index = None if trained is None else torch.tensor(trained)
    method = method if index is None else method.among(index)
    alone = alone_by_definition(method, index)
    torch.testing.assert_close(
        method.scores(TinyReader(alone_only=True), candidates, states(), MASK), alone.gather(1, candidates)
    )
    method.begin_tuning()
    found = method.scores(read, candidates, states(), MASK)
    of = torch.arange(K) if index is None else index
    for text, row in enumerate(candidates.tolist()):
        nearest = sorted(row, key=lambda k: -alone[text, k].item())[: shortlist or K]
        means = {}
        for label in nearest:
            part = slice(label, label + 1)
            pooled = read(method.inject(states()[part], MASK[part]).expand(2), 1)[text]
            judged_ = method.judge(pooled.view(1, 1, H), torch.zeros(1, 1).long(), states()[part], MASK[part], of[part])
            means[label] = (float(alone[text, label]) + judged_.item()) / 2
        shift = 0.0
        if len(nearest) < K:
            before = torch.stack([alone[text, label] for label in nearest]).logsumexp(0)
            shift = float(before) - float(torch.tensor(list(means.values())).logsumexp(0))
        expected = [means[label] + shift if label in means else float(alone[text, label]) for label in row]
        torch.testing.assert_close(found[text], torch.tensor(expected))


def test_labels_that_are_read_keep_their_share() -> None:
    method, candidates = tuning(2), torch.arange(K).expand(2, -1)
    alone = alone_by_definition(method, None).softmax(1)
    method.begin_tuning()
    found = method.scores(read, candidates, states(), MASK).softmax(1)
    unread = alone.argmin(1, keepdim=True)
    torch.testing.assert_close(found.gather(1, unread), alone.gather(1, unread))
    assert not torch.allclose(found, alone)
