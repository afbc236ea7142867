"""The backbone's own tokenizer: loaded, identified, and asked for its padding token."""

import json

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.backbone.config import BackboneConfig
from pipeline.errors import UserError
from pipeline.rundir import sha256_of

PROBE = "A snowman \N{SNOWMAN}"
"""Has a character that small vocabularies lack."""


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the backbone. Raises UserError where there is none, or a damaged one."""
    location = config.location
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        # Some damage, such as an unknown token that is unknown itself, shows only when a text is read.
        if None in tokenizer.convert_ids_to_tokens(tokenizer(PROBE)["input_ids"]):
            raise ValueError("it gives a text tokens that it does not know itself")
    except (KeyboardInterrupt, SystemExit):
        raise
    # Damaged files raise whatever the code that trips over them raises. Rust's panics are not even an Exception.
    except BaseException as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"backbone.name_or_path {config.name_or_path!r}: no tokenizer could be loaded: {reason}"
        ) from error
    return tokenizer


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
