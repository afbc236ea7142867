"""Every family, with and without an injection: equal to what plain transformers gives, padding or not.

covers backbone/injection
"""

import functools

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from pipeline.backbone.facts import DEBERTA, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection, split_prefix
from tests.support.tiny import FAMILIES, PAD_ID, tiny_model

B, T, P = 3, 5, 4
CACHED = [family for family, (model_type, _) in FAMILIES.items() if model_type not in DEBERTA]

every_family = pytest.mark.parametrize("family", FAMILIES)
both_kinds = pytest.mark.parametrize("kind", ["prompt", "prefix"])


def close(actual: Tensor, expected: Tensor) -> None:
    # 1e-6 and not less: BLOOM's softmax is float32 whatever the model's dtype is.
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@functools.cache
def plain_model(family: str) -> PreTrainedModel:
    return tiny_model(family).double()


@functools.cache
def backbone(family: str, checkpointing: bool = False) -> FrozenBackbone:
    model = tiny_model(family).double()
    return FrozenBackbone(model, facts_of(model.config), gradient_checkpointing=checkpointing).train()


@functools.cache
def inputs() -> tuple[Tensor, Tensor]:
    """Token ids [B, T] of three texts of 5, 3 and 4 tokens, right padded, and their mask."""
    ids = torch.randint(4, 200, (B, T), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(T) < torch.tensor([5, 3, 4])[:, None]
    return ids.where(mask, PAD_ID), mask


def injection(family: str, kind: str, lengths: tuple[int, ...] = (P, P, P), seed: int = 2) -> Injection:
    """Random leaf tensors that ask for gradients, row b has lengths[b] real tokens."""
    facts = backbone(family).facts
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(P) < torch.tensor(lengths)[:, None]
    if kind == "prompt":
        shape = (len(lengths), P, facts.hidden_size)
        return Injection(mask, prompt=torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_())
    sizes = (len(lengths), P, facts.prefix_width())
    return Injection(mask, prefix=torch.randn(sizes, generator=generator, dtype=torch.double).requires_grad_())


@pytest.mark.parametrize("family", CACHED)
def test_prefix_equals_filled_cache(family: str) -> None:
    ids, mask = inputs()
    given = injection(family, "prefix")
    assert given.prefix is not None
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(split_prefix(given.prefix, backbone(family).facts.prefix_layers)):
        cache.update(keys, values, layer)
    seen = torch.cat([given.mask, mask], dim=1)
    options = {} if family == "bloom" else {"position_ids": (torch.arange(P, P + T) + 2 * (family == "roberta"))[None]}
    expected = plain_model(family)(input_ids=ids, attention_mask=seen.long(), past_key_values=cache, **options)
    close(backbone(family)(ids, mask, given)[mask], expected.last_hidden_state[mask])


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_every_token_sees_the_prefix_beyond_a_sliding_window(family: str) -> None:
    """Equal to a filled cache under a mask made by hand, in which the window counts the text's own tokens alone."""
    layers = {"layer_types": ["sliding_attention"] * 2} if family == "gemma3" else {}
    model, plain = (tiny_model(family, sliding_window=3, **layers).double() for _ in range(2))
    ids, given = inputs()[0][:1], injection(family, "prefix").select(torch.tensor([0]))
    assert given.prefix is not None
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(split_prefix(given.prefix, facts_of(model.config).prefix_layers)):
        cache.update(keys, values, layer)
    places = torch.arange(T)
    distance = places[:, None] - places
    window = torch.cat([torch.ones(T, P, dtype=torch.bool), (distance >= 0) & (distance < 3)], dim=1)
    position = (P + places)[None]
    expected = plain(input_ids=ids, attention_mask=window[None, None], position_ids=position, past_key_values=cache)
    frozen = FrozenBackbone(model, facts_of(model.config))
    assert (frozen.facts.sliding_window, frozen.facts.sliding_layers) == (3, 2)
    close(frozen(ids, torch.ones_like(ids), given), expected.last_hidden_state)


@pytest.mark.parametrize("family", CACHED)
def test_prefix_matters(family: str) -> None:
    ids, mask = inputs()
    difference = backbone(family)(ids, mask, injection(family, "prefix")) - backbone(family)(ids, mask)
    assert difference[mask].abs().max() > 0.01


@every_family
def test_prompt_equals_embeddings_by_hand(family: str) -> None:
    ids, mask = inputs()
    given = injection(family, "prompt")
    model = plain_model(family)
    assert given.prompt is not None
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        text = model.get_input_embeddings()(ids[row : row + 1, :length])
        whole = torch.cat([given.prompt[row : row + 1], text], dim=1)
        expected = model(inputs_embeds=whole, attention_mask=torch.ones(whole.shape[:2], dtype=torch.long))
        close(backbone(family)(ids, mask, given)[row, :length], expected.last_hidden_state[0, P:])


@every_family
def test_without_injection_equals_the_model(family: str) -> None:
    ids, mask = inputs()
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        text = ids[row : row + 1, :length]
        expected = plain_model(family)(input_ids=text, attention_mask=torch.ones_like(text))
        close(backbone(family)(ids, mask)[row, :length], expected.last_hidden_state[0])


@every_family
@both_kinds
def test_checkpointing_changes_nothing(family: str, kind: str) -> None:
    ids, mask = inputs()
    given = injection(family, kind, (P, 2, P))
    tensor = given.prompt if given.prompt is not None else given.prefix
    assert tensor is not None
    results = []
    for checkpointing in (False, True):
        hidden = backbone(family, checkpointing)(ids, mask, given)[mask]
        backbone(family, checkpointing)(ids, mask, injection(family, kind, seed=3))  # another call before backward
        results.append((hidden, *torch.autograd.grad(hidden.pow(2).sum(), tensor)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@every_family
def test_every_layer_and_row_of_the_prefix_gets_a_gradient(family: str) -> None:
    ids, mask = inputs()
    given = injection(family, "prefix", (P, 2, P))
    assert given.prefix is not None
    hidden = backbone(family)(ids, mask, given)[mask]
    (gradient,) = torch.autograd.grad((hidden * torch.randn_like(hidden)).sum(), given.prefix)
    for layer in split_prefix(gradient, backbone(family).facts.prefix_layers):
        for part in layer:
            size = part.abs().amax(dim=(1, 3))  # [B, P]
            assert (size[given.mask] > 0).all()
            assert (size[~given.mask] == 0).all()


@every_family
@pytest.mark.parametrize("kind", [None, "prompt", "prefix"])
def test_padding_side_does_not_matter(family: str, kind: str | None) -> None:
    ids, mask = inputs()
    given = injection(family, kind) if kind else None
    right = backbone(family)(ids, mask, given)
    shift = (torch.arange(T) - (~mask).sum(dim=1, keepdim=True)) % T  # rotates each row's padding to its left
    left = backbone(family)(ids.gather(1, shift), mask.gather(1, shift), given)
    close(left[mask.gather(1, shift)], right[mask])
    wider = torch.nn.functional.pad(ids, (0, 3), value=PAD_ID), torch.nn.functional.pad(mask, (0, 3))
    close(backbone(family)(*wider, given)[:, :T][mask], right[mask])
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = given.select(torch.tensor([row])) if given else None
        unpadded = ids[row : row + 1, :length]
        close(backbone(family)(unpadded, torch.ones_like(unpadded), alone)[0], right[row, :length])


@every_family
@both_kinds
def test_holes_in_the_injection_do_not_matter(family: str, kind: str) -> None:
    ids, mask = inputs()
    given = injection(family, kind, (P, 2, 1))
    together = backbone(family)(ids, mask, given)
    for row, length in enumerate((P, 2, 1)):
        short = Injection(
            mask=torch.ones(1, length, dtype=torch.bool),
            prompt=None if given.prompt is None else given.prompt[row : row + 1, :length],
            prefix=None if given.prefix is None else given.prefix[row : row + 1, :length],
        )
        alone = backbone(family)(ids[row : row + 1], mask[row : row + 1], short)
        close(alone[0][mask[row]], together[row][mask[row]])


@every_family
@both_kinds
def test_a_step_leaves_the_backbone_untouched(family: str, kind: str) -> None:
    ids, mask = inputs()
    given = injection(family, kind)
    tensor = given.prompt if given.prompt is not None else given.prefix
    assert tensor is not None
    frozen = backbone(family)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    optimizer = torch.optim.SGD([tensor, *frozen.parameters()], lr=0.1, weight_decay=0.1)
    frozen(ids, mask, given)[mask].sum().backward()
    optimizer.step()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())


@every_family
@both_kinds
def test_runs_in_bfloat16(family: str, kind: str) -> None:
    """A float32 injection meets a bf16 backbone, and the result is near the float64 one."""
    ids, mask = inputs()
    given = injection(family, kind)
    model = tiny_model(family)
    frozen = FrozenBackbone(model, facts_of(model.config), gradient_checkpointing=True)
    buffers = frozen.float_buffers()
    frozen.bfloat16().restore_buffers(buffers)
    hidden = frozen(ids, mask, given)[mask]
    assert hidden.dtype == torch.bfloat16
    expected = backbone(family)(ids, mask, given)[mask]
    assert (hidden.double() - expected).norm() / expected.norm() < 0.05
    hidden.float().sum().backward()


@pytest.mark.parametrize("kind", [None, "prompt", "prefix"])
def test_token_types_reach_bert(kind: str | None) -> None:
    ids, mask = inputs()
    given = injection("bert", kind) if kind else None
    types = (torch.arange(T) >= 2).long().expand(B, T)
    without = backbone("bert")(ids, mask, given)
    close(backbone("bert")(ids, mask, given, torch.zeros_like(types))[mask], without[mask])
    assert (backbone("bert")(ids, mask, given, types) - without)[mask].abs().max() > 0.01
    close(backbone("llama")(ids, mask, None, types)[mask], backbone("llama")(ids, mask)[mask])


def test_dropout_stays_off_in_train_mode() -> None:
    model = tiny_model("bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    frozen = FrozenBackbone(model, facts_of(model.config)).train()
    ids, mask = inputs()
    assert frozen.training and torch.equal(frozen(ids, mask), frozen(ids, mask))


def test_buffers_survive_a_cast() -> None:
    model = tiny_model("llama")
    frozen = FrozenBackbone(model, facts_of(model.config))
    saved = frozen.float_buffers()
    before = model.get_buffer("rotary_emb.inv_freq").clone()
    frozen.bfloat16()
    assert not torch.equal(model.get_buffer("rotary_emb.inv_freq").float(), before)
    frozen.restore_buffers(saved)
    assert (
        torch.equal(model.get_buffer("rotary_emb.inv_freq"), before)
        and model.get_buffer("rotary_emb.inv_freq").dtype == torch.float32
    )


def test_checkpointing_keeps_fewer_activations() -> None:
    """With checkpointing, the tensors saved for backward do not grow with what lies inside the layers."""
    ids, mask = inputs()
    saved = []
    for checkpointing in (False, True):
        count = 0

        def count_bytes(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
            backbone("llama", checkpointing)(ids, mask, injection("llama", "prefix"))
        saved.append(count)
    assert saved[1] < saved[0] / 2
