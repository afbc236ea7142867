"""What a backbone and a set of labels allow, checked before anything is trained."""

from pipeline.backbone.facts import BackboneFacts
from pipeline.config import RunConfig
from pipeline.errors import UserError


def check_positions(config: RunConfig, facts: BackboneFacts, prompt_tokens: int) -> None:
    """Raises UserError where injection and text together do not fit the backbone. `prompt_tokens`: of the wordings."""
    injected = config.method.injected_tokens(prompt_tokens)
    if facts.max_positions is None or injected + config.data.max_length <= facts.max_positions:
        return
    room = facts.max_positions - injected
    kind, shorter = "label", "shorten labels.template or labels.texts"
    if config.method.one_pass:
        kind, shorter = "injected", "lower method.tokens"
    advice = f"set data.max_length to {room} or less" if room > 1 else shorter
    raise UserError(
        f"{injected} {kind} tokens and data.max_length={config.data.max_length} exceed the backbone's "
        f"{facts.max_positions} positions: {advice}"
    )


def check_candidates(config: RunConfig, label_count: int) -> None:
    """Raises UserError where a text is to be judged against more labels than there are."""
    wanted = config.train.candidates
    if config.train.objective == "candidates" and wanted is not None and wanted > label_count:
        raise UserError(f"train.candidates is {wanted}, but there are {label_count} labels: lower it, or leave it out")
