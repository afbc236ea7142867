"""The adapter directory: all that a trained classifier is, without the backbone. Nothing in it is ever unpickled.

adapter.safetensors         trained tensors of the tuning method, by parameter name
adapter_config.json         AdapterConfig
label_states.safetensors    label states [K, P, H] and mask;  labels.json: names, hypotheses, fingerprint
README.md                   model card
calibration.json            temperature of the probabilities, once evaluate has fitted it
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import BackboneFacts
from pipeline.calibration import FILE as CALIBRATION
from pipeline.config import RunConfig
from pipeline.data.config import LabelsConfig
from pipeline.data.labels import continuations
from pipeline.errors import UserError
from pipeline.label_states import LabelStates
from pipeline.methods import AnyMethodConfig, TuningMethod
from pipeline.model import without_inside
from pipeline.model_card import model_card
from pipeline.rundir import RunDir, atomic_dir, differences, write_json, write_text
from pipeline.settings import Settings

FORMAT_VERSION = 1
TENSORS, CONFIG, CARD = "adapter.safetensors", "adapter_config.json", "README.md"
SUMMARY = "summary.json"


class TextSettings(Settings):
    """How texts were read in training."""

    text: str
    """Column of the text."""
    text_pair: str | None
    """Column of the second text."""
    max_length: int
    """Tokens kept of each text."""
    quoting: bool | None = None
    """Are fields of csv and tsv files quoted; null: csv yes, tsv no."""
    special_tokens: bool = True
    """Is a special token of the backbone in a text read as one; it was in adapters that do not say so."""


class AdapterConfig(Settings):
    """adapter_config.json: what is needed to use the adapter, and nothing of how it was trained."""

    version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    """Of this file format."""
    backbone: BackboneConfig
    method: AnyMethodConfig
    labels: LabelsConfig
    """Template that words labels which were not in training."""
    data: TextSettings

    @classmethod
    def of_run(cls, config: RunConfig) -> "AdapterConfig":
        """What a run with this config trains."""
        data = TextSettings(**config.data.model_dump(include=set(TextSettings.model_fields)))
        return cls(backbone=config.backbone, method=config.method, labels=config.labels, data=data)

    def flat(self) -> dict[str, str]:
        """Everything scores depend on, by key. Which backbone it is, is told by its fingerprint instead."""
        aside = {"name_or_path", "revision", "trust_remote_code", "gradient_checkpointing"}
        # How special tokens are read matters where there are some; the data's fingerprint knows that.
        sections = self.model_dump(
            mode="json", exclude={"version": True, "backbone": aside, "data": {"special_tokens"}}
        )
        return {f"{name}.{key}": str(value) for name, section in sections.items() for key, value in section.items()}


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter directory."""

    config: AdapterConfig
    method_state: dict[str, Tensor]
    labels: LabelStates

    def build_method(self, facts: BackboneFacts) -> TuningMethod:
        """The trained method for the backbone of these sizes, in the backbone's compute dtype, as it ran in training.

        UserError if its tensors do not fit.
        """
        method = self.config.method.build(facts, self.labels.prompt_tokens, len(self.labels.names))
        # What belongs into the backbone is there once the model is built: `LTuningModel.load_inside`.
        state = without_inside(self.method_state)
        expected = {name: tuple(tensor.shape) for name, tensor in method.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if expected != found:
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            name = wrong[0]
            raise UserError(
                f"{TENSORS}: {len(wrong)} tensors do not fit {self.config.method.name} on "
                f"'{self.config.backbone.name_or_path}', first '{name}': shape {found.get(name, 'absent')}, "
                f"expected {expected.get(name, 'absent')}; take the backbone the adapter was trained on"
            )
        method.load_state_dict(state)
        return method.to(getattr(torch, self.config.backbone.dtype))

    def wordings(
        self, tokenizer: PreTrainedTokenizerBase, facts: BackboneFacts, hypotheses: Sequence[str]
    ) -> Tensor | None:
        """Tokens [K, Q] of labels worded like this, for `LTuningModel`, where the method reads them.

        UserError where text and wording do not fit the backbone's positions.
        """
        if not (self.config.method.reads_wordings and facts.is_decoder):
            return None
        room = None if facts.max_positions is None else facts.max_positions - self.config.data.max_length
        return continuations(tokenizer, hypotheses, room)

    def check_backbone(self, weights: Mapping[str, str], tokenizer: str) -> None:
        """UserError, naming the part, if these fingerprints are not those of the backbone the adapter was made for."""
        current = {**weights, "tokenizer": tokenizer}
        made_for = {part: self.labels.fingerprint[part] for part in current if part in self.labels.fingerprint}
        changed = differences(made_for, current)
        if changed:
            raise UserError(
                f"the adapter was made for another backbone than '{self.config.backbone.name_or_path}' is now: "
                f"{'; '.join(changed)}; give the backbone it was trained on"
            )


def save_adapter(
    path: Path,
    method_state: Mapping[str, Tensor],
    config: RunConfig,
    labels: LabelStates,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Writes the directory whole or not at all. `metrics`: split -> `split_metrics`, for the model card.

    `summary`, of the run that ends with this adapter, is kept in it as summary.json.
    """
    adapter_config = AdapterConfig.of_run(config)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in method_state.items()}
    with atomic_dir(Path(path), sums=True) as folder:
        save_file(state, folder / TENSORS, metadata={"format": "pt"})
        write_json(folder / CONFIG, adapter_config.model_dump(mode="json"))
        labels.save(folder)
        write_card(folder, Adapter(adapter_config, state, labels), metrics or {})
        if summary is not None:
            write_json(folder / SUMMARY, summary)


def write_card(path: Path, adapter: Adapter, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """(Re)writes README.md of an adapter directory with these figures."""
    config = adapter.config
    text = model_card(
        backbone=config.backbone.name_or_path,
        revision=config.backbone.revision,
        method=config.method.name,
        parameters=sum(tensor.numel() for tensor in adapter.method_state.values()),
        labels=list(zip(adapter.labels.names, adapter.labels.hypotheses, strict=True)),
        pair=config.data.text_pair is not None,
        max_length=config.data.max_length,
        open_labels=config.method.open_labels,
        results=metrics,
    )
    write_text(Path(path) / CARD, text)


def load_adapter(path: Path) -> Adapter:
    """Reads the directory. UserError names the file that is missing, damaged or of a newer format."""
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise UserError(
            f"'{path}' is no adapter directory ({CONFIG} is missing): give the adapter/ folder of a finished run"
        )
    return Adapter(_read_config(path / CONFIG), _read_tensors(path / TENSORS), LabelStates.load(path))


def adapter_folder(path: str | Path) -> Path:
    """The adapter directory that `path` is, or that the run directory `path` holds."""
    run_dir = RunDir(path)
    return run_dir.adapter if run_dir.adapter.is_dir() else run_dir.path


def adapter_fingerprint(path: Path) -> str:
    """Hash of everything in an adapter directory that scores depend on."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).iterdir()):
        if file.name not in (CARD, CALIBRATION):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _read_config(file: Path) -> AdapterConfig:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(values, dict) and isinstance(version := values.get("version"), int) and version > FORMAT_VERSION:
            raise UserError(
                f"'{file}' has format version {version}, this program reads up to {FORMAT_VERSION}: update it"
            )
        return AdapterConfig.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"'{file}' is damaged: {key}: {fault['msg']}; copy the adapter directory again") from error
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read ({error}); copy the adapter directory again") from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{file}' is missing or damaged ({error}); copy the adapter directory again") from error
