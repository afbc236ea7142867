"""A trained adapter as a folder that other programs load, or as one that needs no producer."""

import logging
from pathlib import Path

from pipeline.adapter.directory import adapter_folder, load_adapter
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_dir
from pipeline.engine.backbone import Backbone
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.export.folder import ADAPTERS, MODELS, save_model, save_peft
from pipeline.export.label_injections import EXPORTED, save_label_injections

log = logging.getLogger(__name__)


def export(
    adapter: str | Path,
    folder: str | Path,
    *,
    device: str | None = None,
    backbone: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Writes the folder, whole or not at all: a model of transformers (probe, full), an adapter of PEFT (lora, prompt,
    p_tuning, prefix), or an adapter with one injection per label (lt_prompt, lt_prefix).

    `adapter` is an adapter directory or a run directory. `backbone`: where it is, if it has moved.
    Raises UserError where there is something in the folder, for methods and heads that the form cannot express, and
    where the exported model's scores would not be those of the adapter.
    """
    target, source = Path(folder), adapter_folder(adapter)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"'{target}' is there already: choose a new or an empty folder to export to")
    known = load_adapter(source)
    name = known.config.method.name
    if name not in (*EXPORTED, *MODELS, *ADAPTERS):
        raise UserError(f"method {name} has nothing to export: take {', '.join((*EXPORTED, *MODELS, *ADAPTERS))}")
    if name in EXPORTED:
        facts = Backbone(known.config.backbone.trusted(trust_remote_code).moved(backbone)).facts
        save_label_injections(known, facts, target)
        kind, count = name.removeprefix("lt_"), len(known.labels.names)
        log.info("export: one %s for each of %d labels, in %s", kind, count, target)
        return
    loaded = LoadedAdapter.load(adapter, device, backbone=backbone, trust_remote_code=trust_remote_code)
    with atomic_dir(target) as temporary:
        difference = (save_model if name in MODELS else save_peft)(loaded, temporary)
    library = "transformers" if name in MODELS else "PEFT"
    log.info("export: for %s, in %s; loaded again, its scores differ by %.1g", library, target, difference)
