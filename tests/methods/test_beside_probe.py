"""Label tuning that is trained by itself beside the probe: what it is before, in and after the steps.

covers methods/label_tuning
"""

import pytest
import torch
from torch import Tensor, nn

from pipeline.methods.heads import FittedHead
from pipeline.methods.label_tuning import LabelTuning, LabelTuningBesideProbe
from tests.methods.test_fitted import some_fit
from tests.methods.test_label_tuning import FACTS, LABEL_TUNING, MASK, K, P, config_of, method_of, states
from tests.methods.test_shortlist import TEXTS, TinyReader, read

CANDIDATES = torch.tensor([[2, 0, 1], [1, 2, 0]])


def beside(name: str, shortlist: int | None) -> LabelTuningBesideProbe:
    """With random parameters, all of which matter."""
    method = method_of(name=name, judge="label_aware", shortlist=shortlist)
    assert isinstance(method, LabelTuningBesideProbe)
    torch.manual_seed(2)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    method.probe.load_state_dict(FittedHead.state_of(some_fit(0.7)))
    return method


def by_itself(method: LabelTuningBesideProbe, shortlist: int | None) -> LabelTuning:
    """Label tuning with the same producer and head, and no probe."""
    other = method_of(name=f"lt_{method.form.kind}", head="label_aware", shortlist=shortlist)
    state = {name: value for name, value in method.state_dict().items() if name.split(".")[0] in ("producer", "head")}
    other.load_state_dict(state)
    return other


def probe_scores(method: LabelTuningBesideProbe, trained: Tensor | None = None) -> Tensor:
    return method.probe(TEXTS.tanh(), states(), MASK, trained).float().gather(1, CANDIDATES)


@pytest.mark.parametrize("name", LABEL_TUNING)
@pytest.mark.parametrize("shortlist", [None, 2])
def test_it_begins_as_the_probe_and_ends_as_the_mean_of_both(name: str, shortlist: int | None) -> None:
    method = beside(name, shortlist)
    found = method.scores(TinyReader(alone_only=True), CANDIDATES, states(), MASK)
    torch.testing.assert_close(found, probe_scores(method))
    method.begin_tuning()
    own = by_itself(method, shortlist).scores(read, CANDIDATES, states(), MASK)
    found = method.scores(read, CANDIDATES, states(), MASK)
    torch.testing.assert_close(found, (probe_scores(method) + own) / 2)


@pytest.mark.parametrize("name", LABEL_TUNING)
def test_its_size_by_formula(name: str) -> None:
    count = sum(parameter.numel() for parameter in beside(name, None).parameters())
    assert config_of(name=name, judge="label_aware", start="random").trainable_count(FACTS, P, K) == count


def test_steps_see_what_they_train_alone() -> None:
    method = beside("lt_prefix", None)
    own = by_itself(method, None).scores(read, CANDIDATES, states(), MASK)
    method.train()
    torch.testing.assert_close(method.scores(read, CANDIDATES, states(), MASK), own)
    assert {name.partition(".")[0] for name, _ in method.named_parameters()} == {"producer", "head"}


def test_a_label_that_was_not_in_training_has_the_prior_in_the_probes_place() -> None:
    method, trained = beside("lt_prompt", None), torch.tensor([1, -1, 0])
    method.begin_tuning()
    own = by_itself(method, None).scores(read, CANDIDATES, states(), MASK)
    found = method.among(trained).scores(read, CANDIDATES, states(), MASK)
    torch.testing.assert_close(found, (probe_scores(method, trained) + own) / 2)
