"""Other hypotheses for the labels of a trained adapter: does its accuracy depend on how they are worded?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.adapter.directory import Adapter
from pipeline.adapter.label_states import LabelStates, read_hypotheses
from pipeline.backbone.as_injection import AsInjection
from pipeline.core.errors import UserError
from pipeline.data.config import LabelsConfig, OneOrSeveral, check_texts
from pipeline.data.hypotheses import Hypotheses, hypotheses
from pipeline.data.labels import label_name
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone
from pipeline.engine.models import load_frozen, prepare_inference, release
from pipeline.evaluation.config import Rewording
from pipeline.methods.hypothesis_mean import HypothesisMean, labels_of
from pipeline.methods.model import LTuningModel, StateModel


@dataclass(frozen=True)
class Reworded:
    """The labels of a model under another wording, as the backbone has read them."""

    words: Hypotheses
    states: Tensor
    """[J, P, H]"""
    mask: Tensor
    """[J, P]"""
    start: Tensor | None
    """[J, P, W]"""
    continuations: Tensor | None
    """[J, Q]"""

    def put_into(self, model: LTuningModel | StateModel) -> None:
        """Replaces the hypotheses that it judges by; nothing that is trained."""
        device, weights = model.label_states.device, self.words.weights or [[1.0]] * len(self.words.texts)
        model.method = model.method.among(labels_of(weights).to(device))
        model.mean = HypothesisMean(weights).to(device)
        model.label_states = self.states.to(model.label_states)
        model.label_mask = self.mask.to(device)
        if isinstance(model, LTuningModel):
            model.label_start = None if self.start is None else self.start.to(model.label_states)
            model.continuations = None if self.continuations is None else self.continuations.to(device)


def reworded_hypotheses(trained: LabelStates, rewordings: Sequence[Rewording]) -> list[Hypotheses]:
    """The labels' hypotheses under each. UserError where one does not fit the labels, or words them as in training."""
    found = []
    for rewording in rewordings:
        try:
            words = hypotheses(trained.names, _labels_config(trained.by_label, rewording))
        except (UserError, ValueError) as error:
            raise UserError(f"evaluate.rewordings, {rewording!r}: {error}") from error
        if words == Hypotheses(trained.hypotheses, trained.weights):
            raise UserError(
                f"evaluate.rewordings, {rewording!r}: the labels were trained with these hypotheses: take others"
            )
        found.append(words)
    return found


def read_rewordings(
    accelerator: Accelerator, ranks: Ranks, known: Backbone, adapter: Adapter, wanted: Sequence[Hypotheses]
) -> list[Reworded]:
    """The frozen backbone's reading of each; none where the adapter does not read the labels' words. Collective.

    UserError for hypotheses too long for the adapter.
    """
    if not wanted or not adapter.build_method(known.facts).depends_on_hypotheses:
        return []
    form, facts = adapter.config.method.starts_from, known.facts
    tokens = [adapter.hypothesis_tokens(known.tokenizer, facts, words.texts) for words in wanted]
    continuations = [adapter.continuations(known.tokenizer, facts, words.texts) for words in wanted]
    model = prepare_inference(
        accelerator, AsInjection(load_frozen(accelerator, ranks, known), form), known.config.torch_dtype
    )
    read = [read_hypotheses(model, one, accelerator.device) for one in tokens]
    release(accelerator, model)
    return [
        Reworded(words, states, one.kept, start, behind)
        for words, one, (states, start), behind in zip(wanted, tokens, read, continuations, strict=True)
    ]


def inner_model(model: nn.Module) -> LTuningModel | StateModel:
    """The model, out of the engine that it may be in."""
    inner = getattr(model, "module", model)
    assert isinstance(inner, LTuningModel | StateModel)
    return inner


def _labels_config(trained: Mapping[str, Mapping[str, float]], rewording: Rewording) -> LabelsConfig:
    """ValueError for a label that is named twice, of whose two texts one would be lost, or whose text is blank."""
    if isinstance(rewording, str):
        return LabelsConfig(template=rewording)
    check_texts(rewording)
    given: dict[str, OneOrSeveral] = {label_name(name): dict(own) for name, own in trained.items()}
    return LabelsConfig(texts=given | {label_name(name): text for name, text in rewording.items()})
