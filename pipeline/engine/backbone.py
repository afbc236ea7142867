"""What a command knows of its backbone, each thing read once and handed to all stages."""

from functools import cached_property

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from pipeline.adapter.config import TextSettings
from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import BackboneFacts, facts_of
from pipeline.backbone.loading import OpenCheckpoint, open_alike
from pipeline.backbone.model_config import load_model_config
from pipeline.data.config import DataConfig
from pipeline.data.texts import TextEncoder
from pipeline.data.tokenizer import load_tokenizer, pad_token_id, tokenizer_fingerprint
from pipeline.distributed.ranks import Ranks
from pipeline.engine.kept_model import KeptModel


class Backbone:
    """A frozen backbone: its files' identity, config.json, sizes, tokenizer and, once a stage has loaded them, weights.

    Each is read when it is first asked for, and kept: a rank that needs no tokenizer loads none. Every rank makes its
    own. Each raises UserError, as what reads it does.
    """

    def __init__(self, config: BackboneConfig, *, special_tokens: bool = False, chat: bool = False) -> None:
        """`special_tokens`: see `load_tokenizer`; `chat`: its chat template is used."""
        self.config = config
        self.special_tokens = special_tokens
        self.chat = chat
        self.kept: KeptModel | None = None
        """The weights that `load_frozen` has read."""
        self._opened: OpenCheckpoint | None = None

    @cached_property
    def model_config(self) -> PreTrainedConfig:
        """config.json"""
        return load_model_config(self.config)

    @cached_property
    def facts(self) -> BackboneFacts:
        return facts_of(self.model_config, self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.config, special_tokens=self.special_tokens)

    @cached_property
    def pad_token_id(self) -> int:
        """What fills up the shorter texts of a batch."""
        return pad_token_id(self.tokenizer, self.facts.vocab_size)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        return tokenizer_fingerprint(self.tokenizer, chat=self.chat)

    def fingerprint(self, ranks: Ranks) -> dict[str, str]:
        """Everything that decides what it makes of given tokens, part by part. Collective as `opened` is."""
        config = self.config
        return {
            "backbone": config.name_or_path,
            "backbone.revision": str(config.revision),
            "backbone.dtype": config.dtype,
            "backbone.quantization": config.quantization,
            "backbone.layers": str(config.layers),
            **self.opened(ranks).fingerprint,
        }

    def opened(self, ranks: Ranks) -> OpenCheckpoint:
        """Its weights' files, with their identity, equal on all `ranks`. Collective when it is first asked for."""
        if self._opened is None:
            self._opened = open_alike(self.config, ranks)
        return self._opened


def backbone_of(config: BackboneConfig, data: DataConfig | TextSettings) -> Backbone:
    """The backbone of a run or an adapter with these sections, which reads texts as `data` says."""
    return Backbone(config, special_tokens=data.special_tokens, chat=data.chat)


def text_encoder(backbone: Backbone, data: DataConfig) -> TextEncoder:
    """How the texts of a run become this backbone's tokens."""
    return TextEncoder(backbone.tokenizer, data.max_length, data.template, data.chat)
