"""What can be known before anything is made or loaded: one list of checks for `--dry-run`, `run` and `compare`.

Data files, splits to evaluate, DeepSpeed file, backbone, tokenizer, trackers and directory: the faults of all of them
are reported together, each is looked at once, and it is said once that the hub cannot be reached.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from pipeline.backbone.loading import check_output_layer, check_stored
from pipeline.backbone.text_part import text_part
from pipeline.backbone.trunk import check_split
from pipeline.backbone.weights import open_checkpoint
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.ownership import Kind, check_ours
from pipeline.data.config import SPLITS, DataConfig
from pipeline.data.fingerprint import source_identity, sources_of
from pipeline.data.sources import check_source, split_file
from pipeline.distributed.launcher import world_size
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone, text_encoder
from pipeline.engine.config import EngineConfig
from pipeline.engine.deepspeed_config import resolve_deepspeed
from pipeline.engine.startup import check_trackers
from pipeline.methods.base import MethodConfig
from pipeline.methods.limits import check_injection
from pipeline.training.config import TrainConfig


def check_all(runs: Iterable[tuple[RunConfig, Backbone]], folder: Path, kind: Kind = "run") -> None:
    """Raises one UserError with every fault of these configs, each with its backbone. One rank calls it.

    `folder`, of this kind, is what they are to be run in. Splits to evaluate are looked for where that is one run.
    """
    faults = _Faults()
    faults.look(f"folder {folder}", lambda: check_ours(folder, kind))
    for config, backbone in runs:
        if kind == "run":
            faults.look("splits", partial(_check_evaluated, config.evaluate.splits, config.data.splits))
        given = (config.data, config.method, config.train, config.engine, config.logging.trackers)
        for part, work in _checks(*given, backbone):
            faults.look(part, work)
    faults.raise_all()


def _checks(
    data: DataConfig,
    method: MethodConfig,
    train: TrainConfig,
    engine: EngineConfig,
    trackers: Sequence[str],
    known: Backbone,
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What each check depends on, written out, and the check."""
    backbone = known.config
    columns = f"{data.text}, {data.text_pair}, {data.label}, {data.quoting}"
    for split, source in sources_of(data).items():
        place = split_file(source, split) or source
        yield f"data {place}, {columns}", partial(_check_source, data, split, source)
    settings = f"{train.batch_size}, {train.gradient_accumulation}, {train.max_grad_norm}"
    deepspeed = partial(resolve_deepspeed, engine, train, backbone.dtype, world_size())
    yield f"{engine.deepspeed}, {backbone.dtype}, {settings}", deepspeed
    yield f"trackers {trackers}", lambda: check_trackers(trackers)
    name = f"{backbone.name_or_path} {backbone.revision}"
    yield f"config {name}, {data.max_length}", lambda: check_max_length(known, data.max_length)
    yield f"injection {name}, {backbone.layers}, {method!r}", lambda: check_injection(method, known.facts)
    if method.form is not None and method.form.first_layer:
        yield f"split {name}", lambda: check_split(known.model_config)
    if method.reads_hypotheses:
        yield f"likelihood {name}, {backbone.layers}", lambda: check_output_layer(backbone, known.model_config)
    words = f"{data.template!r}, {data.chat}, {data.max_length}"
    yield f"tokenizer {name}, {words}", lambda: text_encoder(known, data).check(known.facts.vocab_size)
    yield f"weights {name} {method.reads_hypotheses}", lambda: _check_weights(known, method.reads_hypotheses)


def check_max_length(backbone: Backbone, max_length: int) -> None:
    """UserError where the texts may become longer than the backbone's positions, or its config.json cannot be used."""
    allowed = backbone.facts.max_positions
    if allowed is not None and max_length > allowed:
        raise UserError(
            f"data.max_length is {max_length}, but the backbone takes {allowed} tokens: set data.max_length={allowed}"
        )


def _check_weights(backbone: Backbone, output_layer: bool) -> None:
    """Of a folder. Those of a hub model may have to be fetched first, which takes its time."""
    if not Path(backbone.config.location).is_dir():
        return
    if world_size() == 1:
        checkpoint = backbone.opened(Ranks.alone()).checkpoint  # and kept for what comes
    else:  # other ranks open it with this one, later
        checkpoint = text_part(open_checkpoint(backbone.config))
    if output_layer:
        check_stored(backbone.config, backbone.model_config, checkpoint)


def _check_source(data: DataConfig, split: str, source: str) -> None:
    if split_file(source, split) is None:
        source_identity(source, split)
    else:
        check_source(source, split, data)


def _check_evaluated(wanted: Sequence[str], there: Iterable[str]) -> None:
    if not set(wanted) & set(there):
        missing = " or ".join(f"data.{split}" for split in SPLITS if split in wanted)
        raise UserError(
            f"there is nothing to evaluate (evaluate.splits={', '.join(wanted)}): set {missing}, or run the stages "
            "one by one, up to train"
        )


class _Faults:
    """Faults as they are found; each part of a config is looked at once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._faults: list[str] = []
        self._unreached: list[str] = []

    def look(self, part: str, work: Callable[[], Any]) -> None:
        if part in self._seen:
            return
        self._seen.add(part)
        try:
            work()
        except UserError as error:
            if not _is_unreached(error):
                self._faults.append(str(error))
                return
            self._unreached.append(part.partition(" ")[2].partition(" ")[0].rstrip(","))
            # What else is wanted of it would be asked for in vain, for half a minute each. Its cache is still read.
            constants.HF_HUB_OFFLINE = True

    def raise_all(self) -> None:
        if self._unreached:
            names = ", ".join(dict.fromkeys(self._unreached))
            self._faults.append(
                f"the hub cannot be reached ({constants.ENDPOINT}), and its cache does not hold {names}: connect this "
                "machine, fetch them beforehand, or name folders"
            )
        if self._faults:
            raise UserError("; ".join(dict.fromkeys(self._faults)))


def _is_unreached(error: BaseException | None) -> bool:
    """Whether an error comes from a hub that does not answer, or may not be asked."""
    while error is not None:
        if isinstance(error, ConnectionError | LocalEntryNotFoundError):
            return True
        error = error.__cause__ or error.__context__
    return False
