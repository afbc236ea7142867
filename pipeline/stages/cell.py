"""One cell of a comparison: a run of its own, on data and label states that it shares with other cells."""

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.adapter.directory import load_adapter
from pipeline.backbone.config import BackboneConfig
from pipeline.comparison.config import ComparisonConfig, Group, cell_config
from pipeline.comparison.curve import read_curve
from pipeline.comparison.tables import remove_tables
from pipeline.config import RunConfig, load_config
from pipeline.core.artefact import FORMAT, Artefact, defaults_of, sha256_of, within
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, remove
from pipeline.core.run_dir import RunDir
from pipeline.core.settings import flat
from pipeline.core.yaml import load_yaml
from pipeline.data.config import DataConfig
from pipeline.data.fingerprint import made_from, parts_of_data_absent
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.kept_states import kept_form
from pipeline.engine.rewordings import reworded_hypotheses
from pipeline.methods.model import parameter_count
from pipeline.stages.earlier_run import check_finished
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.encode_texts import encode_texts
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.single_training import Training
from pipeline.stages.train import train
from pipeline.training.provenance import check_training, training_fingerprint

CELL_FILE = "cell.json"
CELL_FORMAT = "2"
"""Of cell.json. 1 had one hash for all parts of its fingerprint."""
FIGURES = ("accuracy", "macro_f1", "mcc", "log_loss", "ece", "n")
REWORDED = "rewordings"
"""Only where evaluate.rewordings asks for it."""

Backbones = dict[tuple[BackboneConfig, bool, bool], Backbone]
"""Those of a comparison, each made once: by its config, and data.special_tokens and data.chat."""


