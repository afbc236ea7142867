"""The Python API: a text classifier in the manner of scikit-learn, trained by the same stages as the command line's."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags

from pipeline.classifier.parameters import MINILM, parameters_of, run_config
from pipeline.core.errors import UserError, some
from pipeline.core.progress import bars, is_hidden
from pipeline.data.config import OneOrSeveral
from pipeline.data.in_memory import Text, are_pairs, classes_of, holds, label_array, labelled, listed, write_table
from pipeline.data.tokens import without_bars
from pipeline.distributed.device import announce_device
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import backbone_of
from pipeline.engine.kept_adapter import MAKING, KeptAdapter
from pipeline.engine.loaded_adapter import Prediction


class LTuningClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier on a frozen backbone: scikit-learn's `fit`, `predict`, `predict_proba` and `score`.

    >>> classifier = LTuningClassifier(max_steps=60).fit(texts, labels)
    >>> classifier.predict(["a gripping film"])
    array(['positive'], dtype='<U8')

    A text is a string; for tasks on pairs, a tuple of two. Labels are strings or whole numbers.

    Args:
        backbone: hub id, local folder, or package:NAME/FOLDER (backbone.name_or_path). The compute dtype is bfloat16
            with a GPU, else float32; `overrides` may say otherwise.
        method: lt_prefix, lt_prompt, or a baseline (method.name).
        template: hypothesis of a label, with {label} in it (labels.template); several: a list, or a mapping to weights.
        hypotheses: label -> its hypothesis, or several, where the template does not read well (labels.texts).
        epochs, max_steps, batch_size, learning_rate: of `train`. `max_steps` has precedence over `epochs`. None: what
            did best with MiniLM and lt_prefix (docs/python.md); with others 3 epochs and the config's.
        max_length: tokens kept of each text (data.max_length).
        validation_split: share of the texts that chooses the best adapter, where `fit` is given no others; 0: none,
            and the last step is kept. None: 0 with MiniLM and lt_prefix, else 0.1.
        seed: of every random choice.
        overrides: any other keys of a config, such as {"method.rank": 32, "train.best_metric": "log_loss"}; they have
            the last word.
        run_dir: run directory to train in, and to keep; None: a temporary one. An interrupted `fit` goes on in it.
        progress: show progress bars; None: on a terminal and in a notebook.
        trust_remote_code: run the Python code that ships with the backbone.

    Attributes:
        classes_: [K] the labels, sorted; the columns of `predict_proba`.
    """

    def __init__(
        self,
        backbone: str = MINILM,
        method: str = "lt_prefix",
        *,
        template: OneOrSeveral = "This text is about {label}.",
        hypotheses: Mapping[Any, OneOrSeveral] | None = None,
        epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        max_length: int = 256,
        validation_split: float | None = None,
        seed: int = 0,
        overrides: Mapping[str, Any] | None = None,
        run_dir: str | Path | None = None,
        progress: bool | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.template = template
        self.hypotheses = hypotheses
        self.epochs = epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_length = max_length
        self.validation_split = validation_split
        self.seed = seed
        self.overrides = overrides
        self.run_dir = run_dir
        self.progress = progress
        self.trust_remote_code = trust_remote_code

    def fit(
        self, texts: Iterable[Text], y: Iterable[Any], *, validation: tuple[Iterable[Text], Iterable[Any]] | None = None
    ) -> "LTuningClassifier":
        """Trains by the stages preprocess, encode-labels, encode-texts and train, in this process alone.

        `y`: the label of each text. `validation`: texts and labels that choose the best adapter.
        Raises UserError, as the stages do: for faulty texts and labels by their number, for settings that do not fit
        by their key. An interrupt (Ctrl-C) ends it.
        """
        pairs = are_pairs(texts := listed(texts, "text"))
        splits = {"train": labelled(texts, y, pairs=pairs)}
        if validation is not None:
            splits["validation"] = labelled(*validation, pairs=pairs)
        classes = classes_of(splits["train"].labels)
        if len(classes) < 2:
            raise UserError(f"a classifier needs at least two labels, y has {len(classes)} class(es)")
        place = nullcontext(self.run_dir) if self.run_dir else TemporaryDirectory(prefix="ltune-")
        with self._bars(), MAKING, place as folder:
            self._train(Path(folder), {name: rows.table(classes) for name, rows in splits.items()}, pairs)
            return self._with(KeptAdapter.read(folder, trust_remote_code=self.trust_remote_code), classes)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        *,
        backbone: str | None = None,
        calibrated: bool = False,
        trust_remote_code: bool = False,
    ) -> "LTuningClassifier":
        """A trained classifier from an adapter directory, or a run directory's, with its backbone on one device.

        `device`: cuda where there is one, else cpu. `backbone`: where the backbone lies now, if it was moved.
        `calibrated`: probabilities with the temperature that evaluate fitted on the validation split.
        `trust_remote_code`: run its Python code, once it is seen to be the backbone the adapter was made for.
        It works alone: in a program of several processes each may load it, and classify its own texts, when it likes.
        Raises UserError for a damaged or uncalibrated adapter, and for a backbone that it was not made for.
        """
        choices = {"device": device, "backbone": backbone, "calibrated": calibrated}
        kept = KeptAdapter.read(path, **choices, trust_remote_code=trust_remote_code)
        parameters = parameters_of(kept.loaded.adapter.config)
        return cls(**parameters, trust_remote_code=trust_remote_code)._with(kept)

    def predict(self, texts: Text | Iterable[Text]) -> NDArray[Any]:
        """The label [N] of each text: that with the best score, of equal scores the first. UserError as `details`."""
        best = self.predict_proba(texts).argmax(1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, texts: Text | Iterable[Text]) -> NDArray[np.float64]:
        """Probabilities [N, K] of the labels `classes_`. UserError as `details`."""
        found = [[each.probabilities[name] for name in self._names] for each in self.details(texts)]
        return np.array(found, dtype=np.float64).reshape(len(found), len(self.classes_))

    def details(self, texts: Text | Iterable[Text]) -> list[Prediction]:
        """For each text its label, the score and probability of every label by name, and whether it was cut.

        `texts` is a list, an array or a column of them. A string is one text. A tuple of two strings is one pair if the
        classifier was trained on pairs, else two texts.
        Raises UserError, with its number, for what is not a string, or is empty, for single texts in place of pairs or
        the reverse, and for scores that are not finite; NotFittedError before `fit`.
        """
        with self._bars():
            return self._fitted().loaded.predict(texts)

    def score(self, texts: Iterable[Text], y: Iterable[Any], sample_weight: Iterable[float] | None = None) -> float:
        """Accuracy on these texts. UserError where none of the labels is known, as with numbers for names."""
        labels = label_array(y)
        self._fitted()
        if len(labels) and set(labels.tolist()).isdisjoint(self.classes_.tolist()):  # np.isin may take 1 for "1"
            raise UserError(
                f"no label of y is one of the classifier's: {some(sorted(map(repr, set(labels.tolist()))))} are not "
                f"among {some(list(map(repr, self.classes_.tolist())))}"
            )
        return float(super().score(texts, labels, sample_weight))

    def with_labels(self, names: Iterable[str], texts: Mapping[str, OneOrSeveral] | None = None) -> "LTuningClassifier":
        """The same classifier among other labels, which need not have been in training: their hypotheses are enough.

        A label's hypothesis is that of `texts`, else that of training, else the template's. The backbone is shared.
        Raises UserError for methods that do not read hypotheses, fewer than two labels, what is not a string, labels
        that read alike, and hypotheses too long for the adapter.
        """
        among = self._fitted().among(names if isinstance(names, str) else list(names), texts or {})
        return type(self)(**self.get_params())._with(among)

    def save(self, path: str | Path) -> None:
        """Writes the adapter directory, for `from_pretrained` and `ltune predict`. It holds labels by their names.

        UserError where something else is at `path`, and after `with_labels`: an adapter has the labels of its training.
        """
        self._fitted().save(Path(path))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "adapter_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, True, False
        return tags

    def _with(self, adapter: KeptAdapter, classes: NDArray[Any] | None = None) -> "LTuningClassifier":
        """This classifier, fitted. `classes`: its labels as `fit` was given them, in the adapter's order.

        Else they are the adapter's names. An adapter may have them in any order, but scikit-learn's metrics take the
        columns of probabilities to be those of sorted labels, without a word.
        """
        labels = adapter.loaded.labels
        self.adapter_ = adapter
        self._names = sorted(labels) if classes is None else list(labels)
        self.classes_ = np.array(self._names) if classes is None else classes
        return self

    def _fitted(self) -> KeptAdapter:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("this LTuningClassifier is not fitted yet: call fit, or load one with from_pretrained")
        return self.adapter_

    @contextmanager
    def _bars(self) -> Iterator[None]:
        """Those of `datasets` follow ours."""
        with bars(self.progress), without_bars() if is_hidden() else nullcontext():
            yield

    def _train(self, folder: Path, tables: Mapping[str, pa.Table], pairs: bool) -> None:
        """The stages, up to train, in this run directory, on these texts by split."""
        announce_device()
        # Late: who only predicts need not wait for DeepSpeed.
        from pipeline.engine.startup import as_guest, own_run_dir
        from pipeline.stages.earlier_run import check_earlier_run
        from pipeline.stages.encode_labels import encode_labels
        from pipeline.stages.encode_texts import encode_texts
        from pipeline.stages.preprocess import preprocess
        from pipeline.stages.single_training import Training
        from pipeline.stages.train import train

        with as_guest():
            files = {name: folder / "given" / f"{name}.parquet" for name in tables}
            config = run_config(self.get_params(), folder, files, len(tables["train"]), pairs=pairs)
            with own_run_dir(config.run_dir, Ranks.alone()):
                for name, table in tables.items():
                    if config.run_dir.is_trained and not holds(files[name], table):
                        raise UserError(f"run_dir '{folder}' was trained on other texts: choose another run_dir")
                    write_table(files[name], table)
                backbone = backbone_of(config.backbone, config.data)
                check_earlier_run(Training(config, backbone, config.run_dir).task, Ranks.alone())
                preprocess(config, backbone)
                encode_labels(config, backbone)
                encode_texts(config, backbone)
                train(config, backbone)
