"""The translator: save and load, generate, samplers, and the noise of an image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paired_material import FLOW, MODEL, Pairs

import flowkit
from flowkit.errors import CheckpointError, ConfigError
from flowkit.sampling.sampler import parse_sampler, resolve, sample
from flowkit.training.statistics import fit_statistics
from flowkit.translator import Translator, build_network


def _translator(**changed) -> Translator:
    objective = replace(FLOW, **changed)
    network = build_network(MODEL, seed=5).eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    statistics = fit_statistics(Pairs(64), feature_scale="factor", start_noise=objective.start_noise)
    return Translator(network, MODEL, objective, "factor", statistics)


@pytest.fixture
def source() -> torch.Tensor:
    return Pairs(6, seed=2).source


def _count_evaluations(translator: Translator, source: torch.Tensor, **arguments) -> int:
    calls = []
    handle = translator.network.register_forward_hook(lambda *_: calls.append(1))
    translator.generate(source, **arguments)
    handle.remove()
    return len(calls)


def test_a_saved_translator_gives_the_same_tokens(tmp_path: Path, source: torch.Tensor) -> None:
    translator = _translator()
    translator.save(tmp_path / "a")
    loaded = flowkit.load(tmp_path / "a")
    assert torch.equal(
        loaded.generate(source, num_inference_steps=3), translator.generate(source, num_inference_steps=3)
    )
    loaded.save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_tokens_come_out_at_raw_scale(source: torch.Tensor) -> None:
    translator = _translator()
    tokens = translator.generate(source, num_inference_steps=1, solver="euler")
    with torch.inference_mode():
        encoded = translator.network.encode_condition(translator.statistics.source.apply(source))
        clean = translator.network(torch.zeros_like(tokens), torch.zeros(1), encoded)
    torch.testing.assert_close(tokens, translator.statistics.target.undo(clean), atol=1e-4, rtol=1e-4)
    assert tokens.dtype == torch.float32


def test_noise_follows_the_generator(source: torch.Tensor) -> None:
    translator = _translator()

    def generate(seed: int | None) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return translator.generate(source, num_inference_steps=2, solver="euler", generator=generator)

    assert torch.equal(generate(1), generate(1))
    assert torch.equal(generate(None), generate(None))
    assert not torch.equal(generate(1), generate(2))


@pytest.mark.parametrize("name", ["euler-1", "midpoint-2", "heun-5"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_evaluations_are_counted(source: torch.Tensor, name: str, guidance: float) -> None:
    translator, sampler = _translator(), parse_sampler(name)
    arguments = {"num_inference_steps": sampler.steps, "solver": sampler.solver, "guidance_scale": guidance}
    counted = _count_evaluations(translator, source, **arguments)
    assert counted == translator.network_evaluations(**arguments)
    assert counted == sampler.nfe * (2 if guidance != 1 else 1)


def test_a_regression_is_evaluated_once_whatever_is_asked(source: torch.Tensor) -> None:
    translator = _translator(kind="regression")
    assert _count_evaluations(translator, source, num_inference_steps=50, solver="heun") == 1
    assert translator.network_evaluations(num_inference_steps=50, solver="heun") == 1
    assert resolve(parse_sampler("heun-50"), translator) == parse_sampler("direct-1")


def test_guidance_needs_a_network_trained_for_it(source: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"guidance_scale is 3\.0.*condition_dropout"):
        _translator(condition_dropout=0.0).generate(source, guidance_scale=3.0)


def test_guidance_changes_the_tokens(source: torch.Tensor) -> None:
    translator = _translator()
    plain, guided = (
        translator.generate(source, num_inference_steps=3, guidance_scale=scale) for scale in (1.0, 3.0)
    )
    assert not torch.allclose(plain, guided, atol=1e-2)


def test_a_condition_of_another_shape_is_refused(source: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(6, 4, 12\).*\[images, 5, 12\]"):
        _translator().generate(source[:, 1:])


def test_samples_of_an_image_do_not_depend_on_the_batch() -> None:
    translator, data = _translator(), Pairs(7, seed=2)
    ids = np.arange(100, 107)

    def run(size: int, seed: int = 1) -> torch.Tensor:
        batches = [(ids[i : i + size], data.source[i : i + size]) for i in range(0, 7, size)]
        done = list(sample(translator, batches, parse_sampler("heun-3"), seed=seed))
        assert np.concatenate([chunk for chunk, _ in done]).tolist() == ids.tolist()
        return torch.cat([tokens for _, tokens in done])

    torch.testing.assert_close(run(7), run(2), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(run(7), run(7, seed=2), atol=1e-2)


@pytest.mark.parametrize("name", ["heun", "heun-0", "heun-x", "rk-4", "direct-2", "-5", "euler-1.5"])
def test_a_wrong_sampler_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'"):
        parse_sampler(name)


def test_a_flow_has_no_direct_estimate() -> None:
    with pytest.raises(ConfigError, match="euler-1"):
        resolve(parse_sampler("direct-1"), _translator())


@pytest.mark.parametrize("damage", ["config", "model", "statistics", "schema", "key", "architecture"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    _translator().save(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    if damage == "config":
        (tmp_path / "config.json").unlink()
    elif damage in ("model", "statistics"):
        file = tmp_path / f"{damage}.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "schema":
        described["schema"] = 99
    elif damage == "key":
        described["network"]["dropout"] = 0.1
    else:
        described["network"]["architecture"] = "unet"
    if damage in ("schema", "key", "architecture"):
        (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Translator.load(tmp_path)
