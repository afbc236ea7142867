"""Scores of every label for every text: the one place that loops over labels."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.bounds import MOST_TEXTS
from pipeline.core.errors import PassTooLargeError
from pipeline.core.progress import counted
from pipeline.data.batches import Ints, PassSize, longest_first, width, within_tokens
from pipeline.data.splits import ReadTexts, Texts
from pipeline.data.text_states import TextStates
from pipeline.distributed.device import free_memory, is_out_of_memory
from pipeline.distributed.ranks import Ranks
from pipeline.distributed.zero import is_partitioned
from pipeline.methods.base import TuningMethod
from pipeline.methods.hypothesis_mean import HypothesisMean
from pipeline.methods.model import StateModel

log = logging.getLogger(__name__)

ONE_TOKEN = {"input_ids": torch.zeros(1, 1, dtype=torch.long), "attention_mask": torch.ones(1, 1, dtype=torch.long)}
"""What a rank without a batch of its own reads while others read theirs."""


def score(
    model: nn.Module,
    texts: Texts,
    label_count: int,
    size: PassSize,
    *,
    ranks: Ranks,
    pad_token_id: int,
    device: torch.device,
    readings: int | None = None,
    hypotheses: int = 1,
    description: str | None = None,
    before_batch: Callable[[], None] | None = None,
) -> NDArray[np.float32]:
    """Scores [N, K] of K = `label_count` labels for N texts, in the order of `texts`, the same on all of `ranks`.

    `model(input_ids [B, T], attention_mask [B, T], candidates [B, C])` -> [B, C] is an LTuningModel or a
    DeepSpeedEngine around one; it runs in eval mode without gradients, on at most `size` = B * C rows at a time and
    rank; where a text has more labels, `sizes` says in what parts to score them. Where all labels of a text are scored
    in one go, `readings` says how many rows that takes; elsewhere a label takes one for each of its `hypotheses`. Texts
    are batched by length; the batches do not depend on the number of ranks, and all ranks run the same number of
    forwards, as ZeRO-3 needs it. Where memory is short, a model that is whole goes on with smaller passes; a sharded
    one raises PassTooLargeError.
    `description` labels the progress that rank 0 shows. `before_batch` is called before each forward of all ranks, and
    may raise to end the scoring.
    """
    lengths = texts.lengths
    assert len(lengths) > 0 and label_count > 0 and size.rows > 0
    chunks = _chunks(label_count, size, readings, hypotheses, int(lengths.max()))
    batches = _batches(lengths, size, readings or len(chunks[0]) * hypotheses)
    scores = torch.zeros(len(lengths), label_count)
    scorer = _Scorer(model, texts, chunks, pad_token_id, device, readings, hypotheses)
    turns = ranks.turns(batches)
    shown = description is not None and ranks.is_main
    with _evaluation(model), torch.no_grad(), counted(log, description or "", len(turns), shown=shown) as work:
        for rows, is_own in turns:
            if before_batch is not None:
                before_batch()
            result = scorer.scores(rows)
            if is_own:
                scores[torch.from_numpy(rows)] = result
            work.update()
    return _sum_over_ranks(scores, ranks, device).numpy()


def score_own(
    model: nn.Module,
    texts: Texts,
    label_count: int,
    size: PassSize,
    *,
    ranks: Ranks,
    pad_token_id: int,
    device: torch.device,
    readings: int | None = None,
    hypotheses: int = 1,
) -> NDArray[np.float32]:
    """Scores [N, K] of this rank's own N texts, which may be none, while each other of `ranks` scores its own.

    As `score`, with the same batches, and so the same bits, as one process that scores these texts (but for labels that
    are cut by the tokens of another rank's longest text). All ranks run the same number of forwards. Collective.
    """
    longest = max(ranks.gather(int(texts.lengths.max(initial=1))))
    chunks = _chunks(label_count, size, readings, hypotheses, longest)
    batches = _batches(texts.lengths, size, readings or len(chunks[0]) * hypotheses)
    scorer = _Scorer(model, texts, chunks, pad_token_id, device, readings, hypotheses)
    scores = torch.zeros(len(texts.lengths), label_count)
    with _evaluation(model), torch.no_grad():
        for step in range(max(ranks.gather(len(batches)))):
            if step >= len(batches):
                _score_batch(model, ONE_TOKEN, chunks, device)
                continue
            scores[torch.from_numpy(batches[step])] = scorer.scores(batches[step])
    return scores.numpy()


def read_with_labels(
    model: nn.Module,
    texts: Texts,
    rows: Ints,
    candidates: Tensor,
    size: PassSize,
    *,
    ranks: Ranks,
    pad_token_id: int,
    device: torch.device,
    before_batch: Callable[[], None] | None = None,
) -> Tensor:
    """What the backbone makes of N texts, these `rows` [N], with each of their own candidates [N, C]: [N, C, M].

    As `score` reads them, the same on all of `ranks`, in float32. Raises PassTooLargeError where memory is short.
    """
    lengths, count = texts.lengths[rows], candidates.shape[1]

    def read(batch: Ints) -> Tensor:
        given = texts.batch(rows[batch], pad_token_id) | {"candidates": candidates[torch.from_numpy(batch)]}
        states: Tensor = model(**{name: part.to(device) for name, part in given.items()}, unscored=True)
        return states.float().cpu()

    batches = _batches(lengths, size, count)
    found = torch.zeros(0)
    turns = ranks.turns(batches)
    with _evaluation(model), torch.no_grad(), counted(log, "judge", len(turns), shown=ranks.is_main) as work:
        for batch, is_own in turns:
            if before_batch is not None:
                before_batch()
            states = _unless_too_large(read, batch)
            if states is None:
                raise _too_large(lengths[batch], count, can_shrink=len(batch) > 1)
            if not len(found):
                found = torch.zeros(len(rows), *states.shape[1:])
            if is_own:
                found[torch.from_numpy(batch)] = states
            work.update()
    return _sum_over_ranks(found, ranks, device)


def scores_of_states(
    method: TuningMethod, states: Tensor, label_states: Tensor, label_mask: Tensor, mean: HypothesisMean | None = None
) -> NDArray:
    """Scores [N, K] of texts by their states [N, M] alone, on the CPU; label_states [K, P, H], label_mask [K, P].

    With `mean` those are of J hypotheses.
    """
    model = StateModel(method, label_states, label_mask, mean)
    texts = ReadTexts(TextStates([states]))
    alone = Ranks.alone()
    count = len(label_mask if mean is None else mean.places)
    return score(model, texts, count, PassSize(4096), ranks=alone, pad_token_id=0, device=states.device, readings=1)


def _chunks(label_count: int, size: PassSize, readings: int | None, hypotheses: int, longest: int) -> list[Tensor]:
    """The labels that texts of at most `longest` tokens are read with at a time, chunk by chunk, the same for all.

    So all ranks make as many passes, whatever batches they have.
    """
    if readings:
        return [torch.arange(label_count)]
    rows = size.rows if size.tokens is None else max(1, size.tokens // width(longest))
    return label_chunks(label_count, rows, hypotheses)


def _batches(lengths: NDArray[np.integer], size: PassSize, rows_per_text: int) -> list[Ints]:
    if size.tokens is not None:
        return within_tokens(lengths, size.tokens // rows_per_text)
    return longest_first(lengths, max(1, size.rows // rows_per_text))


@dataclass
class _Scorer:
    """Scores batches of texts, in smaller passes from the first on that memory was too short for."""

    model: nn.Module
    texts: Texts
    chunks: list[Tensor]
    """Labels that a text is read with at a time."""
    pad_token_id: int
    device: torch.device
    readings: int | None
    hypotheses: int
    most: int = MOST_TEXTS
    """Texts of a forward."""

    def scores(self, rows: Ints) -> Tensor:
        """[B, K] of these rows [B]. Raises PassTooLargeError."""
        parts = []
        while len(rows):
            part = rows[: self.most]
            found = _unless_too_large(self._scores, part)
            if found is None:
                self._shrink(part)
            else:
                parts.append(found)
                rows = rows[len(part) :]
        return torch.cat(parts)

    def _scores(self, rows: Ints) -> Tensor:
        """The same in one pass, but for the labels."""
        return _score_batch(self.model, self.texts.batch(rows, self.pad_token_id), self.chunks, self.device)

    def _shrink(self, rows: Ints) -> None:
        """Halves the passes. Raises PassTooLargeError where that is not possible."""
        labels = len(self.chunks[0])
        can_cut_labels = self.readings is None and labels > 1
        can_shrink = len(rows) > 1 or can_cut_labels
        if not can_shrink or any(map(is_partitioned, self.model.parameters())):
            per_text = self.readings or labels * self.hypotheses
            raise _too_large(self.texts.lengths[rows], per_text, can_shrink=can_shrink)
        if len(rows) > 1:
            self.most = len(rows) // 2
        else:
            self.chunks = [half for chunk in self.chunks for half in chunk.tensor_split(2) if len(half)]
        log.warning("out of memory with %d texts and %d labels in a pass: halved", len(rows), labels)


def _unless_too_large(read: Callable[[Ints], Tensor], rows: Ints) -> Tensor | None:
    """What is read of these rows; None where memory was too short for it."""
    try:
        return read(rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free_memory()  # only here, where the error no longer holds what took it
    return None


def _too_large(lengths: NDArray[np.integer], per_text: int, *, can_shrink: bool) -> PassTooLargeError:
    """Says that memory was too short for texts of these lengths, of so many rows each."""
    tokens = len(lengths) * per_text * width(int(lengths.max()))
    return PassTooLargeError("evaluate.tokens_per_batch", tokens, len(lengths), can_shrink=can_shrink)


def _score_batch(model: nn.Module, batch: dict[str, Tensor], chunks: list[Tensor], device: torch.device) -> Tensor:
    """B texts against all labels, chunk by chunk -> [B, K] float32 on the CPU."""
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    count = len(next(iter(inputs.values())))
    candidates = torch.cat(chunks).to(device).expand(count, -1)
    sizes = {"sizes": [len(labels) for labels in chunks]} if len(chunks) > 1 else {}
    scores: Tensor = model(**inputs, candidates=candidates, **sizes)
    return scores.float().cpu()


def label_chunks(label_count: int, rows_per_forward: int, hypotheses: int = 1) -> list[Tensor]:
    """All labels in order, in chunks of nearly equal size, the first the largest.

    None takes above `rows_per_forward`, with so many `hypotheses` of each label, unless it is one label.
    """
    count = -(-label_count // max(1, rows_per_forward // hypotheses))
    return list(torch.arange(label_count).tensor_split(count))


def _sum_over_ranks(scores: Tensor, ranks: Ranks, device: torch.device, rows: int = 65536) -> Tensor:
    """Joins the ranks' disjoint rows: all others are zero, so the sum is exact. In parts, to spare device memory."""
    if ranks.size > 1:
        for part in scores.split(rows):
            summed = part.to(device)
            dist.all_reduce(summed)
            part.copy_(summed)
    return scores


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
