"""Texts as every layer of the backbone leaves them, read once by all ranks in shares and kept in memory."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.backbone.config import Pooling
from pipeline.backbone.every_layer import PARTS
from pipeline.core.progress import counted
from pipeline.data.batches import longest_first
from pipeline.data.splits import Split
from pipeline.data.text_states import check_finite
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerStates:
    """Pooled states of N texts, of which each rank holds its share."""

    share: Tensor
    """[L, 4, rows, H] in the compute dtype, as `EveryLayer` makes them"""
    places: list[NDArray[np.int64]]
    """Of each rank's rows among the texts"""

    def of(self, layers: int | list[int], pooling: Pooling, ranks: Ranks) -> Tensor:
        """States [N, M] float32, of `backbone.layers` like these, in the order of the texts. Collective."""
        read = [layers] if isinstance(layers, int) else layers
        own = self.share[[layer - 1 for layer in read]][:, PARTS[pooling]]
        parts = ranks.gather(own.permute(2, 1, 0, 3).flatten(1))
        whole = torch.empty(sum(map(len, parts)), parts[0].shape[1])
        for places, part in zip(self.places, parts, strict=True):
            whole[torch.from_numpy(places)] = part.float()
        return whole


def bytes_of_states(backbone: Backbone, texts: int) -> int:
    """What the states of so many texts take, on all ranks together."""
    facts = backbone.facts
    return texts * facts.layers * len(PARTS) * facts.hidden_size * backbone.config.torch_dtype.itemsize


@dataclass(frozen=True)
class LayerReader:
    """How texts are read by an `EveryLayer`, or a DeepSpeed engine around one, on all ranks."""

    accelerator: Accelerator
    ranks: Ranks
    model: nn.Module
    backbone: Backbone
    batch_size: int

    def read(self, split: Split, rows: NDArray[np.int64], name: str) -> LayerStates:
        """Reads these rows [N] in batches of like length, which do not depend on the number of ranks. Collective.

        UserError where states are not finite.
        """
        batches = longest_first(split.lengths[rows], self.batch_size)
        rank, size = self.ranks.rank, self.ranks.size
        places = [np.concatenate([rows[:0], *batches[each::size]]) for each in range(size)]
        facts = self.backbone.facts
        shape = (facts.layers, len(PARTS), len(places[rank]), facts.hidden_size)
        share, done = torch.empty(shape, dtype=self.backbone.config.torch_dtype), 0
        turns = self.ranks.turns(batches)
        with counted(log, f"choose-reading: {name}", len(turns), shown=self.ranks.is_main) as work:
            for batch, is_own in turns:
                states = self._states(split, rows[batch])
                if is_own:
                    share[:, :, done : done + len(batch)] = states
                    done += len(batch)
                work.update()
        self.ranks.on_every(lambda: check_finite(share))
        return LayerStates(share, places)

    @torch.no_grad()
    def _states(self, split: Split, rows: NDArray[np.int64]) -> Tensor:
        inputs = split.batch(rows, self.backbone.pad_token_id)
        states: Tensor = self.model(**{key: value.to(self.accelerator.device) for key, value in inputs.items()})
        return states.cpu()
