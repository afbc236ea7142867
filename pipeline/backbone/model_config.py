"""The backbone's config.json: its shape, without a weight."""

from transformers import AutoConfig, PreTrainedConfig

from pipeline.backbone.config import BackboneConfig
from pipeline.core.errors import UserError


def load_model_config(config: BackboneConfig) -> PreTrainedConfig:
    """Raises UserError where there is none, or none that transformers can read."""
    try:
        model_config = AutoConfig.from_pretrained(
            config.location, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file makes transformers fail in any way
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UserError(
            f"backbone.name_or_path {config.name_or_path!r}: config.json cannot be read: {reason}"
        ) from error
    if model_config._attn_implementation not in ("eager", "sdpa"):
        # The file may name a kernel, which transformers would fetch from the hub and run.
        model_config._attn_implementation = None
    return model_config
