"""What data/ and evaluation/ were made from, and whether that is what a stage is given now."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.adapter.directory import adapter_fingerprint
from pipeline.core.artefact import FORMAT, Artefact, differences, sha256_of, within
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.run_dir import RunDir
from pipeline.data.config import DataConfig, LabelsConfig
from pipeline.data.fingerprint import (
    READING,
    data_absent,
    data_artefact,
    data_fingerprint,
    made_from,
    parts_of_data,
    parts_of_data_absent,
    place_of,
    source_identity,
    sources_of,
)
from pipeline.data.labelled import check_labels_of_format_1
from pipeline.data.tokens import special_token_rows, with_special_tokens
from pipeline.engine.backbone import Backbone

log = logging.getLogger(__name__)

EVALUATION_FORMAT = "2"
"""Of evaluation/. 1 had no temperature scaling, and no part that says so."""


REWORDINGS_PART = "evaluate.rewordings"
"""Absent where there are none."""


def current_data(
    run_dir: RunDir, data: DataConfig, labels: LabelsConfig, seed: int, backbone: Backbone
) -> dict[str, Any]:
    """The manifest of data/, for every stage that reads it. Rank 0 calls it.

    A source that is gone (often only the host that ran preprocess has the texts) is accepted with a warning, if data/
    was made from a source of that name. Raises UserError, naming what differs, where data/ was made from another
    source, from other content, or with other settings.
    """
    manifest: dict[str, Any] = read_json(run_dir.manifest_file)
    sources, identities, gone = sources_of(data), {}, False
    for split, source in sources.items():
        try:
            identities[split] = source_identity(source, split)
        except UserError as fault:
            if manifest.get("sources", {}).get(split) != place_of(source):
                raise
            log.warning("%s; what preprocess made from it is taken as it is", fault)
            identities[split], gone = manifest["fingerprint"][f"data.{split}"], True

    def upgrade() -> None:
        if not gone:
            check_labels_of_format_1(manifest, run_dir.data, data, labels.names, sources)

    wanted = data_fingerprint(data, labels.names, seed, backbone.tokenizer_fingerprint, identities)
    wanted = with_special_tokens(wanted, data, special_token_rows(manifest, run_dir.data, backbone.tokenizer))
    changed = data_artefact(run_dir.data, upgrade).changes(made_from(manifest), wanted)
    if changed:
        named = [_named(phrase, manifest, sources) for phrase in changed]
        raise UserError(f"'{run_dir.data}' was made otherwise: {'; '.join(named)}; run preprocess again")
    return manifest


def texts_have_changed(data: DataConfig, split: str, manifest: Mapping[str, Any]) -> bool:
    """Whether a row of this split's source may be another text now than in data/. UserError: the source is gone."""
    origin = data.origin(split)
    here = {f"data.{key}": str(getattr(data, key)) for key in READING}
    here[f"data.{origin}"] = source_identity(getattr(data, origin), origin)
    there = {part: value for part, value in manifest["fingerprint"].items() if part in here}
    return bool(differences(there, here, data_absent()))


def evaluation_artefact(run_dir: RunDir) -> Artefact:
    """evaluation/"""
    return Artefact(run_dir.evaluation, "evaluate", parts_of_data_absent())


def evaluation_fingerprint(
    run_dir: RunDir, manifest: Mapping[str, Any], splits: Sequence[str], rewordings: str | None = None
) -> dict[str, str]:
    """Everything the metrics depend on, part by part. `manifest`: of data/, which is current."""
    return {
        FORMAT: EVALUATION_FORMAT,
        "adapter": adapter_fingerprint(run_dir.adapter),
        **parts_of_data(manifest["fingerprint"]),
        "evaluate.splits": ", ".join(splits),
        **({REWORDINGS_PART: rewordings} if rewordings else {}),
    }


def evaluated_from(run_dir: RunDir, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of evaluation/ as it is today.

    Version 0.1 had one hash for all parts of the data, and another word for the format.
    """
    found: dict[str, str] = read_json(run_dir.evaluation_fingerprint_file)
    parts = manifest["fingerprint"]
    if "data" in found:
        found = {**found, **within("data", parts)}
        if found["data"] == sha256_of(*(f"{part}={value}" for part, value in sorted(parts.items()))):
            del found["data"]
    if found.pop("figures", None) == "with temperature scaling":
        found[FORMAT] = "2"
    return found


def _named(phrase: str, manifest: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """A phrase about a source, by that source's name and not by its hash, where the name is known."""
    split = phrase.partition(" was ")[0].removeprefix("data.")
    place = manifest.get("sources", {}).get(split)
    if place is None or split not in sources:
        return phrase
    source = sources[split]
    return f"{place} has changed" if place == place_of(source) else f"data.{split} was {place}, now {source}"
