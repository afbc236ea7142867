"""A trained adapter on its backbone, whole, on one device: what `predict` and the Python API ask."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from pipeline.adapter.directory import Adapter, adapter_folder, load_adapter
from pipeline.adapter.label_states import read_hypotheses
from pipeline.backbone.as_injection import AsInjection
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.pooling import resolve_pooling
from pipeline.core.errors import UserError
from pipeline.data.batches import USUAL_PASS, PassSize
from pipeline.data.config import LabelsConfig, OneOrSeveral
from pipeline.data.hypotheses import hypotheses
from pipeline.data.in_memory import Text, strings, text_columns
from pipeline.data.labels import label_name
from pipeline.data.splits import TokenizedTexts
from pipeline.data.tokenizer import pad_token_id
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.evaluation.metrics import predictions, tempered_softmax
from pipeline.evaluation.scoring import score
from pipeline.methods.hypothesis_mean import HypothesisMean
from pipeline.methods.model import LTuningModel


@dataclass(frozen=True)
class Prediction:
    """What the classifier thinks of one text."""

    label: str
    """The label with the best score; of equal scores the one listed first."""
    scores: dict[str, float]
    """Score of every label; larger is more likely, without a fixed scale."""
    probabilities: dict[str, float]
    """Softmax over the scores, divided by the classifier's temperature."""
    truncated: bool
    """The text was longer than the adapter's `data.max_length`; its end was not read."""


@dataclass(frozen=True)
class LoadedAdapter:
    """Scores texts with a trained adapter, among the labels of its training or others.

    It works alone: in a program of several processes each may load it, and classify texts of its own, when it likes.
    """

    adapter: Adapter
    model: LTuningModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    labels: list[str]
    """In the order of the scores."""
    pass_size: PassSize = USUAL_PASS
    temperature: float = 1.0
    """What scores are divided by to become probabilities: fitted on validation texts, or 1."""
    _reading: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    """Held by the thread that reads texts: a tokenizer keeps the length to cut to, and modules may keep what is
    injected, so that one thread's texts would be read as another's."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        *,
        backbone: str | None = None,
        calibrated: bool = False,
        trust_remote_code: bool = False,
    ) -> "LoadedAdapter":
        """Loads an adapter directory, or a run directory's, and its backbone whole onto one device.

        `device`: cuda where there is one, else cpu. `backbone`: where the backbone lies now, if it was moved.
        `calibrated`: probabilities with the temperature that evaluate fitted on the validation split.
        `trust_remote_code`: run the Python code that ships with the backbone, once config.json and the weights are seen
        to be those the adapter was made for.
        Raises UserError for a damaged or uncalibrated adapter, and for a backbone that it was not made for.
        """
        target = device_named(device)
        adapter = load_adapter(adapter_folder(path), calibrated=calibrated)
        return cls.of(adapter, target, backbone=backbone, trust_remote_code=trust_remote_code)

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        device: str | torch.device | None = None,
        *,
        backbone: str | None = None,
        trust_remote_code: bool = False,
    ) -> "LoadedAdapter":
        """The same of an adapter that is read already, whatever has come into its folder's place since."""
        target = device_named(device)
        config = adapter.config.backbone.trusted(trust_remote_code).moved(backbone)
        known = backbone_of(config, adapter.config.data)
        frozen = frozen_backbone(adapter, known, target)
        return cls.on(frozen, known.tokenizer, adapter, target)

    @classmethod
    def on(
        cls, backbone: FrozenBackbone, tokenizer: PreTrainedTokenizerBase, adapter: Adapter, device: torch.device
    ) -> "LoadedAdapter":
        """The adapter on a backbone that is loaded, and was seen to be the one it was made for.

        Raises UserError where the adapter's tensors do not fit.
        """
        method = adapter.build_method(backbone.facts)
        continuations = adapter.continuations(tokenizer, backbone.facts, adapter.labels.hypotheses)
        labels = adapter.labels
        pooling = resolve_pooling(adapter.config.backbone.pooling, backbone.facts)
        judge = labels.judged_by(method, device)
        states, mask, start = labels.states, labels.mask, labels.start
        model = LTuningModel(backbone, judge, states, mask, pooling, continuations, start, labels.mean)
        for parameter in model.inside().values():
            # As in training: beside weights in few bits PEFT makes its own in float32.
            parameter.data = parameter.data.to(adapter.config.backbone.torch_dtype)
        model.load_inside(adapter.method_state)
        names = list(labels.names)
        return cls(adapter, model.to(device).eval(), tokenizer, device, names, temperature=adapter.temperature)

    def predict(self, texts: Text | Iterable[Text]) -> list[Prediction]:
        """One prediction per text, or per pair of texts if the adapter was trained on pairs.

        `texts` is a list, an array or a column of them. A string is one text. A tuple of two strings is one pair if the
        adapter was trained on pairs, else two texts.
        Raises UserError, with its position, for what is not a string, or is empty, for single texts in place of pairs
        or the reverse, and for scores that are not finite.
        """
        with self._reading:
            rows = self.rows(texts)
            if not rows:
                return []
            scores = score(
                self.model,
                TokenizedTexts(rows),
                len(self.labels),
                self.pass_size,
                ranks=Ranks.alone(),
                pad_token_id=self.pad_token_id,
                device=self.device,
                readings=self.readings,
                hypotheses=self.model.most_hypotheses,
            )
        return self.predictions(rows, scores)

    def rows(self, texts: Text | Iterable[Text]) -> list[dict[str, Any]]:
        """The texts as tokens, for `predictions` and what scores them. UserError as `predict` says."""
        columns = text_columns(texts, pairs=self.adapter.config.data.text_pair is not None)
        return self.adapter.texts(self.tokenizer).rows(columns) if columns else []

    def predictions(self, rows: Sequence[dict[str, Any]], scores: NDArray[np.float32]) -> list[Prediction]:
        """What scores [N, K] say of N texts. UserError for scores that are not finite."""
        return predictions_of(self.labels, rows, scores, self.temperature)

    @property
    def pad_token_id(self) -> int:
        """What fills up the shorter texts of a batch."""
        return pad_token_id(self.tokenizer, self.model.backbone.facts.vocab_size)

    @property
    def readings(self) -> int | None:
        """Rows that a text takes where all its labels are scored in one go; None: a row per label."""
        return self.adapter.config.method.joint_readings(len(self.adapter.labels.names))

    def with_labels(self, names: Iterable[str], texts: Mapping[str, OneOrSeveral] | None = None) -> "LoadedAdapter":
        """The same classifier among other labels, which need not have been in training: their hypotheses are enough.

        A label's hypothesis is that of `texts`, else that of training, else the template's; several are a list, or a
        mapping to their weights. The backbone is shared; the temperature stays that of training.
        Raises UserError for methods that do not read hypotheses, fewer than two labels, what is not a string, labels
        that read alike, and hypotheses too long for the adapter.
        """
        if not self.adapter.config.method.open_labels:
            method = self.adapter.config.method.name
            raise UserError(f"{method} knows only the labels of its training: other labels need lt_prefix or lt_prompt")
        names = list(map(label_name, strings(names, "label")))
        if len(names) < 2 or len(set(names)) < len(names) or not all(names):
            raise UserError(f"the labels must be at least two different names, got: {', '.join(names) or 'none'}")
        trained = self.adapter.labels
        known: dict[str, OneOrSeveral] = {
            label_name(name): own for name, own in trained.by_label.items() if label_name(name) in names
        }
        template = self.adapter.config.labels.template
        given = _labels_config(template, {name: _given(own) for name, own in (texts or {}).items()})
        known |= {label_name(name): own for name, own in given.texts.items()}
        words = hypotheses(names, _labels_config(template, known))
        old, form = self.model, self.adapter.config.method.starts_from
        with self._reading:
            tokens = self.adapter.hypothesis_tokens(self.tokenizer, old.backbone.facts, words.texts)
            states, start = read_hypotheses(AsInjection(old.backbone, form), tokens, self.device)
            continuations = self.adapter.continuations(self.tokenizer, old.backbone.facts, words.texts)
        places = {label_name(name): index for index, name in enumerate(trained.names)}
        own = [places.get(name, -1) for name, texts in zip(names, words.by_label, strict=True) for _ in texts]
        among = old.method.among(torch.tensor(own, device=self.device))
        mean = None if words.weights is None else HypothesisMean(words.weights)
        model = LTuningModel(old.backbone, among, states, tokens.kept, old.pooling, continuations, start, mean)
        return replace(self, model=model.to(self.device).eval(), labels=names)


