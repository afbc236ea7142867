"""Scores of several adapters' texts at once: each method runs as written, and all wait together for the backbone.

A method asks the backbone in the middle of its `scores`. Each runs in a greenlet of its own, which stops there; when
all have stopped, what they ask is read in one go. There is one thread, so nothing of this runs at the same time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from pipeline.data.splits import TokenizedTexts
from pipeline.distributed.device import is_out_of_memory
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.evaluation.scoring import label_chunks
from pipeline.serving.reading import Asked, AskingReader, Texts, read_together


@dataclass(frozen=True)
class Job:
    """Texts of one adapter that are scored in one call of its method."""

    adapter: LoadedAdapter
    rows: Sequence[dict[str, Any]]
    """The B texts' tokens."""


class OutOfMemoryError(Exception):
    """There was no memory for so many rows at a time."""


def score_together(jobs: Sequence[Job], positions: int) -> tuple[list[Tensor | Exception], int]:
    """For each job its scores [B, K], float32 on the CPU, or what went wrong in its method; and the number of passes.

    The adapters share one backbone, which reads at most `positions` tokens in a pass. Raises OutOfMemoryError, and
    whatever the backbone raises, which concerns all jobs.
    """
    hub = getcurrent()
    found: dict[int, Tensor | Exception] = {}
    waiting: dict[int, tuple[greenlet, Asked]] = {}

    def go_on(place: int, run: greenlet, *given: Any) -> None:
        """Until the job asks again, or ends."""
        waiting.pop(place, None)
        try:
            asked = run.switch(*given)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            found[place] = error
            return
        if run.dead:
            found[place] = asked
        else:
            waiting[place] = run, asked

    passes, shortage = 0, None
    try:
        with torch.no_grad():
            for place, job in enumerate(jobs):
                go_on(place, greenlet(partial(_scores, job)), hub.switch)
            while waiting:
                backbone = jobs[0].adapter.model.backbone
                answers, count = read_together(backbone, [asked for _, asked in waiting.values()], positions)
                passes += count
                for (place, (run, _)), answer in zip(list(waiting.items()), answers, strict=True):
                    go_on(place, run, answer)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = str(error)
    if shortage is not None:  # only here, without what the error's frames hold
        waiting.clear()
        raise OutOfMemoryError(shortage)
    return [found[place] for place in range(len(jobs))], passes


def _scores(job: Job, ask: Callable[[Asked], Tensor]) -> Tensor:
    """As `evaluation.scoring.score` does it for one batch."""
    adapter, model = job.adapter, job.adapter.model
    batch = TokenizedTexts(job.rows).batch(torch.arange(len(job.rows)).numpy(), adapter.pad_token_id)
    inputs = {name: tensor.to(adapter.device) for name, tensor in batch.items()}
    texts = Texts(inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids"))
    reader = AskingReader(model, texts, ask)
    count = len(adapter.labels)
    chunks = (
        [torch.arange(count)]
        if adapter.readings
        else label_chunks(count, adapter.pass_size.rows, model.most_hypotheses)
    )
    parts = []
    for labels in chunks:
        candidates = labels.to(adapter.device).expand(len(job.rows), -1)
        parts.append(model.scores(reader, candidates).float())
    return torch.cat(parts, dim=1).cpu()
