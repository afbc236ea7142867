"""Self-training: what was trained on few labelled texts labels many others, and training starts anew on all of them.

After LiST (arXiv 2110.06274): the teacher is what the session before has trained, and the student starts afresh.
Session 0 is supervised training alone; the best session on validation is kept.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.adapter.directory import Adapter, adapter_fingerprint, load_adapter
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.files import link_or_copy
from pipeline.core.run_dir import RunDir
from pipeline.data.config import UNLABELLED
from pipeline.data.pseudo_labels import PseudoLabels, read_pseudo_labels, write_pseudo_labels
from pipeline.data.splits import Split, load_split
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone
from pipeline.engine.kept_states import with_states
from pipeline.engine.memory_limit import within_memory
from pipeline.engine.scorer import loaded_scorer
from pipeline.engine.startup import start
from pipeline.evaluation.metrics import tempered_softmax
from pipeline.stages.single_training import Training, begin_training, finished_summary
from pipeline.training.adapter_writer import AdapterWriter
from pipeline.training.preemption import Preemption
from pipeline.training.run_state import worth

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelfTraining:
    """Trainings in sessions/, each a run of its own, so that what was interrupted goes on in the session it was in."""

    config: RunConfig
    backbone: Backbone
    run: RunDir

    def to_end(self, preemption: Preemption, *, overwrite: bool = False) -> dict[str, Any]:
        """Writes adapter/ and adapter-final/ of the best session, or finds them current; gives its summary. Collective.

        Raises what `pipeline.stages.train` does.
        """
        config, run = self.config, self.run
        _, ranks = start(config)
        labels, fingerprint = Training(config, self.backbone, run).task.given(ranks)
        if not overwrite:
            summary = ranks.on_main(lambda: finished_summary(run, config.method, fingerprint))
            if summary is not None:
                return summary
        ranks.on_main(lambda: begin_training(run, config.to_kept_yaml(), overwrite))
        summaries = [self._session(number, ranks, preemption) for number in range(config.train.self_training + 1)]
        best = best_session(summaries, config.train.best_metric)
        log.info("train: session %d did best on validation", best)
        readings = sum(summary["readings"] for summary in summaries)
        found = summaries[best] | {"fingerprint": fingerprint, "readings": readings}
        found |= {"session": best, "sessions": _shown(summaries)}
        adapters = AdapterWriter(run, config.adapter_config(), labels.of_adapter(), fingerprint)
        ranks.on_main(lambda: _keep(run.session(best), adapters, found))
        return found

    def _session(self, number: int, ranks: Ranks, preemption: Preemption) -> dict[str, Any]:
        """The summary of a session, when all before it are done. Collective."""
        session = self.run.session(number)
        ranks.on_main(session.create)
        log.info("train: session %d of self-training%s", number, "" if number else ": the labelled texts alone")
        pseudo = None
        if number:
            pseudo = self._pseudo_labels(self.run.session(number - 1), session, ranks, preemption)
        supervised = {"self_training": 0, "pseudo_labels": "hard", "pseudo_weights": "confidence"}
        config = self.config.model_copy(update={"train": self.config.train.model_copy(update=supervised)})
        return Training(config, self.backbone, session, pseudo).to_end(preemption)

    def _pseudo_labels(self, teacher: RunDir, session: RunDir, ranks: Ranks, preemption: Preemption) -> PseudoLabels:
        """What the teacher's adapter says of the unlabelled texts, kept in the session's directory. Collective.

        Raises UserError where ranks cannot read what rank 0 has written.
        """
        split, file = load_split(session.data / UNLABELLED), session.pseudo_labels
        made_from = ranks.on_main(lambda: {"teacher": adapter_fingerprint(teacher.adapter), "texts": split.digest()})
        if not ranks.on_main(lambda: read_pseudo_labels(file, made_from) is not None):
            scores = self._scores(load_adapter(teacher.adapter), split, session, ranks, preemption)
            probabilities = tempered_softmax(scores).astype(np.float32)
            ranks.on_main(lambda: write_pseudo_labels(file, probabilities, made_from))
        # All ranks take what the file says, as a run that goes on later does.
        kept = ranks.on_every(lambda: read_pseudo_labels(file, made_from))
        if kept is None:
            raise UserError(f"'{file}' is not what rank 0 has written: do all ranks see the same run directory?")
        return PseudoLabels(kept, self.config.train.pseudo_labels, self.config.train.pseudo_weights)

    def _scores(
        self, adapter: Adapter, split: Split, session: RunDir, ranks: Ranks, preemption: Preemption
    ) -> NDArray[np.float32]:
        """[N, K] of the unlabelled texts. Collective. A signal interrupts it between two batches."""
        accelerator, _ = start(self.config)
        if adapter.config.method.reads_stored:
            split = with_states(session, self.backbone, ranks, {UNLABELLED: split})[UNLABELLED]
        settings = ranks.on_every(lambda: within_memory(session, self.config.evaluate, "evaluate"))
        with loaded_scorer(accelerator, ranks, self.backbone, adapter, settings, "train") as scorer:
            where = "before the pseudo labels were made"
            return scorer.scores(split, "pseudo labels", lambda: preemption.check(accelerator, ranks, session, where))


def best_session(summaries: Sequence[Mapping[str, Any]], metric: str) -> int:
    """The one whose validation metric is best; of equals, which few texts make common, that of the least log-loss."""
    worths = [[worth(each, summary["validation"]) for each in (metric, "log_loss")] for summary in summaries]
    return worths.index(max(worths))


def _shown(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the summary of a run says of each of its sessions."""
    keys = ("accuracy", "macro_f1", "mcc", "log_loss")
    return [{key: summary["validation"][key] for key in keys} for summary in summaries]


def _keep(session: RunDir, adapters: AdapterWriter, summary: dict[str, Any]) -> None:
    """Makes the adapters of a session, and its log, those of the run."""
    run = adapters.run_dir
    run.logs.mkdir(exist_ok=True)
    for source, target in ((session.metrics_log, run.metrics_log), (session.cost_file, run.cost_file)):
        target.unlink(missing_ok=True)  # of an earlier training, where there is no other: fitted methods log no steps
        if source.is_file():
            link_or_copy(source, target)
    adapters.write_best(load_adapter(session.adapter).method_state, summary["validation"])
    adapters.write_final(load_adapter(session.adapter_final).method_state, summary)
