"""The nine public data sets of the recipes: where each comes from, how its files are read, licence and citation.

Every file is named at a commit of its repository, so that it cannot change behind its address.
"""

from dataclasses import dataclass
from typing import Literal

HOST = "https://raw.githubusercontent.com"

Form = Literal["sst2", "cola", "rte", "agnews", "agnews_sample", "banking77", "masakhanews"]
"""How a published file is read: see `pipeline.data.published`."""


@dataclass(frozen=True)
class Published:
    """One published file."""

    path: str
    """Below HOST: owner, repository, commit, path."""
    form: Form
    split: Literal["train", "validation", "test"]

    @property
    def place(self) -> str:
        """The path in its repository."""
        return self.path.split("/", 3)[3]

    @property
    def repository(self) -> str:
        """Owner, name and commit."""
        return self.path.removesuffix(f"/{self.place}")


@dataclass(frozen=True)
class PublicSet:
    """A data set, and what has to be known before it is used."""

    about: str
    licence: str
    citation: str
    files: tuple[Published, ...]
    rows: tuple[int, int, int]
    """Of the training, validation and test tables that docs/results.md used."""
    cut: int = 0
    """Validation rows that are cut from the training rows, where none are published."""

    @property
    def has_pairs(self) -> bool:
        return self.files[0].form == "rte"


_SST2 = "clairett/pytorch-sentiment-classification/457ffd83de90a9d6d472d8ffc31bbffe40a8b236/data/SST2"
_COLA = "nyu-mll/CoLA-baselines/dd095d3646ed05a315280aaa8ed4ec84ba435b3e/acceptability_corpus/cola_public/raw"
_RTE = "marcwww/nlu_eval/ccd55c37de74ebd86c70ae58f67dceb0aa444f43/data/RTE"
_AGNEWS = "mhjabreel/CharCnn_Keras/555590db4219b1243abb1918effd6a7425a2d75f/data/ag_news_csv"
_AGNEWS_SAMPLE = "lst11111/bert-text-classification/d52bf84e15f59794226916f08e74702b3f70389c/data/ag_news"
_BANKING77 = "PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data"
_MASAKHANEWS = "masakhane-io/masakhane-news/819be052e79e0a600e0ed4a7356594681cb5c4f3"


def _masakhanews(language: str, code: str, train: str, rows: tuple[int, int, int]) -> PublicSet:
    files = {"train": train, "validation": f"data/{code}/dev.tsv", "test": f"data/{code}/test.tsv"}
    return PublicSet(
        f"MasakhaNEWS, {language}: news topics",
        "the repository has no licence file; see the data set's page (masakhane/masakhanews) before you pass it on",
        "Adelani et al., MasakhaNEWS: News Topic Classification for African Languages, IJCNLP-AACL 2023",
        tuple(Published(f"{_MASAKHANEWS}/{path}", "masakhanews", split) for split, path in files.items()),  # type: ignore[arg-type]
        rows,
    )


PUBLIC_SETS = {
    "sst2": PublicSet(
        "SST-2: English film reviews, whole sentences, negative or positive",
        "the repository has no licence file; the treebank is by Socher et al.",
        "Socher et al., Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank, EMNLP 2013",
        (
            Published(f"{_SST2}/train.tsv", "sst2", "train"),
            Published(f"{_SST2}/dev.tsv", "sst2", "validation"),
            Published(f"{_SST2}/test.tsv", "sst2", "test"),
        ),
        rows=(6_908, 872, 1_821),
    ),
    "cola": PublicSet(
        "CoLA: English sentences from linguistics, acceptable or not",
        "copyright of the texts remains with their authors or publishers; offered for research (README of the corpus)",
        "Warstadt et al., Neural Network Acceptability Judgments, TACL 2019",
        (
            Published(f"{_COLA}/in_domain_train.tsv", "cola", "train"),
            Published(f"{_COLA}/in_domain_dev.tsv", "cola", "test"),
            Published(f"{_COLA}/out_of_domain_dev.tsv", "cola", "test"),
        ),
        rows=(7_676, 800, 1_043),
        cut=800,
    ),
    "rte": PublicSet(
        "RTE: pairs of English texts, does the second follow from the first? (test: the development file of GLUE)",
        "the repository has no licence file; the data are of the PASCAL RTE challenges, by way of GLUE",
        "Wang et al., GLUE, ICLR 2019; Dagan et al., The PASCAL Recognising Textual Entailment Challenge, 2006",
        (Published(f"{_RTE}/train.tsv", "rte", "train"), Published(f"{_RTE}/dev.tsv", "rte", "test")),
        rows=(2_237, 250, 277),
        cut=250,
    ),
    "agnews": PublicSet(
        "AG News: English news, four topics; training texts are a sample of 5,000",
        "for research and other non-commercial activity (readme of the data set)",
        "Zhang, Zhao and LeCun, Character-level Convolutional Networks for Text Classification, NeurIPS 2015",
        (
            Published(f"{_AGNEWS_SAMPLE}/train.csv", "agnews_sample", "train"),
            Published(f"{_AGNEWS}/test.csv", "agnews", "test"),
        ),
        rows=(4_499, 500, 7_600),
        cut=500,
    ),
    "banking77": PublicSet(
        "Banking77: English questions to a bank, 77 intents",
        "Creative Commons Attribution 4.0",
        "Casanueva et al., Efficient Intent Detection with Dual Sentence Encoders, NLP for ConvAI 2020",
        (
            Published(f"{_BANKING77}/train.csv", "banking77", "train"),
            Published(f"{_BANKING77}/test.csv", "banking77", "test"),
        ),
        rows=(8_946, 995, 3_080),
        cut=995,
    ),
    "masakhanews_eng": _masakhanews("English", "eng", "few_shot_data/50_samples/eng/train.tsv", (299, 472, 948)),
    "masakhanews_pcm": _masakhanews("Nigerian Pidgin", "pcm", "data/pcm/train.tsv", (1_054, 152, 305)),
    "masakhanews_swa": _masakhanews("Swahili", "swa", "few_shot_data/50_samples/swa/train.tsv", (350, 237, 476)),
    "masakhanews_hau": _masakhanews("Hausa", "hau", "few_shot_data/50_samples/hau/train.tsv", (350, 317, 637)),
}
