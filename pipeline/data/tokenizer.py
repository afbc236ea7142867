"""The backbone's own tokenizer: loaded, identified, and asked for its padding token."""

import json

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.backbone.config import BackboneConfig
from pipeline.errors import UserError
from pipeline.rundir import sha256_of


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the backbone. Raises UserError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(
            config.location, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file makes transformers and tokenizers fail in any way
        reason = " ".join(str(error).split())
        raise UserError(
            f"backbone.name_or_path {config.name_or_path!r}: no tokenizer could be loaded: {reason}"
        ) from error


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything that decides which tokens a text becomes.

    Truncation and padding are left out: some published tokenizer.json files (MiniLM's) carry settings for them, and
    every call overwrites them, so that they differ between a fresh and a used tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        settings = json.loads(backend.to_str())
        rules = json.dumps(settings | {"truncation": None, "padding": None}, sort_keys=True)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256_of(type(tokenizer).__name__, rules, json.dumps(special, sort_keys=True), tokenizer.truncation_side)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills short rows: pad, else end of sequence (most decoders have no pad token), else 0.

    Padding is masked, so which token it is makes no difference to a score.
    """
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0
