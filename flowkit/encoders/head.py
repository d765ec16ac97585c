"""From tokens to the image embedding without the encoder: pooled = norm(CLS) W^T + b.

The head is a flat dict of tensors (a `head.safetensors`): `norm.weight` [D], `norm.epsilon` [1],
`projection.weight` [P, D], and where the encoder has them `norm.bias` [D] (without it the norm is an
RMSNorm) and `projection.bias` [P]. Needs torch only, so evaluation and export never load an encoder.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

REQUIRED = {"norm.weight", "norm.epsilon", "projection.weight"}
OPTIONAL = {"norm.bias", "projection.bias"}


def apply_head(tokens_NTD: torch.Tensor, head: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the image embeddings [N, P], float32, not normalised, of tokens whose first one is CLS.

    Raises `ValueError` if the head lacks or adds tensors or its width is not that of the tokens.
    """
    missing, unknown = REQUIRED - head.keys(), head.keys() - REQUIRED - OPTIONAL
    if missing or unknown:
        raise ValueError(f"head is not complete: missing {sorted(missing)}, unknown {sorted(unknown)}")
    weight = head["norm.weight"].float()
    if tokens_NTD.ndim != 3 or tokens_NTD.shape[2] != len(weight):
        raise ValueError(f"tokens {tuple(tokens_NTD.shape)} do not fit a head of width {len(weight)}")
    cls_ND = tokens_NTD[:, 0].float()
    epsilon = head["norm.epsilon"].item()
    if "norm.bias" in head:
        normed_ND = F.layer_norm(cls_ND, weight.shape, weight, head["norm.bias"].float(), epsilon)
    else:
        normed_ND = F.rms_norm(cls_ND, weight.shape, weight, epsilon)
    bias = head.get("projection.bias")
    return F.linear(normed_ND, head["projection.weight"].float(), None if bias is None else bias.float())
