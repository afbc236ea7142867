"""The backbone's own tokenizer: loaded, identified, and the one way in which texts and labels become tokens."""

import json
from collections.abc import Collection, Sequence

from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase

from pipeline.backbone.config import BackboneConfig
from pipeline.core.artefact import sha256_of
from pipeline.core.errors import UserError, one_line, some

PROBE = "A snowman \N{SNOWMAN}"
"""Has a character that small vocabularies lack."""


def load_tokenizer(config: BackboneConfig, *, special_tokens: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the backbone. Raises UserError where there is none, or a damaged one.

    `special_tokens`: a special token that is written in a text (`</s>`) becomes that token, not its characters' tokens.
    """
    location = config.location
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            location, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        # Some damage, such as an unknown token that is unknown itself, shows only when a text is read.
        if None in tokenizer.convert_ids_to_tokens(tokenizer(PROBE)["input_ids"]):
            raise ValueError("it gives a text tokens that it does not know itself")
    except (KeyboardInterrupt, SystemExit):
        raise
    # Damaged files raise whatever the code that trips over them raises. Rust's panics are not even an Exception.
    except BaseException as error:
        reason = one_line(error)
        if "tiktoken" in reason:  # what transformers tries last, whatever the file is
            reason = (
                "it has no tokenizer.json; where its tokenizer is a SentencePiece model, pip install sentencepiece, or "
                f"take a revision that has the file ({reason})"
            )
        raise UserError(
            f"backbone.name_or_path {config.name_or_path!r}: no tokenizer could be loaded: {reason}"
        ) from error
    tokenizer.split_special_tokens = not special_tokens
    return tokenizer


def encode(
    tokenizer: PreTrainedTokenizerBase,
    *texts: Sequence[str],
    add_special_tokens: bool = True,
    max_length: int | None = None,
    special_tokens: bool | None = None,
) -> BatchEncoding:
    """`input_ids`, and whatever else the tokenizer gives, of one column of texts, or of two, the parts of pairs.

    Not padded; longer ones are cut to `max_length`. Both are always said: a tokenizer.json may have its own settings.
    `special_tokens`: see `load_tokenizer`; None: as the tokenizer was loaded.
    """
    split = tokenizer.split_special_tokens if special_tokens is None else not special_tokens
    columns = [_readable(tokenizer, column) if split else list(column) for column in texts]
    return tokenizer(
        *columns,
        add_special_tokens=add_special_tokens,
        padding=False,
        truncation="longest_first" if max_length else False,
        max_length=max_length,
        return_attention_mask=False,
        split_special_tokens=split,
        verbose=False,
    )


def special_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """How the tokenizer's special tokens are written."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens})


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The same as tokens."""
    added = tokenizer.added_tokens_decoder.items()
    return {id for id, token in added if token.special} | set(tokenizer.all_special_ids)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Jinja that words a message to the backbone. Raises UserError where there is none."""
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # none, or several and none of them the default
        raise UserError(
            f"data.chat=true, but the backbone's tokenizer has no chat template ('{tokenizer.name_or_path}'): set "
            "data.chat=false, and put the words around a text into data.template"
        ) from error


def _readable(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """The texts with a space in each special token that would be read as one all the same.

    Unigram models (DeBERTa-v3) have them among their ordinary pieces, where `split_special_tokens` does not help.
    """
    written = [token for token in special_texts(tokenizer) if any(token in text for text in texts)]
    for token in written:
        options = {"padding": False, "truncation": False, "split_special_tokens": True, "verbose": False}
        found = tokenizer(token, add_special_tokens=False, **options)["input_ids"]
        if tokenizer.convert_tokens_to_ids(token) in found:
            texts = [text.replace(token, f"{token[0]} {token[1:]}") for text in texts]
    return list(texts)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, *, chat: bool = False) -> str:
    """Hash of everything that decides which tokens a text becomes; where it is used (`chat`), the chat template too.

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
    words = [chat_template(tokenizer)] if chat else []
    kind, special_map = type(tokenizer).__name__, json.dumps(special, sort_keys=True)
    return sha256_of(kind, rules, special_map, tokenizer.truncation_side, *words)


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int | None, words: Collection[int] = frozenset()
) -> None:
    """UserError where a text may become a token for which the backbone has no embedding (None: not known).

    `words`: tokens of the words around a text. Special tokens count where they are among these, where the tokenizer
    puts them around a text, or where a text may have them (`load_tokenizer(special_tokens=True)`). One that is never
    read, such as an added padding token, does no harm.
    """
    if vocab_size is None:
        return
    added = tokenizer.added_tokens_decoder
    special = special_ids(tokenizer)
    around = (
        set(words) | set(encode(tokenizer, [""])["input_ids"][0]) | set(encode(tokenizer, [""], [""])["input_ids"][0])
    )
    unread = special - around if tokenizer.split_special_tokens else set()
    ids = {
        **{id: token.content for id, token in added.items()},
        **{id: word for word, id in tokenizer.get_vocab().items()},
    }
    beyond = {id: word for id, word in ids.items() if id >= vocab_size and id not in unread}
    if not beyond:
        return
    shown = some([f"{word!r} is {id}" for id, word in sorted(beyond.items())])
    least = "; or set data.special_tokens=false" if special.issuperset(beyond) and not around & set(beyond) else ""
    raise UserError(
        f"the tokenizer gives {len(beyond)} tokens that the backbone, whose embedding has rows 0 to {vocab_size - 1}, "
        f"does not know: {shown}; give the backbone its own tokenizer, or resize its embedding and save both{least}"
    )


def pad_token_id(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> int:
    """The token that fills short rows: pad, else end of sequence (most decoders have no pad token), else 0.

    Padding is masked, so which token it is makes no difference to a score; but the embedding must have a row for it.
    """
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None and (vocab_size is None or token_id < vocab_size):
            return int(token_id)
    return 0
