"""What every architecture promises, checked on tiny configurations.

A new architecture is one file with a line in `flowkit.model.registry`; its name there brings it under every test here.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from unit.paired_material import FLOW

from flowkit.flow.noise import StartNoise
from flowkit.flow.scale import FeatureScale
from flowkit.model.config import DiTConfig
from flowkit.model.network import DiT
from flowkit.model.registry import ARCHITECTURE_MODULES
from flowkit.translator import Statistics, Translator, build_network

B = 3
KEEP = torch.tensor([True, True, False])
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
VARIANTS: dict[str, dict[str, Any]] = {
    "aligned": {},
    "cross": {"cross_attention": True},
    "cross_only": {"cross_attention": True, "aligned_condition": False},
    "adapter": {"adapter_layers": 3},
    "earlier_head": {"head": "earlier"},
    "patches": {"source_tokens": 9, "target_tokens": 9, "has_cls": False},
    "pooled": {"source_tokens": 1, "target_tokens": 1, "has_cls": False, "grid": (1, 1)},
    "views": {"source_tokens": 30, "target_tokens": 30, "views": 3, "cross_attention": True},
    "ungrouped": {"kv_heads": 4, "cross_attention": True},
}
BF16_ERROR = 0.02
"""bf16 keeps 8 bits: a rounding costs up to 0.004, those of a whole pass grow to 0.005 to 0.01 here."""


@pytest.fixture(params=ARCHITECTURE_MODULES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=VARIANTS)
def config(request: pytest.FixtureRequest, architecture: str) -> DiTConfig:
    return replace(TINY, architecture=architecture, **VARIANTS[request.param])


@pytest.fixture
def crossing(architecture: str) -> DiTConfig:
    """A configuration with everything switched on, for what no variant changes."""
    return replace(TINY, architecture=architecture, cross_attention=True, adapter_layers=3)


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


def _loss(network: DiT, config: DiTConfig) -> torch.Tensor:
    x, t, source = _inputs(config)
    return network(x, t, network.encode_condition(source, KEEP)).square().sum()


def _gradients(network: DiT, config: DiTConfig) -> dict[str, torch.Tensor]:
    network.zero_grad()
    _loss(network, config).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def _can_learn(name: str, config: DiTConfig) -> bool:
    """One token attends to itself whatever its query and key are."""
    return config.target_tokens > 1 or not (".query" in name or ".key" in name)


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def test_output_is_zero_at_initialisation(config: DiTConfig) -> None:
    x, t, source = _inputs(config)
    network = build_network(config)
    output = network(x, t, network.encode_condition(source))
    assert output.shape == x.shape
    assert output.dtype == torch.float32
    assert not output.any()


def test_gradients_reach_every_parameter(config: DiTConfig) -> None:
    network = _awake(build_network(config))
    gradients = _gradients(network, config)
    expected = {name for name, _ in network.named_parameters() if _can_learn(name, config)}
    assert expected <= {name for name, gradient in gradients.items() if gradient.any()}


def test_training_from_the_start_moves_every_parameter(config: DiTConfig) -> None:
    """Zeros in a row could hold each other at zero for ever."""
    network = build_network(config)
    start = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    x, t, source = _inputs(config)
    goal = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    for _ in range(8):
        optimizer.zero_grad()
        (network(x, t, network.encode_condition(source, KEEP)) - goal).square().mean().backward()
        optimizer.step()
    held = [name for name, parameter in network.named_parameters() if torch.equal(parameter, start[name])]
    assert [name for name in held if _can_learn(name, config)] == []


def test_weights_are_a_function_of_config_and_seed(config: DiTConfig) -> None:
    torch.manual_seed(99)
    first, again, other = (
        build_network(config, seed=1),
        build_network(config, seed=1),
        build_network(config, seed=2),
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_equal_calls_give_equal_bits_in_training_and_evaluation(config: DiTConfig) -> None:
    x, t, source = _inputs(config)
    network = _awake(build_network(config))
    first, again, evaluated = (
        mode(x, t, mode.encode_condition(source)) for mode in (network, network.train(), network.eval())
    )
    assert torch.equal(first, again)
    assert torch.equal(first, evaluated)


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


def test_one_condition_serves_a_batch_of_noise(config: DiTConfig) -> None:
    x, t, source = _inputs(config)
    network = _awake(build_network(config))
    torch.testing.assert_close(
        network(x, t, network.encode_condition(source[:1])),
        network(x, t, network.encode_condition(source[:1].expand(B, -1, -1))),
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
    mixed = network(x, t, network.encode_condition(source, KEEP))
    assert torch.equal(dropped, other)
    assert torch.equal(kept, network(x, t, network.encode_condition(source)))
    torch.testing.assert_close(mixed[KEEP], kept[KEEP])
    torch.testing.assert_close(mixed[~KEEP], dropped[~KEEP])
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


def test_places_matter(config: DiTConfig) -> None:
    """With all tokens of x and of the condition alike, outputs differ by place."""
    x, t, source = _inputs(config)
    network = _awake(build_network(config))
    output = network(
        x[:, :1].expand_as(x), t, network.encode_condition(source[:, :1].expand(-1, source.shape[1], -1))
    )
    distances = torch.cdist(output, output) + torch.eye(config.target_tokens)
    assert float(distances.detach().min()) > 1e-3


def test_bf16_is_near_fp32(config: DiTConfig) -> None:
    x, t, source = _inputs(config)
    network = _awake(build_network(config)).eval()
    expected = network(x, t, network.encode_condition(source))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(x, t, network.encode_condition(source))
    assert found.dtype == torch.bfloat16
    assert _relative_error(found, expected) < BF16_ERROR


def test_saved_and_loaded_weights_give_equal_bits(config: DiTConfig, tmp_path: Path) -> None:
    translator = _translator(config)
    translator.save(tmp_path)
    loaded = Translator.load(tmp_path)
    assert loaded.config == config
    _, _, source = _inputs(config)
    found, expected = (each.generate(source, num_inference_steps=2) for each in (loaded, translator))
    assert torch.equal(found, expected)


def test_token_matrices_are_those_of_adapter_attention_feed_forward_and_head(config: DiTConfig) -> None:
    network = build_network(config)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    named = sorted(names[id(matrix)] for matrix in network.token_matrices())
    assert named == sorted(
        name
        for name, parameter in network.named_parameters()
        if name.startswith(("blocks.", "condition.adapter.", "head."))
        and parameter.ndim == 2
        and ".modulation." not in name
    )


def test_recomputed_blocks_give_equal_gradients(config: DiTConfig) -> None:
    network = _awake(build_network(config))
    kept = _gradients(network, config)
    network.recompute_blocks(True)
    recomputed = _gradients(network, config)
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(gradient, recomputed[name]) for name, gradient in kept.items())


def _saved_bytes(network: DiT, config: DiTConfig) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights aside, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _loss(network, config)
    return sum(storage.nbytes() for storage in storages.values())


def test_recomputed_blocks_keep_fewer_activations(crossing: DiTConfig) -> None:
    deeper, shallow = (build_network(replace(crossing, depth=depth)) for depth in (6, 2))
    kept = [_saved_bytes(network, network.config) for network in (deeper, shallow)]
    for network in (deeper, shallow):
        network.recompute_blocks(True)
    recomputed = [_saved_bytes(network, network.config) for network in (deeper, shallow)]
    assert recomputed[0] - recomputed[1] < (kept[0] - kept[1]) / 4, "bytes per four blocks"
    for network in (deeper, shallow):
        network.recompute_blocks(False)
    assert [_saved_bytes(network, network.config) for network in (deeper, shallow)] == kept


@contextmanager
def _counted(network: DiT) -> Iterator[Counter[str]]:
    """Count the calls of every linear layer."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    yield calls
    for handle in handles:
        handle.remove()


