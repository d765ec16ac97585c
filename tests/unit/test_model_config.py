"""Shapes that fit together, shapes that do not, and the named sizes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from unit.paired_material import MODEL

from flowkit.flow.registry import build_head
from flowkit.model.config import DiTConfig
from flowkit.model.registry import ARCHITECTURE_MODULES, find_architecture
from flowkit.model.sizes import SIZES
from flowkit.translator import build_network

FULL = replace(
    MODEL,
    source_tokens=257,
    source_width=4096,
    target_tokens=257,
    target_width=1024,
    grid=(16, 16),
    has_cls=True,
    cross_attention=True,
    aligned_condition=True,
    head="linear",
)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"grid": (4, 4)}, "1 view.* 4 x 4 grid with CLS have 17 tokens, expected 5"),
        ({"has_cls": False}, "without CLS have 4 tokens"),
        ({"views": 2}, "2 view.* 2 x 2 grid with CLS have 10 tokens, expected 5; correct views"),
        ({"views": 0}, "views is 0, expected 1 or more"),
        ({"source_tokens": 17}, "17 tokens"),
        ({"heads": 3}, "heads 3"),
        ({"kv_heads": 3}, "kv_heads 3"),
        ({"aligned_condition": False, "cross_attention": False}, "condition"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changed: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(MODEL, **changed)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'unet'.*blip3o.*lumina_next"):
        build_network(replace(MODEL, architecture="unet"))


def test_every_architecture_lies_in_its_module() -> None:
    modules = {name: find_architecture(name).__module__ for name in ARCHITECTURE_MODULES}
    assert modules == ARCHITECTURE_MODULES


def test_architectures_are_listed_without_torch() -> None:
    """A workflow reads their names in each of its jobs."""
    code = "import flowkit.model.registry, flowkit.model.config, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _shared(config: DiTConfig, *, modulation: int) -> int:
    """Return the parameters of adapter, null condition, token and time embedding, and head."""
    source, width, layers = config.source_width, config.width, config.adapter_layers
    adapter = _linear(source, width)
    if layers:
        widths = [int(source + (width - source) * layer / layers) for layer in range(layers + 1)]
        adapter += sum(_linear(a, b) for a, b in pairwise(widths)) + _linear(width, width)
    tokens = _linear(config.target_width, width) + config.target_tokens * width
    time = _linear(256, modulation) + _linear(modulation, modulation)
    return adapter + width + tokens + time + _linear(width, config.target_width)


def _blip3o_parameters(config: DiTConfig) -> int:
    width, kv = config.width, config.width * config.kv_heads // config.heads
    attention = 2 * width * width + 2 * width * kv
    block = 2 * attention + 3 * width * config.ffn_width + 3 * width + _linear(width, 12 * width)
    return _shared(config, modulation=width) + config.depth * block + _linear(width, 2 * width)


def _lumina_next_parameters(config: DiTConfig) -> int:
    width, kv = config.width, config.width * config.kv_heads // config.heads
    modulation = min(width, 1024)
    attention = 2 * width * width + 2 * width + 2 * (2 * width * kv + 2 * kv) + config.heads
    block = attention + 3 * width * config.ffn_width + 5 * width + _linear(modulation, 4 * width)
    summary = 2 * width + _linear(width, modulation)
    final = _linear(modulation, width)
    return _shared(config, modulation=modulation) + summary + config.depth * block + final


FORMULAS = {"blip3o": _blip3o_parameters, "lumina_next": _lumina_next_parameters}


def _parameters(config: DiTConfig) -> int:
    with torch.device("meta"):
        head = build_head(config.head, width=config.width, target_width=config.target_width)
        network = find_architecture(config.architecture)(config, head)
    return sum(parameter.numel() for parameter in network.parameters())


def _named(architecture: str, size: str) -> DiTConfig:
    return replace(FULL, architecture=architecture, **SIZES[size])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("architecture", ARCHITECTURE_MODULES)
def test_parameters_are_those_of_the_formula(architecture: str, size: str) -> None:
    config = _named(architecture, size)
    assert _parameters(config) == FORMULAS[architecture](config)


@pytest.mark.parametrize(("size", "known"), [("base", 227.47e6), ("large", 684.3e6)])
def test_blip3o_has_the_parameters_it_is_known_for(size: str, known: float) -> None:
    assert _parameters(_named("blip3o", size)) == pytest.approx(known, rel=0.02)


def test_huge_has_over_a_billion_parameters() -> None:
    assert _parameters(_named("blip3o", "huge")) > 1.0e9


def test_the_block_of_lumina_next_has_the_parameters_of_the_paper() -> None:
    """Its formula for 768 wide, 12 blocks, 12 heads over 4, and a condition of that width gives 112,187,536.

    That counts a padding token; positions, null condition and adapter are ours alone.
    """
    config = _named("lumina_next", "base")
    with torch.device("meta"):
        network = find_architecture("lumina_next")(config, torch.nn.Linear(768, 1024))
    blocks = sum(parameter.numel() for parameter in network.blocks.parameters())
    final = sum(parameter.numel() for parameter in network.modulation.parameters()) + _linear(768, 1024)
    embedding = _linear(1024, 768)
    conditioning = sum(
        parameter.numel() for part in (network.time, network.summary) for parameter in part.parameters()
    )
    padding = 768
    assert blocks + final + embedding + conditioning + padding == 112_187_536
