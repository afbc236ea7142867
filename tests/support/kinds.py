"""A tokenizer of each kind that published backbones have, trained on a few lines."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ["wordpiece", "unigram", "metaspace", "byte_level", "byte_level_whole_words"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "<|im_start|>", "<image>"]
CORPUS = ["a gripping film that never lets go", "the plot is thin, and the jokes fall flat", "[]<>|/_", *SPECIAL] * 20


def trained(model: models.Model, trainer: trainers.Trainer, before: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = before
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def build(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of each kind that published backbones have, as its files would be read."""
    options = {"special_tokens": SPECIAL, "show_progress": False}
    if kind == "wordpiece":  # BERT
        tokenizer = trained(
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=200, **options),
            pre_tokenizers.BertPreTokenizer(),
        )
        tokenizer.normalizer = normalizers.BertNormalizer()
    elif kind == "unigram":  # DeBERTa-v3
        tokenizer = trained(
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=120, unk_token="[UNK]", **options),
            pre_tokenizers.Metaspace(),
        )
    elif kind == "metaspace":  # Llama 2, Gemma
        tokenizer = trained(
            models.BPE(unk_token="[UNK]"), trainers.BpeTrainer(vocab_size=200, **options), pre_tokenizers.Metaspace()
        )
    else:  # Llama 3, Qwen, GPT-2, OPT, BLOOM, Falcon
        whole = kind == "byte_level_whole_words"
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer = trained(
            models.BPE(ignore_merges=whole),
            trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, **options),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not whole),
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