def test_the_condition_is_encoded_once_in_a_sampling(crossing: DiTConfig) -> None:
    translator = _translator(crossing)
    _, _, source = _inputs(crossing)
    with _counted(translator.network) as encoding:
        translator.network.encode_condition(source)
    adapter = {name for name in encoding if "adapter" in name}
    keys_values = {name for name in encoding if name.startswith("blocks.")}
    assert len(adapter) == crossing.adapter_layers + 2
    assert len(keys_values) == 2 * crossing.depth
    with _counted(translator.network) as sampling:
        translator.generate(source, num_inference_steps=5, solver="euler")
    assert {sampling[name] for name in encoding} == {1}
    assert {sampling[name] for name in sampling.keys() - encoding.keys()} == {5}


def test_frozen_networks_can_be_sampled_while_blocks_are_recomputed(crossing: DiTConfig) -> None:
    translator = _translator(crossing)
    _, _, source = _inputs(crossing)
    expected = translator.generate(source, num_inference_steps=2)
    translator.network.requires_grad_(False).recompute_blocks(True)
    assert torch.equal(translator.generate(source, num_inference_steps=2), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "recompute"),
    [
        pytest.param(
            "inductor", False, marks=pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
        ),
        ("aot_eager", True),
    ],
)
def test_a_compiled_network_equals_the_plain_one(crossing: DiTConfig, backend: str, recompute: bool) -> None:
    config = replace(crossing, depth=1, adapter_layers=0)
    network = _awake(build_network(config))
    x, t, source = _inputs(config)
    plain, gradients = network(x, t, network.encode_condition(source, KEEP)), _gradients(network, config)
    network.recompute_blocks(recompute)
    network.zero_grad()
    torch.compiler.reset()

    @torch.compile(backend=backend, fullgraph=True)
    def compiled(x: torch.Tensor, t: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return network(x, t, network.encode_condition(source, KEEP))

    found = compiled(x, t, source)
    found.square().sum().backward()
    assert _relative_error(found, plain) < 1e-5
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert _relative_error(parameter.grad, gradients[name]) < 1e-4, name


def _translator(config: DiTConfig) -> Translator:
    def scale(width: int) -> FeatureScale:
        return FeatureScale(torch.zeros(width), torch.ones(width))

    statistics = Statistics(
        source=scale(config.source_width),
        target=scale(config.target_width),
        noise=StartNoise(torch.eye(config.target_tokens), torch.eye(config.target_width)),
        target_mean_TC=torch.zeros(config.target_tokens, config.target_width),
    )
    return Translator(_awake(build_network(config)).eval(), config, FLOW, "none", statistics)
