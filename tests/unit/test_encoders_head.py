"""`apply_head` against the formulas written out, and its refusals."""

from __future__ import annotations

import pytest
import torch

from flowkit.encoders.head import apply_head


def _head() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "norm.weight": torch.randn(6, generator=generator),
        "norm.bias": torch.randn(6, generator=generator),
        "norm.epsilon": torch.tensor([1e-5], dtype=torch.float64),
        "projection.weight": torch.randn(4, 6, generator=generator),
        "projection.bias": torch.randn(4, generator=generator),
    }


TOKENS_NTD = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))


def test_layer_norm_and_projection() -> None:
    head = _head()
    cls = TOKENS_NTD[:, 0]
    normed = (cls - cls.mean(1, keepdim=True)) / (cls.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    expected = (normed * head["norm.weight"] + head["norm.bias"]) @ head["projection.weight"].T
    assert torch.allclose(apply_head(TOKENS_NTD, head), expected + head["projection.bias"], atol=1e-5)


def test_rms_norm_where_the_norm_has_no_bias() -> None:
    head = {key: value for key, value in _head().items() if not key.endswith("bias")}
    cls = TOKENS_NTD[:, 0]
    normed = cls / (cls.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * head["norm.weight"]
    assert torch.allclose(apply_head(TOKENS_NTD, head), normed @ head["projection.weight"].T, atol=1e-5)


def test_only_the_cls_token_counts() -> None:
    other = TOKENS_NTD.clone()
    other[:, 1:] = 0
    assert torch.equal(apply_head(TOKENS_NTD, _head()), apply_head(other, _head()))


def test_half_precision_tokens_give_float32() -> None:
    assert apply_head(TOKENS_NTD.half(), _head()).dtype == torch.float32


def test_incomplete_head_is_refused() -> None:
    head = _head()
    del head["norm.epsilon"]
    with pytest.raises(ValueError, match=r"missing \['norm.epsilon'\]"):
        apply_head(TOKENS_NTD, head)
    with pytest.raises(ValueError, match=r"unknown \['pool'\]"):
        apply_head(TOKENS_NTD, _head() | {"pool": torch.zeros(1)})


def test_foreign_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5, 7\) do not fit a head of width 6"):
        apply_head(torch.zeros(3, 5, 7), _head())