def _given(hypotheses: Any) -> OneOrSeveral:
    """A label's. UserError for what is not a string, a list of them or a mapping to weights."""
    if isinstance(hypotheses, list | dict):
        strings(list(hypotheses), "hypothesis")
        return hypotheses
    return strings([hypotheses], "hypothesis")[0]


def _labels_config(template: OneOrSeveral, texts: Mapping[str, OneOrSeveral]) -> LabelsConfig:
    """UserError for hypotheses that are empty, repeated, or have weights that are none."""
    try:
        return LabelsConfig(template=template, texts=dict(texts))
    except ValidationError as error:
        raise UserError(f"hypotheses: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def predictions_of(
    labels: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    scores: NDArray[np.float32],
    temperature: float,
    where: str = "the scores",
) -> list[Prediction]:
    """What scores [N, K] say of N tokenized texts. DivergedError, which names `where`, if one is not finite."""
    best, probabilities = predictions(scores, where), tempered_softmax(scores, temperature)

    def by_label(values: NDArray) -> dict[str, float]:
        return dict(zip(labels, values.tolist(), strict=True))

    return [
        Prediction(labels[index], by_label(values), by_label(shares), row["truncated"])
        for index, values, shares, row in zip(best, scores, probabilities, rows, strict=True)
    ]


def frozen_backbone(
    adapter: Adapter, known: Backbone, device: torch.device, *, output_layer: bool = False
) -> FrozenBackbone:
    """The whole backbone on one device, once it is seen to be the adapter's: its files first, then its tokenizer.

    `output_layer`: with the layer that scores hypotheses, also where this adapter does without.
    """
    opened = known.opened(Ranks.alone())
    adapter.check_backbone(opened.fingerprint)
    adapter.check_backbone(opened.fingerprint, known.tokenizer_fingerprint)
    adapter.texts(known.tokenizer).check(known.facts.vocab_size)
    base = load_backbone(
        known.config,
        zero_config=None,
        device=device,
        ranks=Ranks.alone(),
        output_layer=output_layer or adapter.config.method.reads_hypotheses,
        opened=opened,
        read_config=lambda: known.model_config,
    )
    return FrozenBackbone(base, known.facts)


def device_named(name: str | torch.device | None) -> torch.device:
    """The device; None: cuda where there is one, else cpu. UserError for a name that is not known."""
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {str(name)!r} is not known: give cpu, cuda, cuda:1, ...") from error
