"""The backbone's config.json: its shape, without a weight."""

from transformers import AutoConfig, PreTrainedConfig

from pipeline.backbone.config import BackboneConfig
from pipeline.errors import UserError


def load_model_config(config: BackboneConfig) -> PreTrainedConfig:
    """Raises UserError where there is none, or none that transformers can read."""
    try:
        return AutoConfig.from_pretrained(
            config.location, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UserError(
            f"backbone.name_or_path {config.name_or_path!r}: config.json cannot be read: {reason}"
        ) from error
