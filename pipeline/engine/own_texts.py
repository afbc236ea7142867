"""A trained adapter with which each of several ranks scores texts of its own: whole on each, or sharded over all."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from pipeline.adapter.directory import Adapter
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.pooling import resolve_pooling
from pipeline.data.batches import PassSize, by_row
from pipeline.data.splits import TokenizedTexts
from pipeline.data.texts import TextEncoder
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone
from pipeline.engine.loaded_adapter import LoadedAdapter, Prediction, predictions_of
from pipeline.engine.models import load_frozen, prepare_inference, trained_model
from pipeline.evaluation.scoring import score_own
from pipeline.methods.model import LTuningModel


@dataclass(frozen=True)
class OwnTexts:
    """Scores this rank's own texts, in step with `ranks`, where they share a sharded model."""

    model: nn.Module
    encoder: TextEncoder
    device: torch.device
    labels: Sequence[str]
    ranks: Ranks
    pad_token_id: int
    readings: int | None
    """See `MethodConfig.joint_readings`."""
    hypotheses: int
    """Of the label with the most."""
    temperature: float
    pass_size: PassSize

    @classmethod
    def of(cls, loaded: LoadedAdapter, pass_size: PassSize) -> "OwnTexts":
        """With a whole model, which waits for nobody."""
        return cls(
            loaded.model,
            loaded.adapter.texts(loaded.tokenizer),
            loaded.device,
            loaded.labels,
            Ranks.alone(),
            loaded.pad_token_id,
            loaded.readings,
            loaded.model.most_hypotheses,
            loaded.temperature,
            pass_size,
        )

    @classmethod
    def sharded(
        cls, accelerator: Accelerator, ranks: Ranks, adapter: Adapter, known: Backbone, pass_size: PassSize
    ) -> "OwnTexts":
        """With a model that is spread over the ranks as the DeepSpeed config says. Collective.

        Raises UserError for a backbone that the adapter was not made for.
        """
        adapter.check_backbone(known.opened(ranks).fingerprint, known.tokenizer_fingerprint)
        encoder = adapter.texts(known.tokenizer)
        encoder.check(known.facts.vocab_size)
        return cls(
            _sharded_model(accelerator, ranks, adapter, known),
            encoder,
            accelerator.device,
            adapter.labels.names,
            ranks,
            known.pad_token_id,
            adapter.config.method.joint_readings(len(adapter.labels.names)),
            adapter.labels.most_hypotheses,
            adapter.temperature,
            pass_size,
        )

    def encode(self, texts: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Texts, or pairs, as tokens: a row of `scores` each, and `truncated`. Rows without a token have none."""
        if not texts:
            return []
        return by_row(self.encoder.encode([list(column) for column in zip(*texts, strict=True)]))

    def scores(self, rows: list[dict[str, Any]]) -> NDArray:
        """Scores [N, K] of N tokenized texts, which may be none. Collective over `ranks`."""
        return score_own(
            self.model,
            TokenizedTexts(rows),
            len(self.labels),
            self.pass_size,
            ranks=self.ranks,
            pad_token_id=self.pad_token_id,
            device=self.device,
            readings=self.readings,
            hypotheses=self.hypotheses,
        )

    def predictions(self, rows: list[dict[str, Any]], scores: NDArray, where: str) -> list[Prediction]:
        """What scores [N, K] of these rows say. DivergedError, which names `where`, if one is not finite."""
        return predictions_of(self.labels, rows, scores, self.temperature, where)


def _sharded_model(accelerator: Accelerator, ranks: Ranks, adapter: Adapter, known: Backbone) -> nn.Module:
    if not adapter.config.method.from_states:
        return trained_model(accelerator, ranks, known, adapter)
    # Outside the engine, which would round what is fitted.
    labels, config = adapter.labels, known.config
    engine = prepare_inference(accelerator, load_frozen(accelerator, ranks, known), config.torch_dtype)
    pooling = resolve_pooling(config.pooling, known.facts)
    judge = labels.judged_by(adapter.build_method(known.facts), accelerator.device)
    frozen = cast(FrozenBackbone, engine)
    whole = LTuningModel(frozen, judge, labels.states, labels.mask, pooling, mean=labels.mean)
    return whole.to(accelerator.device)


def local_device() -> str:
    """The device of this rank."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
