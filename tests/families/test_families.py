"""Many types of models, none of them known by name: read as transformers reads them, alone, with a prompt, a prefix.

A sample runs with all tests; `bash launch/test.sh --families` runs the whole. docs/backbones.md has a row for each.

covers backbone/probe, backbone/carriers, backbone/check, backbone/experts, backbone/verdict
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from pipeline.backbone.as_injection import AsInjection
from pipeline.backbone.check import check_reading
from pipeline.backbone.config import BackboneConfig, Quantization
from pipeline.backbone.every_layer import EveryLayer
from pipeline.backbone.experts import _by_rows, _matrix, expert_weights
from pipeline.backbone.facts import Form, behind_refusal, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection, split_prefix
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.pooling import pool
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.backbone.verdict import PASSED
from pipeline.distributed.ranks import Ranks
from tests.families.models import (
    NO_SDPA,
    PAD_ID,
    SAMPLE,
    SHOWS_NO_LAYERS,
    TYPES,
    WITHOUT_PREFIX,
    WITHOUT_PROMPT,
    config_of,
    tiny_model,
)
from tests.families.table import HEAD, row

B, T, P = 3, 5, 4
LENGTHS = torch.tensor([5, 3, 4])
MASK = torch.arange(T) < LENGTHS[:, None]
IDS = torch.randint(4, 200, (B, T), generator=torch.Generator().manual_seed(1)).where(MASK, PAD_ID)
HOLES = torch.arange(P) < torch.tensor([P, 2, P])[:, None]

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "backbones.md").read_text()

every_type = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in SAMPLE else pytest.mark.families) for kind in TYPES]
)
with_prefix = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in SAMPLE else pytest.mark.families)
        for kind in TYPES
        if kind not in WITHOUT_PREFIX
    ],
)


def close(found: Tensor, expected: Tensor) -> None:
    # Recurrences, and some softmaxes, are float32 whatever the model's dtype is.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def model_of(kind: str, attention: str | None = None) -> PreTrainedModel:
    model = tiny_model(kind, attention).double()
    model.config._experts_implementation = "eager"  # the default has no float64 kernel on a CPU
    return model


@cache
def backbone(kind: str, checkpointing: bool = False, attention: str | None = None) -> FrozenBackbone:
    model = model_of(kind, attention)
    return FrozenBackbone(model, facts_of(model.config), gradient_checkpointing=checkpointing)


def prefix(kind: str, mask: Tensor = HOLES) -> Injection:
    width, generator = backbone(kind).facts.prefix_width(), torch.Generator().manual_seed(2)
    return Injection(mask, prefix=torch.randn(B, P, width, generator=generator, dtype=torch.double).requires_grad_())


@every_type
def test_the_loaded_model_is_checked(kind: str) -> None:
    """In float32, with the kernels it has by itself, as a run would find it."""
    model = tiny_model(kind)
    reader = AsInjection(FrozenBackbone(model, facts_of(model.config)), None)
    verdict = check_reading(reader, reader)
    assert (verdict.prompt == PASSED) == (kind not in WITHOUT_PROMPT), verdict
    assert (verdict.prefix == PASSED) == (kind not in WITHOUT_PREFIX), verdict


@every_type
def test_texts_are_read_as_if_alone_and_unpadded(kind: str) -> None:
    plain = model_of(kind)
    with torch.no_grad():
        found = backbone(kind)(IDS, MASK)
        for row, length in enumerate(LENGTHS.tolist()):
            text = IDS[row : row + 1, :length]
            close(found[row, :length], plain(input_ids=text, attention_mask=torch.ones_like(text)).last_hidden_state[0])


@with_prefix
def test_a_prefix_reaches_every_layer_and_no_further_than_its_mask(kind: str) -> None:
    given = prefix(kind)
    assert given.prefix is not None
    hidden = backbone(kind)(IDS, MASK, given)[MASK]
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    (gradient,) = torch.autograd.grad((hidden * weights).sum(), given.prefix)
    for layer in split_prefix(gradient, backbone(kind).facts.prefix_layers):
        for part in layer:
            size = part.abs().amax(dim=(1, 3))  # [B, P]
            assert (size[HOLES] > 0).all() and (size[~HOLES] == 0).all()


@every_type
def test_words_are_read_behind_kept_texts_as_with_them(kind: str) -> None:
    """Where that is not refused, as it is where a text leaves more than keys and values."""
    plain = backbone(kind)
    if behind_refusal(plain.facts) is not None:
        return
    words = IDS.flip(0).where(MASK.flip(0), 0)
    with torch.no_grad():
        together = plain(torch.cat([IDS, words], dim=1), torch.cat([MASK, MASK.flip(0)], dim=1))
        kept = plain.keep(IDS, MASK)
        embeddings = plain.model.get_input_embeddings()(words)
        behind = plain.behind(kept, Injection(MASK.flip(0), prompt=embeddings))
    close(kept.hidden[MASK], together[:, :T][MASK])
    if kind not in WITHOUT_PROMPT:
        close(behind[MASK.flip(0)], together[:, T:][MASK.flip(0)])


@every_type
def test_every_layer_is_the_model_that_ends_there(kind: str, tmp_path: Path) -> None:
    """Whatever the family has behind its last layer, and calls it."""
    if kind in SHOWS_NO_LAYERS:
        return
    tiny_model(kind).save_pretrained(tmp_path)
    whole, first = load(tmp_path, "none"), load(tmp_path, "none", layers=1)
    with torch.no_grad():
        found = EveryLayer(FrozenBackbone(whole, facts_of(whole.config)))(IDS, MASK)[0, 1]
        close(found, pool(FrozenBackbone(first, facts_of(first.config))(IDS, MASK), MASK, "mean"))


@with_prefix
def test_checkpointing_changes_nothing(kind: str) -> None:
    results = []
    for checkpointing in (False, True):
        given = prefix(kind)
        assert given.prefix is not None
        hidden = backbone(kind, checkpointing)(IDS, MASK, given)[MASK]
        backbone(kind, checkpointing)(IDS.flip(0), MASK.flip(0), given)  # another call before backward
        results.append((hidden, *torch.autograd.grad(hidden.square().sum(), given.prefix)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@with_prefix
def test_neither_the_side_of_padding_nor_the_kernel_matters(kind: str) -> None:
    given = prefix(kind)
    with torch.no_grad():
        right = backbone(kind)(IDS, MASK, given)[MASK]
        shift = (torch.arange(T) - (~MASK).sum(dim=1, keepdim=True)) % T
        left = backbone(kind)(IDS.gather(1, shift), MASK.gather(1, shift), given)
        close(left[MASK.gather(1, shift)], right)
        for attention in ("eager",) if kind in NO_SDPA else ("sdpa", "eager"):
            close(backbone(kind, attention=attention)(IDS, MASK, given)[MASK], right)


@with_prefix
def test_a_prefix_starts_as_the_text_before(kind: str) -> None:
    """Of a decoder without a recurrence: what it kept of a text carries that text to the next one."""
    facts = backbone(kind).facts
    if not facts.is_decoder or None in facts.prefix_layers or kind in ("falcon_h1", "gemma3n_text"):
        return
    with torch.no_grad():
        _, start = AsInjection(backbone(kind), Form("prefix"))(IDS[:1], torch.ones(1, T))
        found = backbone(kind)(IDS[1:2, :3], torch.ones(1, 3), Injection(torch.ones(1, T).bool(), prefix=start))
        both = torch.cat([IDS[:1], IDS[1:2, :3]], dim=1)
        close(found, backbone(kind)(both, torch.ones_like(both))[:, T:])


@every_type
def test_facts_need_no_weights(kind: str) -> None:
    facts, model = facts_of(config_of(kind)), model_of(kind)
    with torch.no_grad():
        assert facts.hidden_size == model(input_ids=IDS).last_hidden_state.shape[-1]
        changed = IDS.clone()
        changed[:, -1] += 1
        first = [model(input_ids=ids[:1]).last_hidden_state[0, 0] for ids in (IDS, changed)]
    assert facts.is_decoder == torch.equal(*first)
    assert (facts.carrier is None) == (kind in WITHOUT_PREFIX) == (facts.prefix_width() == 0)


@every_type
def test_weights_load_in_slices_in_full_and_in_few_bits(kind: str, tmp_path: Path) -> None:
    """Also as transformers stores them: an expert at a time, or several matrices in one tensor."""
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)
    plain = load(tmp_path, "none")
    for name, tensor in plain.named_parameters():
        assert torch.equal(tensor, model.get_parameter(name)), name
    plain.config._experts_implementation = "eager"
    for quantization in ("int8_weight_only", "int4"):
        reads_as_if_rounded(kind, load(tmp_path, quantization), plain)


def reads_as_if_rounded(kind: str, rounded: PreTrainedModel, plain: PreTrainedModel) -> None:
    """The unquantized model, with the rounded weights put in, gives the same."""
    kinds = [type(module).__name__ for module in rounded.modules() if not isinstance(module, QuantizedLinear)]
    assert not {"Linear", "Conv1D"} & set(kinds) or kind in ("jamba", "llama4_text", "mamba")
    for name, module in rounded.named_modules():
        if isinstance(module, QuantizedLinear):
            weight = module.dequantized(torch.float32)
            parameter = plain.get_parameter(f"{name}.weight")
            parameter.data.copy_(weight if weight.shape == parameter.shape and kind != "gpt2" else weight.t())
        for leaf in expert_weights(module):
            assert getattr(module, leaf).dtype == torch.int8
            parameter = plain.get_parameter(f"{name}.{leaf}")
            width = _by_rows(module, parameter).shape[2]
            matrices = [_matrix(torch.float32, module, leaf, expert, width) for expert in range(module.num_experts)]
            parameter.data.copy_(_by_rows(module, torch.stack(matrices)))
    with torch.no_grad():
        close(rounded(input_ids=IDS).last_hidden_state, plain(input_ids=IDS).last_hidden_state)


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_of_an_encoder_decoder_the_encoder_is_loaded(kind: str, tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_config(config_of(kind)).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.get_encoder()(input_ids=IDS).last_hidden_state
        assert torch.equal(load(tmp_path, "none")(input_ids=IDS).last_hidden_state, expected)


@every_type
def test_the_documents_say_it(kind: str) -> None:
    assert HEAD in DOCUMENT and f"{row(kind)}\n" in DOCUMENT, "python -m tests.families.table prints the table"


def load(path: Path, quantization: Quantization, layers: int | None = None) -> PreTrainedModel:
    config = BackboneConfig(name_or_path=str(path), quantization=quantization, dtype="float32", layers=layers)
    return load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())
