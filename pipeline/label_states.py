"""Label states: the frozen backbone's reading of each label's hypothesis, made once and kept in a file."""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.rundir import read_json, write_json

STATES_FILE = "label_states.safetensors"
NAMES_FILE = "labels.json"
FORMAT = 1


@dataclass(frozen=True)
class LabelStates:
    """The labels of a classifier in index order, as words and as states."""

    names: list[str]
    hypotheses: list[str]
    states: Tensor
    """[K, P, H], last hidden states in the backbone's compute dtype; zero where `mask` is False."""
    mask: Tensor
    """[K, P] bool"""
    fingerprint: dict[str, str]
    """What the states were made from: backbone, weights, tokenizer, hypotheses, dtype."""

    @property
    def prompt_tokens(self) -> int:
        """P"""
        return self.mask.shape[1]

    def save(self, folder: Path) -> None:
        """Writes both files into an existing folder."""
        tensors = {"states": self.states.contiguous().cpu(), "mask": self.mask.contiguous().cpu()}
        safetensors.torch.save_file(
            tensors, folder / STATES_FILE, metadata={"fingerprint": json.dumps(self.fingerprint)}
        )
        words = {"version": FORMAT, "names": self.names, "hypotheses": self.hypotheses, "fingerprint": self.fingerprint}
        write_json(folder / NAMES_FILE, words)

    @classmethod
    def load(cls, folder: Path) -> "LabelStates":
        """Reads what `save` wrote. Raises UserError for missing, damaged or mixed-up files."""
        words = read_json(folder / NAMES_FILE)
        path = folder / STATES_FILE
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                states, mask = file.get_tensor("states"), file.get_tensor("mask")
        except (OSError, SafetensorError) as error:
            raise UserError(f"'{path}' is missing or damaged ({error}): run encode-labels again") from error
        if words.get("version") != FORMAT or json.loads(metadata.get("fingerprint", "{}")) != words["fingerprint"]:
            raise UserError(f"'{path}' does not belong to '{NAMES_FILE}' beside it: run encode-labels again")
        return cls(words["names"], words["hypotheses"], states, mask.bool(), words["fingerprint"])


def read_hypotheses(backbone: nn.Module, input_ids: Tensor, mask: Tensor, rows_per_forward: int = 32) -> Tensor:
    """The backbone's last hidden states of hypotheses: input_ids [K, P], mask [K, P] -> [K, P, H] on the CPU.

    `backbone` is a FrozenBackbone or an engine around one; under ZeRO-3 every rank must call this alike.
    """
    chunks = []
    with torch.no_grad():
        for start in range(0, len(input_ids), rows_per_forward):
            rows = slice(start, start + rows_per_forward)
            hidden = backbone(input_ids[rows], mask[rows].long())
            chunks.append((hidden * mask[rows].unsqueeze(-1)).cpu())
    states = torch.cat(chunks)
    if not torch.isfinite(states).all():
        raise UserError(
            "the backbone's states of the labels are not finite: check its weights, or set backbone.dtype=float32"
        )
    return states
