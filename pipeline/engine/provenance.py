"""What the artefacts of a run directory were made from, and whether that is what the config says now."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.adapter.directory import SUMMARY, adapter_fingerprint
from pipeline.adapter.label_states import LabelStates
from pipeline.config import RunConfig
from pipeline.core.artefact import differences, sha256_of
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.run_dir import RunDir
from pipeline.data.fingerprint import READING, data_fingerprint, place_of, source_identity, sources_of
from pipeline.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from pipeline.data.tokens import special_token_rows, with_special_tokens

log = logging.getLogger(__name__)

WITHOUT_EFFECT = {"log_every", "save_every", "keep_checkpoints", "on_write_error", "resume", "preemption_signals"}
"""Keys of `train` on which the adapter does not depend."""
FIGURES = "with temperature scaling"
"""What metrics.json holds; older evaluations are made again."""


def current_data(config: RunConfig) -> dict[str, Any]:
    """The manifest of data/, for every stage that reads it. Rank 0 calls it.

    A source that is gone (often only the host that ran preprocess has the texts) is accepted with a warning, if data/
    was made from a source of that name. Raises UserError, naming what differs, where data/ was made from another
    source, from other content, or with other settings.
    """
    manifest: dict[str, Any] = read_json(config.run_dir.manifest_file)
    sources = sources_of(config.data)
    identities = {split: _identity_now(source, split, manifest) for split, source in sources.items()}
    tokenizer = load_tokenizer(config.backbone, special_tokens=config.data.special_tokens)
    names, seed = config.labels.names, config.run.seed
    wanted = data_fingerprint(config.data, names, seed, tokenizer_fingerprint(tokenizer), identities)
    special = special_token_rows(manifest, config.run_dir.data, tokenizer)
    wanted = with_special_tokens(wanted, config.data, special)
    changed = _changes(manifest, wanted, sources)
    if changed:
        raise UserError(f"'{config.run_dir.data}' was made otherwise: {'; '.join(changed)}; run preprocess again")
    return manifest


def texts_have_changed(config: RunConfig, split: str, manifest: Mapping[str, Any]) -> bool:
    """Whether a row of this split's source may be another text now than in data/. UserError: the source is gone."""
    keys = [f"data.{key}" for key in READING]
    here = {key: str(getattr(config.data, key.removeprefix("data."))) for key in keys}
    origin = config.data.origin(split)
    here[f"data.{origin}"] = source_identity(getattr(config.data, origin), origin)
    return any(manifest["fingerprint"].get(key) != value for key, value in here.items())


def training_fingerprint(config: RunConfig, labels: LabelStates) -> dict[str, str]:
    """Everything the adapter depends on, part by part. (Not the ranks: a run may move to another number of them.)

    Nor the test texts, which may come or change when training is over.
    """
    data = read_json(config.run_dir.manifest_file)["fingerprint"]
    settings = config.train.model_dump(exclude=WITHOUT_EFFECT)
    return {
        **{f"method.{key}": str(value) for key, value in config.method.model_dump().items()},
        **{f"train.{key}": str(value) for key, value in settings.items()},
        "run.seed": str(config.run.seed),
        "backbone.pooling": config.backbone.pooling,
        "backbone.int8_threshold": str(config.backbone.int8_threshold),
        **{f"data: {key}": value for key, value in data.items() if not key.startswith("data.test")},
        **{f"label states: {key}": value for key, value in labels.fingerprint.items()},
    }


def training_changes(config: RunConfig, labels: LabelStates) -> list[str]:
    """How the config and data/ differ from those of the finished training; nothing where none has finished.

    `labels`: the adapter's.
    """
    summary = config.run_dir.adapter_final / SUMMARY
    if not summary.is_file():
        return []
    new = training_fingerprint(config, labels)
    return differences(with_defaults(config, read_json(summary)["fingerprint"], new), new)


def evaluation_fingerprint(run_dir: RunDir, manifest: Mapping[str, Any], splits: Sequence[str]) -> dict[str, str]:
    """Everything the figures depend on, part by part."""
    data = manifest["fingerprint"]
    return {
        "adapter": adapter_fingerprint(run_dir.adapter),
        "data": sha256_of(*(f"{key}={value}" for key, value in sorted(data.items()))),
        "evaluate.splits": ", ".join(splits),
        "figures": FIGURES,
    }


def _identity_now(source: str, split: str, manifest: Mapping[str, Any]) -> str:
    try:
        return source_identity(source, split)
    except UserError as fault:
        if manifest.get("sources", {}).get(split) != place_of(source):
            raise
        log.warning("%s; what preprocess made from it is taken as it is", fault)
        made_from: str = manifest["fingerprint"][f"data.{split}"]
        return made_from


def _changes(manifest: Mapping[str, Any], wanted: Mapping[str, str], sources: Mapping[str, str]) -> list[str]:
    """What differs, sources by name and not by hash."""
    then, now, phrases = dict(manifest["fingerprint"]), dict(wanted), []
    for split, source in sources.items():
        key, place = f"data.{split}", manifest.get("sources", {}).get(split)
        if place is not None and then[key] != now[key]:
            phrases.append(f"{key} was {place}, now {source}" if place != place_of(source) else f"{place} has changed")
            del then[key], now[key]
    return [*phrases, *differences(then, now)]


def with_defaults(config: RunConfig, old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """The old fingerprint, in which settings that only the new one has stand with their defaults.

    A setting that a new version brings is a change only where it is set to something else.
    """
    sections = {
        "method": type(config.method),
        "train": type(config.train),
        "backbone": type(config.backbone),
        "data: data": type(config.data),
    }
    defaults = {
        f"{section}.{name}": str(field.get_default(call_default_factory=True))
        for section, model in sections.items()
        for name, field in model.model_fields.items()
        if not field.is_required()
    }
    return {key: value for key, value in defaults.items() if key in new} | old
