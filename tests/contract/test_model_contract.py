"""What every architecture promises, checked on tiny configurations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowkit.model.dit import DiT, DiTConfig
from flowkit.model.sizes import SIZES
from flowkit.translator import ARCHITECTURE_MODULES, build_network

B = 3
TINY = DiTConfig(
    architecture="blip3o",
    source_tokens=10,
    source_width=20,
    target_tokens=10,
    target_width=12,
    grid=(3, 3),
    has_cls=True,
    width=32,
    depth=2,
    heads=4,
    kv_heads=2,
    ffn_width=48,
    adapter_layers=0,
    cross_attention=False,
    aligned_condition=True,
    head="linear",
)
VARIANTS = {
    "aligned": {},
    "cross": {"cross_attention": True},
    "cross_only": {"cross_attention": True, "aligned_condition": False},
    "adapter": {"adapter_layers": 3},
    "earlier_head": {"head": "earlier"},
    "patches": {"source_tokens": 9, "target_tokens": 9, "has_cls": False},
    "pooled": {"source_tokens": 1, "target_tokens": 1, "has_cls": False, "grid": (1, 1)},
}


@pytest.fixture(
    params=[(name, variant) for name in ARCHITECTURE_MODULES for variant in VARIANTS], ids="-".join
)
def config(request: pytest.FixtureRequest) -> DiTConfig:
    architecture, variant = request.param
    return replace(TINY, architecture=architecture, **VARIANTS[variant])


def _inputs(config: DiTConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, config.target_tokens, config.target_width, generator=generator)
    source = torch.randn(B, config.source_tokens, config.source_width, generator=generator)
    return x, torch.tensor([0.0, 0.3, 1.0]), source


def _awake(network: DiT) -> DiT:
    """Move every parameter off its start, as training would, so that gates are open."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def test_output_is_zero_at_initialisation(config: DiTConfig) -> None:
    x, t, source = _inputs(config)
    network = build_network(config)
    output = network(x, t, network.encode_condition(source))
    assert output.shape == x.shape
    assert not output.any()


def test_gradients_reach_every_parameter(config: DiTConfig) -> None:
    x, t, source = _inputs(config)
    network = _awake(build_network(config))
    keep = torch.tensor([True, True, False])
    network(x, t, network.encode_condition(source, keep)).square().sum().backward()
    silent = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    lone = config.target_tokens == 1  # one token attends to itself whatever its query and key are
    assert [name for name in silent if not (lone and (".query." in name or ".key." in name))] == []


def test_weights_are_a_function_of_config_and_seed(config: DiTConfig) -> None:
    torch.manual_seed(99)
    first, again, other = (
        build_network(config, seed=1),
        build_network(config, seed=1),
        build_network(config, seed=2),
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_an_image_does_not_see_the_rest_of_its_batch(config: DiTConfig) -> None:
    x, t, source = _inputs(config)
    network = _awake(build_network(config))
    whole = network(x, t, network.encode_condition(source))
    alone = network(x[1:2], t[1:2], network.encode_condition(source[1:2]))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-4)


def test_one_time_for_all_images_is_the_same_as_repeating_it(config: DiTConfig) -> None:
    x, _, source = _inputs(config)
    network = _awake(build_network(config))
    condition = network.encode_condition(source)
    torch.testing.assert_close(
        network(x, torch.tensor([0.4]), condition),
        network(x, torch.full((B,), 0.4), condition),
        atol=1e-5,
        rtol=1e-4,
    )


def test_dropped_conditions_are_all_alike(config: DiTConfig) -> None:
    x, t, source = _inputs(config)
    network = _awake(build_network(config))
    none_kept = torch.zeros(B, dtype=torch.bool)
    dropped = network(x, t, network.encode_condition(source, none_kept))
    other = network(x, t, network.encode_condition(source + 1, none_kept))
    kept = network(x, t, network.encode_condition(source, ~none_kept))
    torch.testing.assert_close(dropped, other)
    torch.testing.assert_close(kept, network(x, t, network.encode_condition(source)))
    assert not torch.allclose(dropped, kept)


def test_the_output_depends_on_noise_time_and_condition(config: DiTConfig) -> None:
    x, t, source = _inputs(config)
    network = _awake(build_network(config))
    output = network(x, t, network.encode_condition(source))
    for changed in (
        network(x + 1, t, network.encode_condition(source)),
        network(x, 1 - t, network.encode_condition(source)),
        network(x, t, network.encode_condition(source + 1)),
    ):
        assert not torch.allclose(output, changed, atol=1e-4)


def test_hidden_matrices_are_matrices_of_the_network(config: DiTConfig) -> None:
    network = build_network(config)
    named = {id(parameter) for parameter in network.parameters()}
    matrices = network.hidden_matrices()
    per_block = 4 + 3 + (4 if config.cross_attention else 0)
    assert len(matrices) == config.depth * per_block
    assert all(matrix.ndim == 2 and id(matrix) in named for matrix in matrices)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"grid": (4, 4)}, "4 x 4 grid"),
        ({"source_tokens": 17}, "17 tokens"),
        ({"heads": 3}, "heads 3"),
        ({"aligned_condition": False}, "condition"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changed: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(TINY, **changed)


@pytest.mark.parametrize(
    ("size", "low", "high"), [("base", 220e6, 235e6), ("large", 670e6, 700e6), ("huge", 1e9, 1.6e9)]
)
def test_named_sizes_have_the_parameters_they_are_known_for(size: str, low: float, high: float) -> None:
    full = replace(
        TINY,
        source_tokens=257,
        source_width=4096,
        target_tokens=257,
        target_width=1024,
        grid=(16, 16),
        cross_attention=True,
        **SIZES[size],
    )
    with torch.device("meta"):
        network = DiT(full, torch.nn.Linear(full.width, 1024))
    assert low < sum(parameter.numel() for parameter in network.parameters()) < high
