"""The training loop's parts: the engine around the model, one step, and the trained state."""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor
from torch.nn import functional

from pipeline.config import RunConfig
from pipeline.data.batches import (
    all_candidates,
    collate,
    epoch_batches,
    pair_candidates,
    rank_slice,
    sampled_candidates,
)
from pipeline.data.splits import Split
from pipeline.engine.inference import exact_buffers
from pipeline.engine.optimization import build_optimizer, learning_rate
from pipeline.model import LTuningModel


class Trainer:
    """A model, its engine and its optimizer, stepped through the data in an order that only the seed decides."""

    def __init__(
        self, accelerator: Accelerator, config: RunConfig, model: LTuningModel, train: Split, pad_token_id: int
    ) -> None:
        self.accelerator, self.config, self.train, self.pad_token_id = accelerator, config, train, pad_token_id
        self.label_count = len(model.label_states)
        settings = config.train
        self.global_batch = settings.batch_size * settings.gradient_accumulation * accelerator.num_processes
        self.steps_per_epoch = -(-len(train) // self.global_batch)
        self.total_steps = settings.max_steps or settings.epochs * self.steps_per_epoch
        optimizer = build_optimizer(model.trainable().values(), settings)
        _check_optimizer(optimizer, model)
        with exact_buffers(model):
            self.engine, self.optimizer = accelerator.prepare(model, optimizer)
        self.model = model

    def steps(self) -> Iterator[float]:
        """Trains to the end; yields each step's loss, averaged over the global batch."""
        for step in range(self.total_steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if position == 0:
                batches = epoch_batches(self.train.lengths, self.global_batch, self.config.run.seed, epoch)
            rate = learning_rate(step, self.total_steps, self.config.train)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            yield self._step(batches[position], epoch)

    def _step(self, batch: np.ndarray, epoch: int) -> float:
        self.engine.train()
        settings, rank, world = self.config.train, self.accelerator.process_index, self.accelerator.num_processes
        losses = []
        for rows in rank_slice(batch, rank, world, settings.batch_size, settings.gradient_accumulation):
            with self.accelerator.accumulate(self.engine):
                loss = self._loss(rows, epoch)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        return float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))

    def _loss(self, rows: np.ndarray, epoch: int) -> Tensor:
        """Binary cross-entropy of pairs (paper, A.3), or softmax cross-entropy over candidate labels."""
        seed, labels, device = self.config.run.seed, self.train.labels[rows], self.accelerator.device
        inputs = {name: value.to(device) for name, value in collate(self.train.take(rows), self.pad_token_id).items()}
        if self.config.train.objective == "pairs":
            candidates, targets = pair_candidates(rows, labels, seed, epoch, self.label_count)
            scores = self.engine(**inputs, candidates=torch.as_tensor(candidates, device=device))
            return functional.binary_cross_entropy_with_logits(scores[:, 0], torch.as_tensor(targets, device=device))
        if self.config.train.candidates is None:
            candidates, index = all_candidates(labels, self.label_count)
        else:
            sample = self.config.train.candidates
            candidates, index = sampled_candidates(rows, labels, seed, epoch, self.label_count, sample)
        scores = self.engine(**inputs, candidates=torch.as_tensor(candidates, device=device))
        return functional.cross_entropy(scores, torch.as_tensor(index, device=device))

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def gradient_norm(self) -> float:
        """Of the last step, before clipping."""
        return float(self.engine.get_global_grad_norm() or 0.0)

    def trained_state(self) -> dict[str, Tensor]:
        """The L-Tuning parameters in fp32 on the CPU, whole. Every rank must call this."""
        state = {}
        for name, parameter in self.model.trainable().items():
            full = safe_get_full_fp32_param(parameter)
            state[name] = (parameter.detach() if full is None else full).float().cpu().clone()
        return state


def _check_optimizer(optimizer: torch.optim.Optimizer, model: LTuningModel) -> None:
    """The optimizer holds exactly the method's parameters, and nothing else takes a gradient."""
    method = {id(parameter) for parameter in model.trainable().values()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == method and all(id(p) in method for p in model.parameters() if p.requires_grad)
