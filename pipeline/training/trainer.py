"""The training loop's parts: the engine around the model, one step, and the trained state."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from pipeline.core.errors import PassTooLargeError
from pipeline.data.batches import (
    Ints,
    batch_candidates,
    epoch_batches,
    pair_candidates,
    rank_slice,
    rank_slice_within,
    sampled_candidates,
    width,
)
from pipeline.data.splits import Split
from pipeline.distributed.device import is_out_of_memory
from pipeline.engine.determinism import deterministic_backward
from pipeline.engine.models import build_engine, load_trained
from pipeline.methods.base import MethodConfig
from pipeline.methods.limits import candidate_count, readings_per_text
from pipeline.methods.model import LTuningModel
from pipeline.training.config import TrainConfig
from pipeline.training.optimizer import build_optimizer, learning_rate
from pipeline.training.optimizer_state import OptimizerState, gather_parameters, gather_state, restore_state


class Trainer:
    """A model, its engine and its optimizer. A step is a function of the state, the seed and the step's number."""

    def __init__(
        self,
        accelerator: Accelerator,
        settings: TrainConfig,
        model: LTuningModel,
        texts: Split,
        *,
        method: MethodConfig,
        seed: int,
        pad_token_id: int,
        state: OptimizerState | None = None,
    ) -> None:
        """`method`: the model's; `state`: what an earlier run left, on any number of ranks."""
        self.accelerator, self.settings, self.texts = accelerator, settings, texts
        self.seed, self.pad_token_id = seed, pad_token_id
        self.label_count = model.label_count
        self.candidate_count = candidate_count(method, self.label_count, settings.candidates)
        self.global_batch = settings.batch_size * settings.gradient_accumulation * accelerator.num_processes
        self._readings_per_text = partial(readings_per_text, method, self.label_count, hypotheses=model.most_hypotheses)
        self._epoch_rows = texts.epoch_rows
        self.steps_per_epoch = -(-len(self._epoch_rows) // self.global_batch)
        self.total_steps = settings.steps(self.steps_per_epoch)
        self._epoch, self._batches = -1, list[Ints]()
        self.after_step: Callable[[], None] = lambda: None
        """Called at the end of every step."""
        if state is not None:
            # Before the engine is built: it makes its copies in the compute dtype from these.
            load_trained(model, state.parameters)
        optimizer = build_optimizer(model.trainable().values(), settings)
        _check_optimizer(optimizer, model)
        self.engine, self.optimizer = build_engine(accelerator, model, optimizer)
        self.model = model
        if state is not None:
            restore_state(self.engine, model.trainable(), state)

    def step(self, step: int) -> float:
        """Optimizer step number `step`, from 0; its loss, averaged over the global batch."""
        rows = self._rows(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.total_steps, self.settings)
        self.engine.train()
        self.model.method.begin_tuning()
        candidates, targets, offsets = self._candidates(rows, step)
        parts = self._parts(rows, self._readings_per_text(candidates.shape[1]))
        self.accelerator.step, self.accelerator.gradient_accumulation_steps = 0, len(parts)
        losses = []
        for part in parts:
            self._seed_dropout(step, int(part[0]))
            losses.append(self._pass(rows[part], candidates[part], targets[part], offsets))
        own = torch.stack(losses).sum() / self.settings.gradient_accumulation
        mean = float(self.accelerator.reduce(own, "mean"))
        self.after_step()
        return mean

    def _pass(self, rows: Ints, candidates: Ints, targets: np.ndarray, offsets: np.ndarray | None) -> Tensor:
        """Forward and backward of one pass, and with the last one the update; its share of the step's loss.

        Raises PassTooLargeError, after which neither trainer nor engine can go on.
        """
        try:
            with self.accelerator.accumulate(self.engine):
                # DeepSpeed divides by gradient_accumulation, in how many parts ever a step is cut.
                loss = self._loss(rows, candidates, targets, offsets) * (len(rows) / self.settings.batch_size)
                with deterministic_backward():
                    self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            return loss.detach()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Only here, where the error no longer holds what took the memory.
        tokens = len(rows) * self._readings_per_text(candidates.shape[1]) * width(int(self.texts.lengths[rows].max()))
        raise PassTooLargeError("train.tokens_per_batch", tokens, len(rows), can_shrink=len(rows) > 1)

    def readings(self, steps: int) -> int:
        """How many texts the backbone reads in so many steps, on all ranks, each as often as it is read."""
        if self.settings.objective == "batch":
            counts = (self._candidates(self._rows(step), step)[0].shape for step in range(steps))
            return sum(texts * self._readings_per_text(candidates) for texts, candidates in counts)
        candidates = 1 if self.settings.objective == "pairs" else self.candidate_count
        return steps * self.global_batch * self._readings_per_text(candidates)

    def _rows(self, step: int) -> Ints:
        """The texts of a step's global batch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            lengths = self.texts.lengths[self._epoch_rows]
            self._batches = epoch_batches(lengths, self.global_batch, self.seed, epoch)
            self._epoch = epoch
        return self._epoch_rows[self._batches[position]]

    def _parts(self, rows: Ints, readings: int) -> list[Ints]:
        """Places in a global batch that this rank reads, pass by pass; `readings`: of a text."""
        settings, rank, world = self.settings, self.accelerator.process_index, self.accelerator.num_processes
        if settings.tokens_per_batch is not None:
            tokens = settings.tokens_per_batch // readings
            return rank_slice_within(self.texts.lengths[rows], rank, world, tokens)
        return rank_slice(np.arange(len(rows)), rank, world, settings.batch_size, settings.gradient_accumulation)

    def _candidates(self, rows: Ints, step: int) -> tuple[Ints, np.ndarray, np.ndarray | None]:
        """Labels and targets of a step's whole global batch, so that they do not depend on how ranks share it.

        And what is added to every text's scores of the candidates, if anything is. Targets are places among the
        candidates [B] or, with soft labels, the weighted share of each of them [B, C].
        """
        candidates, targets, offsets = self._of_labels(rows, step)
        if self.texts.targets is not None:
            targets = self.texts.targets.among(rows, candidates)
        return candidates, targets, offsets

    def _of_labels(self, rows: Ints, step: int) -> tuple[Ints, np.ndarray, np.ndarray | None]:
        """The same by the texts' labels alone."""
        labels, epoch = self.texts.labels[rows], step // self.steps_per_epoch
        if self.settings.objective == "batch":
            return batch_candidates(labels)
        if self.settings.objective == "pairs":
            before = step * self.global_batch
            return *pair_candidates(rows, labels, self.seed, epoch, self.label_count, before), None
        return *sampled_candidates(rows, labels, self.seed, epoch, self.label_count, self.candidate_count), None

    def _seed_dropout(self, step: int, position: int) -> None:
        """Dropout is drawn anew from (seed, step, position in the global batch): a resumed run draws the same."""
        key = np.random.SeedSequence([self.seed, step, position])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def _loss(self, rows: Ints, candidates: Ints, targets: np.ndarray, offsets: np.ndarray | None) -> Tensor:
        """Binary cross-entropy of pairs (paper, A.3), or softmax cross-entropy over candidate labels: the texts' mean.

        With `offsets` [C], the logarithms of how often each label stands in the batch, it is FastFit's contrast
        (arXiv 2404.12365) of each text with the label of every text of the batch.
        """
        device = self.accelerator.device
        inputs = {name: value.to(device) for name, value in self.texts.batch(rows, self.pad_token_id).items()}
        scores = self.engine(**inputs, candidates=torch.as_tensor(candidates, device=device))
        target = torch.as_tensor(targets, device=device)
        if self.settings.objective == "pairs":
            return functional.binary_cross_entropy_with_logits(scores[:, 0], target)
        if offsets is not None:
            scores = scores + torch.as_tensor(offsets, device=device)
        return functional.cross_entropy(scores, target)

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def gradient_norm(self) -> float:
        """Of the last step, before clipping."""
        return float(self.engine.get_global_grad_norm() or 0.0)

    def trained_state(self) -> dict[str, Tensor]:
        """The L-Tuning parameters in fp32 on the CPU, whole, and the method's buffers. Every rank must call this."""
        return gather_parameters(self.model.trainable()) | self._fixed()

    def optimizer_state(self) -> OptimizerState:
        """Parameters and Adam's state after at least one step. Every rank must call this."""
        state = gather_state(self.engine, self.model.trainable())
        return replace(state, parameters=state.parameters | self._fixed())

    def _fixed(self) -> dict[str, Tensor]:
        """What belongs to the method's state and is not trained."""
        return {name: buffer.cpu().clone() for name, buffer in self.model.method.named_buffers()}


def _check_optimizer(optimizer: torch.optim.Optimizer, model: LTuningModel) -> None:
    """The optimizer holds exactly the method's parameters, and nothing else takes a gradient."""
    method = {id(parameter) for parameter in model.trainable().values()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == method and all(id(p) in method for p in model.parameters() if p.requires_grad)
