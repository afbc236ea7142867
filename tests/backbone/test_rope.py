"""Rotary frequencies that depend on a text's length: on its own, not on its neighbours' or on what was read before."""

import pytest
import torch
from torch import Tensor

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from tests.support.tiny import tiny_model

LIMIT = 8
"""Tokens up to which the short factors hold."""
ROPES = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.0],
        "long_factor": [3.0, 9.0],
        "factor": 16.0,
        "original_max_position_embeddings": LIMIT,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}
LENGTHS = [3, 30, LIMIT, LIMIT + 1, 17, 1]


def backbone(family: str, rope: str) -> FrozenBackbone:
    positions = LIMIT if rope == "dynamic" else 128  # dynamic NTK begins behind the model's own positions
    model = tiny_model(family, rope_parameters=ROPES[rope], max_position_embeddings=positions)
    return FrozenBackbone(model, facts_of(model.config))


def texts(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Right-padded rows [B, T] and their mask; a row's tokens depend on its length alone."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = [torch.randint(4, 300, (max(lengths),), generator=torch.Generator().manual_seed(n)) for n in lengths]
    return torch.stack(ids), mask


def prefix(lengths: list[int]) -> Injection:
    """A prefix of 6 tokens for each row, of which every other row has only 2."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 6, 2 * 2 * 2 * 4, generator=generator).expand(len(lengths), -1, -1)
    mask = torch.ones(len(lengths), 6, dtype=torch.bool)
    mask[torch.tensor(lengths) % 2 == 1, 2:] = False
    return Injection(mask=mask, prefix=states)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", ["llama_gqa", "mistral", "qwen2"])
@pytest.mark.parametrize("injected", [False, True], ids=["plain", "prefix"])
def test_a_text_is_read_as_if_it_were_alone(family: str, rope: str, injected: bool) -> None:
    model = backbone(family, rope)
    ids, mask = texts(LENGTHS)
    together = model(ids, mask, prefix(LENGTHS) if injected else None)
    for row, length in enumerate(LENGTHS):
        fresh = backbone(family, rope)  # not told of anything read before
        alone = fresh(ids[row : row + 1, :length], mask[row : row + 1, :length], prefix([length]) if injected else None)
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(ids, mask, prefix(LENGTHS) if injected else None), together, rtol=0, atol=0)


@pytest.mark.parametrize("rope", ROPES)
def test_alone_a_text_is_read_as_transformers_reads_it(rope: str) -> None:
    for length in LENGTHS:
        ids, mask = texts([length])
        positions = LIMIT if rope == "dynamic" else 128
        plain = tiny_model("llama_gqa", rope_parameters=ROPES[rope], max_position_embeddings=positions)
        expected = plain(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(backbone("llama_gqa", rope)(ids, mask), expected)


def test_the_long_factors_matter() -> None:
    """Else the tests above could not fail."""
    ids, mask = texts([17])
    model = tiny_model("llama_gqa", rope_parameters=ROPES["longrope"] | {"long_factor": [1.0, 1.0]})
    other = FrozenBackbone(model, facts_of(model.config))(ids, mask)
    assert (backbone("llama_gqa", "longrope")(ids, mask) - other).abs().max() > 0.01
