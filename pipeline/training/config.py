"""Config keys of training."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.bounds import MOST_SESSIONS, MOST_STEPS, MOST_TEXTS, MOST_TOKENS_OF_PASS
from pipeline.core.settings import Distinct, PathSetting, Settings


class TrainConfig(Settings):
    """The optimization."""

    objective: Literal["candidates", "pairs", "batch"] = "candidates"
    """candidates: softmax cross-entropy over labels; pairs (paper): binary cross-entropy, half of the labels wrong (not
    with many labels and a fitted head, whose scores compare labels); batch (FastFit): cross-entropy over the labels
    of the step's texts, on all ranks, each as often as it is there."""
    candidates: int | Literal["all"] | None = None
    """How many labels a text is scored against with objective candidates: the true one and randomly drawn wrong ones.
    A number (all, where there are fewer), or all. null: all, but 8 where a text is read once per label (label tuning
    without a shortlist)."""
    max_steps: int | None = Field(default=None, ge=0, le=MOST_STEPS)
    """Optimizer steps; null: as many as `epochs` need. 0: none, for methods that begin fitted (method.head=fitted)."""
    epochs: int = Field(default=3, ge=1, le=MOST_STEPS)
    """Passes over the training texts; ignored when max_steps is set."""
    batch_size: int = Field(default=16, ge=1, le=MOST_TEXTS)
    """Texts per rank in one forward pass (at most, when a run is resumed on another number of ranks)."""
    gradient_accumulation: int = Field(default=1, ge=1, le=MOST_TEXTS)
    """Forward passes per optimizer step."""
    tokens_per_batch: int | None = Field(default=None, ge=1, le=MOST_TOKENS_OF_PASS)
    """Most tokens per rank in one forward pass, padding counted, a text once for each label that it is read with; null:
    passes of batch_size texts. A step stays one over batch_size * gradient_accumulation texts of each rank, cut into
    other passes, so it differs by rounding alone (and by the draws of dropout)."""
    keep_token_states: bool = False
    """With method.first_layer or method.position=after: compute the token states that no label affects once, and keep
    them in texts/ (at most engine.states_gib) for all epochs, and for all cells of a comparison. The adapter is the
    same up to rounding."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up. linear, cosine: it decays to zero at the last step of max_steps or epochs;
    constant: it does not decay. Take constant where early stopping is to end training: with a decay, training settles
    only near the last step."""
    warmup_ratio: float = Field(default=0.06, ge=0, le=1)
    """Share of the steps (of max_steps or epochs) in which the learning rate rises linearly."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of matrices; vectors and scalars have none."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient norm is clipped to this; 0: no clipping."""
    eval_every: int = Field(default=200, ge=1, le=MOST_STEPS)
    """Steps between two evaluations on the validation split (and at the end)."""
    save_every: int = Field(default=200, ge=1, le=MOST_STEPS)
    """Steps between two checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1, le=MOST_STEPS)
    """Newest checkpoints kept."""
    on_write_error: Literal["warn", "stop"] = "warn"
    """When a checkpoint cannot be written (full disk): warn loudly and go on, or stop at the next one."""
    early_stopping_patience: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Stop when best_metric has not improved for this many evaluations in a row: training has converged. The evaluation
    before the first step does not count, even if it stays the best. Stop also when none can be better, as after an
    accuracy of 1. max_steps or epochs is then only a cap; a training that reaches it has not been shown to converge.
    null: train to the last step."""
    best_metric: Literal["accuracy", "macro_f1", "mcc", "log_loss"] = "accuracy"
    """Validation metric by which the best adapter is chosen: accuracy, macro_f1, mcc or log_loss. Of equally good ones
    it is that of the least log-loss."""
    resume: PathSetting = "auto"
    """auto: from the newest whole checkpoint, if there is one; never; or the path of a checkpoint."""
    start_from: PathSetting | None = None
    """An adapter directory or a run of the same method and backbone: training starts from its trained prompt, prefix
    or producer, with a new head. Labels and texts may be others. null: from the method's own start."""
    self_training: int = Field(default=0, ge=0, le=MOST_SESSIONS)
    """Sessions of self-training with data.unlabelled, after one of supervised training alone. In each, the adapter of
    the session before gives these texts pseudo labels, and training starts again on them and the labelled texts. The
    session that is best on validation is kept; of equals, the one with the lowest log-loss. 0: none."""
    pseudo_labels: Literal["hard", "soft"] = "hard"
    """What self-training learns from an unlabelled text. hard: its likeliest label; soft: all labels with their
    probabilities."""
    pseudo_weights: Literal["confidence", "equal"] = "confidence"
    """Weight of each unlabelled text in self-training. confidence: in proportion to the probability of its likeliest
    label; equal: all the same. Together they weigh as much as the labelled texts, or less if they are fewer."""
    preemption_signals: Distinct[Literal["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"]] = ["SIGTERM", "SIGINT"]
    """Signals after which training writes a checkpoint and exits with status 85: any of SIGTERM, SIGINT, SIGUSR1,
    SIGUSR2. A second SIGINT ends it at once."""
    log_every: int = Field(default=10, ge=1, le=MOST_STEPS)
    """Steps between two lines in logs/metrics.jsonl."""

    @property
    def compared_by(self) -> str:
        """The metric by which the adapter is compared with others: one that can be taken text by text."""
        return "accuracy" if self.best_metric == "log_loss" else self.best_metric

    def steps(self, per_epoch: int) -> int:
        """All of a training whose epochs have so many."""
        return self.epochs * per_epoch if self.max_steps is None else self.max_steps

    @model_validator(mode="after")
    def _fits_its_objective(self) -> "TrainConfig":
        taken = {"pairs": "one label per text", "batch": "the labels of the batch"}.get(self.objective)
        if taken and self.candidates is not None:
            raise ValueError(
                f"train.candidates has no meaning with train.objective={self.objective}, which takes {taken}"
            )
        if self.objective == "batch" and self.batch_size * self.gradient_accumulation < 2:
            raise ValueError("train.objective=batch needs two texts or more per step: raise train.batch_size")
        return self

    @model_validator(mode="after")
    def _sessions_have_targets(self) -> "TrainConfig":
        if self.self_training and self.objective == "pairs":
            raise ValueError(
                "train.self_training learns shares of labels, objective pairs has none: set train.objective=candidates"
            )
        if self.self_training and self.resume not in ("auto", "never"):
            raise ValueError("train.self_training finds its checkpoints by itself: set train.resume=auto, not a path")
        return self

    @field_validator("candidates", mode="before")
    @classmethod
    def _number_or_all(cls, value: Any) -> Any:
        if value in (None, "all") or (type(value) is int and 2 <= value <= MOST_TEXTS):
            return value
        raise ValueError(f"must be all, or a number from 2 to {MOST_TEXTS}")
