"""The `lumina_next` network against the Next-DiT of diffusers, with the same weights.

The peer takes pictures; tokens go in as a picture one pixel wide, so that it sees CLS and patches alike. It is given
our rotary table or its own, times in thousandths, and equal query projections for self- and cross-attention, which ours
shares. Ours is brought to what the peer lacks: no learned position, no aligned condition, condition keys unrotated.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor
from unit.paired_material import MODEL

from flowkit.model import lumina_next
from flowkit.model.lumina_next import LuminaNextDiT
from flowkit.model.rope import RotaryTable
from flowkit.translator import build_network

B, ROWS, COLUMNS, WIDTH, HEADS, DEPTH = 3, 4, 3, 48, 4, 3
PATCHES = ROWS * COLUMNS
CONFIG = replace(
    MODEL,
    architecture="lumina_next",
    source_tokens=PATCHES + 1,
    target_tokens=PATCHES + 1,
    grid=(ROWS, COLUMNS),
    has_cls=True,
    width=WIDTH,
    depth=DEPTH,
    heads=HEADS,
    kv_heads=2,
    ffn_width=128,
    cross_attention=True,
    aligned_condition=False,
)
WITHOUT_CLS = replace(CONFIG, source_tokens=PATCHES, target_tokens=PATCHES, has_cls=False)
TOLERANCE = 1e-4
"""Relative, float32."""
NAMES = {
    "patch_embedder.proj": "embedding.input",
    "time_caption_embed.timestep_embedder.linear_1": "time.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "time.mlp.2",
    "time_caption_embed.caption_embedder": "summary",
    "norm_out.linear_1": "modulation",
    "norm_out.linear_2": "head",
    "layers": "blocks",
    "attn1.to_q": "attention.query",
    "attn1.norm_q": "attention.query_norm",
    "attn1.to_k": "attention.own.key",
    "attn1.norm_k": "attention.own.key_norm",
    "attn1.to_v": "attention.own.value",
    "attn2.to_k": "attention.cross.key",
    "attn2.norm_k": "attention.cross.key_norm",
    "attn2.to_v": "attention.cross.value",
    "attn2.to_out.0": "attention.output",
    "feed_forward.linear_1": "feed_forward.gate",
    "feed_forward.linear_2": "feed_forward.down",
    "feed_forward.linear_3": "feed_forward.up",
    "norm1.linear": "modulation",
    "norm1.norm": "before_attention",
    "norm2": "after_attention",
    "ffn_norm1": "before_feed_forward",
    "ffn_norm2": "after_feed_forward",
    "norm1_context": "condition_norm",
}
NOT_OURS = ("attn2.to_q", "attn2.norm_q", "pad_token")
NOT_THEIRS = ("condition.", "embedding.position_TD")


def _our_name(name: str) -> str:
    """Return our name of a parameter of the peer."""
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        if rest == "gate":
            return f"blocks.{layer}.attention.gate_N"
        part, _, kind = rest.rpartition(".")
        ours = NAMES[part]
        rms = "norm" in part and not part.startswith("attn") and part != "norm1.linear"
        return f"blocks.{layer}.{ours}.{'weight_D' if rms else kind}"
    part, _, kind = name.rpartition(".")
    for theirs, ours in NAMES.items():
        if part == theirs or part.startswith(theirs + "."):
            return f"{ours}{part.removeprefix(theirs)}.{kind}"
    raise KeyError(name)


def _peer(config=CONFIG) -> LuminaNextDiT2DModel:
    """Return a peer whose weights are all far from their start, with tied queries."""
    peer = LuminaNextDiT2DModel(
        sample_size=config.target_tokens,
        patch_size=1,
        in_channels=config.target_width,
        hidden_size=WIDTH,
        num_layers=DEPTH,
        num_attention_heads=HEADS,
        num_kv_heads=config.kv_heads,
        multiple_of=config.ffn_width,
        norm_eps=1e-6,
        learn_sigma=False,
        qk_norm=True,
        cross_attention_dim=WIDTH,
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(noise if name.endswith("gate") else 1 + 0.5 * noise)
        for layer in peer.layers:
            layer.attn2.to_q.load_state_dict(layer.attn1.to_q.state_dict())
            layer.attn2.norm_q.load_state_dict(layer.attn1.norm_q.state_dict())
    return peer


def _twin(peer: LuminaNextDiT2DModel, config=CONFIG) -> LuminaNextDiT:
    """Return our network with the weights of `peer`."""
    network = build_network(config).eval()
    assert isinstance(network, LuminaNextDiT)
    weights = {
        _our_name(name): parameter
        for name, parameter in peer.state_dict().items()
        if not any(part in name for part in NOT_OURS)
    }
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(name.startswith(NOT_THEIRS) for name in missing)
    torch.nn.init.zeros_(network.embedding.position_TD)
    return network


def _inputs(config=CONFIG) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(B, config.target_tokens, config.target_width, generator=generator)
    source = torch.randn(B, config.source_tokens, config.source_width, generator=generator)
    return x, torch.tensor([0.0, 0.37, 1.0]), source


@torch.no_grad()
def _ours(network: LuminaNextDiT, config=CONFIG) -> Tensor:
    """Return our output with unrotated condition keys."""
    x, t, source = _inputs(config)
    table = network.table
    network.table = RotaryTable(torch.zeros(config.target_tokens, config.head_width // 2))
    condition = network.encode_condition(source)
    network.table = table
    return network(x, t, condition)


@torch.no_grad()
def _theirs(peer: LuminaNextDiT2DModel, network: LuminaNextDiT, turns_TP: Tensor, config=CONFIG) -> Tensor:
    x, t, source = _inputs(config)
    pixels = x.transpose(1, 2)[..., None]
    found = peer(
        pixels,
        1000 * t,
        network.condition(source),
        torch.ones(B, config.source_tokens),
        turns_TP[:, None],
        cross_attention_kwargs={},
    ).sample
    return found[..., 0].transpose(1, 2)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def peer() -> LuminaNextDiT2DModel:
    return _peer()


def test_the_network_equals_its_peer_with_our_table(peer: LuminaNextDiT2DModel) -> None:
    network = _twin(peer)
    expected = _theirs(peer, network, network.table.turns_T1P[:, 0])
    assert _relative_error(_ours(network), expected) < TOLERANCE


def test_the_network_equals_its_peer_with_its_table() -> None:
    peer = _peer(WITHOUT_CLS)
    network = _twin(peer, WITHOUT_CLS)
    turns_TP = get_2d_rotary_pos_embed_lumina(WITHOUT_CLS.head_width, ROWS, COLUMNS).flatten(0, 1)
    network.table = RotaryTable(turns_TP.angle().double())
    expected = _theirs(peer, network, turns_TP, WITHOUT_CLS)
    assert _relative_error(_ours(network, WITHOUT_CLS), expected) < TOLERANCE


def _plain_gate(network: LuminaNextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "tanh", lambda self: self)


def _no_qk_norm(network: LuminaNextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in network.blocks:
        block.attention.query_norm = torch.nn.Identity()


def _no_condition_key_norm(network: LuminaNextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in network.blocks:
        block.attention.cross.key_norm = torch.nn.Identity()


def _norm_per_head(network: LuminaNextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    class PerHead(torch.nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            heads = torch.nn.functional.layer_norm(
                x.unflatten(-1, (HEADS, -1)), (WIDTH // HEADS,), eps=self.eps
            )
            return self.weight * heads.flatten(-2) + self.bias

    for block in network.blocks:
        norm = PerHead(WIDTH)
        norm.load_state_dict(block.attention.query_norm.state_dict())
        block.attention.query_norm = norm


def _no_logit_scale(network: LuminaNextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = lumina_next.attend
    monkeypatch.setattr(lumina_next, "attend", lambda q, kv: attend(q * 12**0.5, kv))


def _no_scale(network: LuminaNextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in network.blocks:
        for rows in (block.modulation.weight, block.modulation.bias):
            torch.nn.init.zeros_(rows[:WIDTH])


def _no_final_scale(network: LuminaNextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.nn.init.zeros_(network.modulation.weight)
    torch.nn.init.zeros_(network.modulation.bias)


def _no_summary(network: LuminaNextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.nn.init.zeros_(network.summary[1].weight)


def _other_time_scale(network: LuminaNextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.model.embedding.TIME_SCALE", 1.0)


@pytest.mark.parametrize(
    "mutate",
    [
        _plain_gate,
        _no_qk_norm,
        _no_condition_key_norm,
        _norm_per_head,
        _no_logit_scale,
        _no_scale,
        _no_final_scale,
        _no_summary,
        _other_time_scale,
    ],
)
def test_the_comparison_sees_every_piece(
    peer: LuminaNextDiT2DModel, monkeypatch: pytest.MonkeyPatch, mutate
) -> None:
    """Without it, the error is over a hundred times the tolerance."""
    network = _twin(peer)
    expected = _theirs(peer, network, network.table.turns_T1P[:, 0])
    mutate(network, monkeypatch)
    assert _relative_error(_ours(network), expected) > 100 * TOLERANCE


def test_rotated_condition_keys_are_our_own(peer: LuminaNextDiT2DModel) -> None:
    network = _twin(peer)
    x, t, source = _inputs()
    with torch.no_grad():
        rotated = network(x, t, network.encode_condition(source))
    assert _relative_error(rotated, _ours(network)) > 100 * TOLERANCE


def test_the_modulation_of_a_wide_network_is_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lumina_next, "WIDEST_MODULATION", 16)
    network = build_network(CONFIG)
    x, t, source = _inputs()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network(x, t, network.encode_condition(source)).square().sum().backward()
    assert {block.modulation.weight.shape for block in network.blocks} == {(4 * WIDTH, 16)}
    assert all(block.modulation.weight.grad.any() for block in network.blocks)
