"""The run directory: where everything lies that one run reads and writes."""

import os
import tempfile
from pathlib import Path

from pipeline.core.files import condemn, put_back, remove_temporaries, write_faults_named, write_text
from pipeline.core.ownership import (
    ARTEFACTS,
    CHECKPOINTS,
    CONFIG,
    OWN_NAMES,
    PSEUDO_LABELS,
    SESSIONS,
    WRITTEN_INTO,
    cannot_be_written,
    claim,
)


class RunDir:
    """Paths inside one run directory (a stable surface: docs/checkpoints.md)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / CONFIG
        self.preempted = self.path / "PREEMPTED"
        self.data = self.path / "data"
        self.manifest_file = self.data / "manifest.json"
        self.labels = self.path / "labels"
        self.texts = self.path / "texts"
        self.checkpoints = self.path / CHECKPOINTS
        self.sessions = self.path / SESSIONS
        self.pseudo_labels = self.path / PSEUDO_LABELS
        self.adapter = self.path / "adapter"
        self.adapter_final = self.path / "adapter-final"
        self.summary_file = self.adapter_final / "summary.json"
        self.evaluation = self.path / "evaluation"
        self.metrics_file = self.evaluation / "metrics.json"
        self.predictions_file = self.evaluation / "predictions.parquet"
        self.evaluation_fingerprint_file = self.evaluation / "fingerprint.json"
        self.logs = self.path / "logs"
        self.metrics_log = self.logs / "metrics.jsonl"
        self.trackers_file = self.logs / "trackers.json"
        self.cost_file = self.logs / "cost.json"
        self.memory_file = self.logs / "memory.json"
        self.trace_file = self.logs / "trace.json"
        self.reading_file = self.logs / "reading.json"
        self.reading_picture = self.logs / "reading.svg"

    @property
    def is_finished(self) -> bool:
        """Does it hold the adapter of a training that came to its end?"""
        return self.summary_file.is_file() and self.adapter.is_dir()

    @property
    def is_trained(self) -> bool:
        """Does it hold anything that training has made, finished or not?"""
        return any(path.exists() for path in (self.adapter, self.adapter_final, self.checkpoints, self.sessions))

    def session(self, number: int) -> "RunDir":
        """The run directory of a session of self-training, on this one's data, label states and texts."""
        session = RunDir(self.sessions / f"{number:02d}")
        session.data, session.manifest_file = self.data, self.manifest_file
        session.labels, session.texts = self.labels, self.texts
        # What launchers look for, and what is known of this machine.
        session.preempted, session.memory_file = self.preempted, self.memory_file
        return session

    def create(self) -> None:
        """Makes and marks the directory, and ends what a killed process left half done in it. One rank calls it.

        Raises UserError where it is somebody else's (see `ownership`), or cannot be written.
        """
        claim(self.path, "run")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            for name in ARTEFACTS:
                put_back(self.path / name)
            remove_temporaries(self.path, OWN_NAMES)
            for name, files in WRITTEN_INTO.items():
                if (self.path / name).is_dir():
                    remove_temporaries(self.path / name, files)
            self.preempted.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def write_config(self, text: str) -> None:
        """Keeps the resolved config, untouched if it is the same. One rank calls it."""
        current = self.config_file.read_bytes() if self.config_file.is_file() else None
        if current != text.encode():
            write_text(self.config_file, text)

    def remove_training(self) -> None:
        """Takes away what `train` left and what was made from it, so that it starts afresh. One rank calls it.

        In this order: where this is killed in between, there is the finished run, or nothing to go on from or to be
        taken for the new run's. Raises UserError where something cannot be removed.
        """
        for path in (self.evaluation, self.checkpoints, self.sessions, self.adapter, self.adapter_final):
            with write_faults_named(path):
                if os.path.lexists(path):
                    condemn(path, path.name)