@dataclass(frozen=True)
class Cell:
    """A setting of a group, with a seed."""

    root: Path
    """The comparison's directory."""
    group: Group
    setting: dict[str, Any]
    split: str
    """What is compared on."""
    config: RunConfig
    backbone: Backbone

    @property
    def run(self) -> str:
        """Its run directory, from the comparison's."""
        return str(self.config.run_dir.path.relative_to(self.root))

    @property
    def file(self) -> Path:
        return self.config.run_dir.path / CELL_FILE

    def description(self) -> dict[str, Any]:
        """What its row of the results says of it."""
        return {
            "dataset": self.group.dataset,
            "backbone": self.group.backbone,
            "method": self.group.method,
            "method_name": self.config.method.name,
            "size": str(self.group.size),
            "seed": self.config.run.seed,
            "setting": self.setting,
            "metric": self.config.train.compared_by,
            "split": self.split,
            "patience": self.config.train.early_stopping_patience,
            "run": self.run,
        }

    def prepare(self, ranks: Ranks, *, overwrite: bool) -> dict[str, str]:
        """Makes what it shares with other cells, once for all of them, and links it into its run directory.

        Returns the fingerprint of its row. Raises UserError where it is finished with another config.
        """
        config, shared = self.config, self.root / "shared" / self.group.dataset / self.group.backbone
        common = self._config_in(shared / f"{self.group.size}-{self._shared_name()}")
        if not overwrite:
            check_finished(Training(config, self.backbone, config.run_dir).task, ranks)
        shared.mkdir(parents=True, exist_ok=True)
        # Other ranks of this process group must be let in, other processes not.
        with FileLock(shared / ".lock") if ranks.is_main else nullcontext():
            manifest = preprocess(common, self.backbone)
            of_labels = ranks.on_main(lambda: self._run_of_labels(common.run_dir))
            labels = encode_labels(self._config_in(of_labels.path), self.backbone)
            reworded_hypotheses(labels, config.evaluate.rewordings)  # what does not fit is refused before the long work
            encode_texts(common, self.backbone, sorted(shared.glob("*/texts")))
        given = (config.method, config.train, config.backbone, config.run.seed)
        training = training_fingerprint(*given, manifest, labels)

        def link() -> None:
            cell, source = config.run_dir, common.run_dir
            cell.create()
            self._make_room(training, overwrite)
            _link(source.data, cell.data)
            _link(of_labels.labels, cell.labels)
            if config.method.wants_states or kept_form(config.method, config.train.keep_token_states):
                _link(source.texts, cell.texts)

        ranks.on_main(link)
        return self._fingerprint(manifest)

    def found(self, fingerprint: dict[str, str], judge: bool) -> dict[str, Any] | None:
        """Its row, if it was run with this config on these data, and what it says is still there."""
        run = self.config.run_dir
        if not (self.file.is_file() and run.is_finished and (not judge or run.predictions_file.is_file())):
            return None
        sections = {name: type(section) for name, section in self.config}
        absent = {**defaults_of(**sections), **parts_of_data_absent()}
        row: dict[str, Any] = read_json(self.file)
        # Version 0.1 had one hash: what it did is found finished, stage by stage.
        old = row["fingerprint"] if isinstance(row["fingerprint"], dict) else {}
        is_current = Artefact(self.file, "compare", absent).is_current(old, fingerprint)
        if not is_current or (judge and row["figures"] is None):
            return None
        return _completed(row) | self.description()

    def results(self, judge: bool) -> dict[str, Any]:
        """Trains, and evaluates where it is judged; what came out of it. A UserError names the run that it is about."""
        try:
            return self._results(judge)
        except UserError as error:
            raise type(error)(f"{self.run}: {error}") from error

    def _results(self, judge: bool) -> dict[str, Any]:
        config = self.config
        summary = _completed(train(config, self.backbone))
        metric = config.train.compared_by
        judged, validation = None, summary["validation"]
        splits = ({self.split} if judge else set()) | (set() if config.method.is_trained else {"validation"})
        if splits:
            # Rewordings are for what was chosen.
            keys = {"splits": sorted(splits)} | ({} if judge else {"rewordings": []})
            evaluated = config.evaluate.model_copy(update=keys)
            figures = evaluate(config.model_copy(update={"evaluate": evaluated}), self.backbone)
            judged, validation = figures[self.split] if judge else None, validation or figures["validation"]
        curve = read_curve(config.run_dir.metrics_log, metric)
        return {
            "validation": validation.get(metric),
            "figures": judged and {key: judged[key] for key in (*FIGURES, REWORDED) if key in judged},
            "steps": summary["steps"],
            "best_step": summary["best_step"],
            "converged": summary["converged"],
            "readings": summary["readings"],
            "seconds": curve[-1]["seconds"] if curve else summary["seconds"],
            "parameters": parameter_count(load_adapter(config.run_dir.adapter).method_state),
            "curve": curve,
        }

    def _config_in(self, folder: Path) -> RunConfig:
        """Its config, for a run directory that cells share."""
        run = self.config.run.model_copy(update={"dir": str(folder)})
        evaluated = self.config.evaluate.model_copy(update={"splits": [self.split]})
        return self.config.model_copy(update={"run": run, "evaluate": evaluated})

    def _run_of_labels(self, common: RunDir) -> RunDir:
        """The shared run directory that its label states lie in.

        What injections start from is kept with them. It has a folder of its own, since that of another method would
        take its place, perhaps while another process trains on it.
        """
        method = self.config.method
        start = [str(part) for part in (method.starts_from, method.starts_with) if part is not None]
        if not start:
            return common
        own = RunDir(f"{common.path}-{sha256_of(*start)[:8]}")
        own.create()
        _link(common.data, own.data)
        return own

    def _shared_name(self) -> str:
        """Of the folder of data and label states: the same for all cells that can have them in common."""
        config = self.config
        # A method may have words or a pooling of its own, and a smaller number of texts is drawn by the seed.
        parts = (config.backbone, config.data, config.labels)
        # Without the defaults, so that a release which adds a key goes on with what is there.
        sections = (part.model_dump_json(exclude_defaults=True) for part in parts)
        return sha256_of(*sections, f"seed {config.run.seed}" if config.data.is_drawn else "any seed")[:8]

    def _fingerprint(self, manifest: dict[str, Any]) -> dict[str, str]:
        """Everything its row depends on, part by part."""
        sections = load_yaml(self.config.to_kept_yaml())
        return {
            FORMAT: CELL_FORMAT,
            **{key: str(value) for key, value in flat(sections).items()},
            "the split that is compared": self.split,
            **within("data", made_from(manifest)),
        }

    def _make_room(self, training: dict[str, str], overwrite: bool) -> None:
        """Keeps its config, if it may become the cell's: before anything of another config is changed."""
        run = self.config.run_dir
        if run.is_finished:
            try:
                check_training(run, self.config.method, training)
            except UserError:
                if not overwrite:
                    raise
                remove_tables(self.root)
                remove(self.file)  # first, and always: its fingerprint does not say what all of that was made from
                run.remove_training()
        elif not self._is_kept():
            # Of a run that was interrupted, and cannot go on with another config.
            remove(run.checkpoints)
            remove(run.sessions)
        run.write_config(self.config.to_kept_yaml())

    def _is_kept(self) -> bool:
        """Is config.yaml in the run directory this config? What a new version adds to it is at its default there."""
        config, file = self.config, self.config.run_dir.config_file
        try:
            return not file.is_file() or load_config(file, [f"run.dir={json.dumps(config.run.dir)}"]) == config
        except UserError:
            return False


def cell_of(
    comparison: ComparisonConfig, group: Group, setting: dict[str, Any], seed: int, backbones: Backbones
) -> Cell:
    """The cell, with a backbone out of `backbones`, where it is added if it is not there."""
    config = cell_config(comparison, group, setting, seed)
    backbone = backbone_among(backbones, config.backbone, config.data)
    return Cell(Path(comparison.dir), group, setting, comparison.split, config, backbone)


def backbone_among(backbones: Backbones, config: BackboneConfig, data: DataConfig) -> Backbone:
    """The backbone of these sections, added where it is not there yet."""
    return backbones.setdefault((config, data.special_tokens, data.chat), backbone_of(config, data))


def _completed(found: dict[str, Any]) -> dict[str, Any]:
    """A row or a summary of a training, with what older versions did not say in it. What took steps may have converged,
    but has not shown it.
    """
    return {"converged": found["steps"] == 0, "readings": None, "seconds": 0.0} | found


def _link(target: Path, link: Path) -> None:
    """A relative link: a comparison may be moved and copied. What it takes the place of can be made again."""
    way = os.path.relpath(target.resolve(), link.parent.resolve())
    if not link.is_symlink() or os.readlink(link) != way:
        remove(link)
        link.symlink_to(way, target_is_directory=True)
