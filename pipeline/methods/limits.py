"""What a backbone and a set of labels allow, checked before anything is trained."""

from collections.abc import Mapping
from typing import Literal

from pipeline.backbone.facts import BackboneFacts, behind_refusal, prefix_refusal
from pipeline.backbone.verdict import CHECK_PART, PASSED
from pipeline.core.bounds import MOST_TRAINED
from pipeline.core.errors import UserError
from pipeline.methods.base import MethodConfig

OTHERWISE = "take a method that injects something else or nothing (lt_prompt, lt_prefix, lora, probe)"
MAX_CANDIDATES = 8
"""Of a text that is read once per label, unless train.candidates says otherwise."""


def check_positions(method: MethodConfig, facts: BackboneFacts, hypothesis_tokens: int, max_length: int) -> None:
    """Raises UserError where injection and text together do not fit the backbone.

    `hypothesis_tokens`: P, of the longest hypothesis; `max_length`: of the texts.
    """
    injected = method.injected_tokens(hypothesis_tokens)
    if facts.max_positions is None or injected + max_length <= facts.max_positions:
        return
    room = facts.max_positions - injected
    kind, shorter = "label", "shorten labels.template or labels.texts"
    if not method.open_labels:
        kind, shorter = "injected", "lower method.tokens"
    advice = f"set data.max_length to {room} or less" if room > 1 else shorter
    raise UserError(
        f"{injected} {kind} tokens and data.max_length={max_length} exceed the backbone's "
        f"{facts.max_positions} positions: {advice}"
    )


def check_size(method: MethodConfig, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> None:
    """Raises UserError where the method's parameters would be too many: before memory is taken for any of them."""
    count = method.trainable_count(facts, hypothesis_tokens, label_count)
    if count > MOST_TRAINED:
        raise UserError(
            f"method {method.name} would have {count:.3g} parameters of its own, at most {MOST_TRAINED:,} are trained: "
            "lower the sizes in section method (tokens, rank, ...)"
        )


def check_shortlist(method: MethodConfig, label_count: int, objective: str) -> None:
    """Raises UserError where labels beyond a shortlist would have scores of another scale than those in it.

    Pairs train what is read with a label for each label by itself; a label beyond the shortlist keeps its score of the
    text alone. The objectives that compare labels train both together.
    """
    if objective == "pairs" and method.open_labels and method.joint_readings(label_count) is not None:
        raise UserError(
            f"train.objective=pairs scores each label by itself, and a shortlist compares them ({label_count} labels): "
            "set method.shortlist=null or train.objective=candidates"
        )


def check_injection(method: MethodConfig, facts: BackboneFacts) -> None:
    """Raises UserError where the backbone does not take what the method injects."""
    if method.injects == "prefix" and (reason := prefix_refusal(facts)):
        raise UserError(f"method {method.name} injects a prefix, but the backbone takes none: {reason}; {OTHERWISE}")
    if method.form is not None and method.form.is_behind and (reason := behind_refusal(facts)):
        raise UserError(f"method.position=after: {reason}; set method.position=before")
    first_layer = 0 if method.form is None else method.form.first_layer
    if facts.joined and first_layer > (lowest := facts.joined[0]):
        raise UserError(
            f"method.first_layer={first_layer}: below it, a text is not read with its label, so that layer {lowest} of "
            f"backbone.layers has nothing to show: set method.first_layer={lowest} or less"
        )
    method.check_layers(facts)


def check_verdict(method: MethodConfig, fingerprint: Mapping[str, str]) -> None:
    """Raises UserError where the loaded backbone was found not to take what the method injects.

    `fingerprint`: of its label states; without a verdict, its family is among the tested ones.
    """
    form = method.form
    if form is None:
        return
    # What stands before a prompt comes to it as a prefix does.
    for kind in ("prompt", "prefix") if form.is_behind else (form.kind,):
        if (verdict := fingerprint.get(f"{CHECK_PART}.{kind}", PASSED)) != PASSED:
            raise UserError(f"method {method.name} injects a {kind}, but the backbone {verdict}; {OTHERWISE}")


def window_warning(method: MethodConfig, facts: BackboneFacts, injected: int, max_length: int) -> str | None:
    """What to say where a sliding window hides an injection from parts of long texts; None where it does not.

    Every token sees a prefix that comes by the attention function, or a text before it that does. Of a prompt, or of a
    prefix in a cache, a token sees the W positions that end with its own, the injected ones counted. So the last of T
    text tokens sees all P = `injected` of them while P + T <= W. Through L layers it is reached by what lies
    L * (W - 1) positions back.
    """
    window, length = facts.sliding_window, max_length
    is_prefix = method.injects == "prefix" or (method.form is not None and method.form.is_behind)
    is_seen = is_prefix and facts.carrier != "cache"
    if window is None or is_seen or not injected or injected + length <= window:
        return None
    layers = "all" if facts.sliding_layers == facts.layers else f"{facts.sliding_layers} of {facts.layers}"
    room, reach = window - injected, facts.layers * (window - 1)
    lost = f"texts of more than {max(room, 0)} tokens are read with a part of them hidden"
    if layers == "all" and length > reach:
        lost += f", and the last token of one of more than {reach} as if nothing were injected"
    advice = f"set data.max_length to {room} or less" if room > 1 else "take a backbone with a wider window"
    return (
        f"a sliding window of {window} positions in {layers} layers is shorter than {injected} injected tokens and "
        f"data.max_length={length}: {lost}; {advice}"
    )


def candidate_count(method: MethodConfig, label_count: int, wanted: int | Literal["all"] | None) -> int:
    """C of K = `label_count` labels: against how many a text is judged in a step with objective candidates.

    `wanted`: train.candidates.
    """
    if wanted is None:
        wanted = MAX_CANDIDATES if method.joint_readings(label_count) is None else "all"
    return label_count if wanted == "all" else min(wanted, label_count)


def readings_per_text(method: MethodConfig, label_count: int, candidates: int, hypotheses: int = 1) -> int:
    """How often the backbone reads a text that is judged against C = `candidates` of K = `label_count` labels at once.

    `hypotheses`: that the label with the most of them has.
    Beyond a shortlist label tuning reads it alone as well, as does a prompt that is made of a whole text, unless those
    readings are stored.
    """
    joint = method.joint_readings(label_count)
    if joint is None:
        return candidates * hypotheses
    is_read_alone = method.reads_alone and not method.reads_stored
    return min(joint, candidates * hypotheses) + is_read_alone
