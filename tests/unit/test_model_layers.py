"""Norms, time embedding, token embedding and adapter against references written here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flowkit.model.adapter import build_adapter, layer_widths
from flowkit.model.embedding import TimeEmbedding
from flowkit.model.layers import RmsNorm, rms_norm

B, T, D = 2, 10, 32


def _gradient(norm, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    (dx,) = torch.autograd.grad(norm(x), x, dy)
    return dx


@pytest.fixture
def x_and_dy() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(B, T, D, generator=generator)).requires_grad_()
    return x, torch.randn(B, T, D, generator=generator)


def test_rms_norm_and_its_gradient_are_those_of_torch(x_and_dy) -> None:
    x, dy = x_and_dy
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (D,), eps=1e-6))
    theirs = _gradient(lambda x: F.rms_norm(x, (D,), eps=1e-6), x, dy)
    torch.testing.assert_close(_gradient(rms_norm, x, dy), theirs, atol=1e-6, rtol=1e-5)


def test_rms_norm_survives_recomputation(x_and_dy) -> None:
    x, dy = x_and_dy

    def recomputed(x: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(rms_norm, x, use_reentrant=False)

    assert torch.equal(_gradient(recomputed, x, dy), _gradient(rms_norm, x, dy))


def test_rms_norm_survives_compilation(x_and_dy) -> None:
    x, dy = x_and_dy
    torch.compiler.reset()
    compiled = torch.compile(rms_norm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), rms_norm(x))
    torch.testing.assert_close(_gradient(compiled, x, dy), _gradient(rms_norm, x, dy))


def test_weighted_norm_is_that_of_torch(x_and_dy) -> None:
    x, dy = x_and_dy
    norm = RmsNorm(D)
    torch.nn.init.normal_(norm.weight_D)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (D,), norm.weight_D, eps=1e-6))
    (ours,) = torch.autograd.grad(norm(x), norm.weight_D, dy)
    (theirs,) = torch.autograd.grad(F.rms_norm(x, (D,), norm.weight_D, eps=1e-6), norm.weight_D, dy)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_time_embedding_tells_near_times_apart() -> None:
    torch.manual_seed(4)
    embed = TimeEmbedding(D)
    near = embed(torch.tensor([0.50, 0.51, 0.0, 1.0])).detach()
    distances = torch.pdist(near)
    assert float(distances.min()) > 0.02 * float(near.norm(dim=-1).mean())


def test_adapter_narrows_evenly() -> None:
    assert layer_widths(4096, 768, 6) == [4096, 3541, 2986, 2432, 1877, 1322, 768]
    x = torch.randn(2, 3, 40)
    assert build_adapter(40, 16, 3)(x).shape == (2, 3, 16)
    assert isinstance(build_adapter(40, 16, 0), torch.nn.Linear)
    with pytest.raises(ValueError, match="-1"):
        build_adapter(40, 16, -1)
