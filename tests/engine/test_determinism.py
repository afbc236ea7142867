"""Which kernels are taken, when, and what is said where there is none; what they compute needs a GPU (tests/gpu)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.engine.determinism import as_it_was, deterministic_backward, make_deterministic


class Put(torch.autograd.Function):
    """Its backward uses a kernel that has no deterministic kind on any device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return torch.zeros_like(grad).put_(torch.arange(len(grad)), grad)


@pytest.mark.parametrize("strict", [True, False])
def test_attention_has_a_deterministic_backward_where_it_is_wanted(strict: bool) -> None:
    with as_it_was():
        make_deterministic(3, strict=strict)
        assert torch.backends.cuda.cudnn_sdp_enabled() != strict
        assert torch.is_deterministic_algorithms_warn_only_enabled() and torch.initial_seed() == 3


@pytest.mark.parametrize("strict", [True, False])
def test_a_backward_pass_alone_is_held_to_it(strict: bool) -> None:
    with as_it_was():
        make_deterministic(0, strict=strict)
        with deterministic_backward():
            assert torch.is_deterministic_algorithms_warn_only_enabled() != strict
        assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_kernel_without_a_deterministic_kind_is_named() -> None:
    x = torch.ones(2, requires_grad=True)
    with as_it_was():
        make_deterministic(0, strict=True)
        with pytest.raises(UserError, match=r"needs put_.*: set engine\.deterministic=false"), deterministic_backward():
            Put.apply(x).sum().backward()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with pytest.raises(RuntimeError, match="inconsistent tensor size"), deterministic_backward():
            (x @ torch.ones(3)).backward()


def test_what_it_was_is_restored() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    with as_it_was():
        make_deterministic(0, strict=before[1])
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.cudnn_sdp_enabled())
