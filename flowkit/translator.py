"""A trained translator: checkpoint folder <-> network, feature scale and objective, and `generate()`.

A checkpoint folder holds `config.json` (network, objective, feature scale), `model.safetensors` (the averaged weights)
and `statistics.safetensors` (scales, start noise, mean target). Its bytes depend on these values alone.

Shapes: B images, T tokens, E source width, C target width. Tokens go in and come out at their raw scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from flowkit.errors import CheckpointError, ConfigError
from flowkit.flow.adaptive import DEFAULT_TOLERANCE
from flowkit.flow.guidance import CONDITIONAL, evaluations_per_velocity
from flowkit.flow.noise import StartNoise
from flowkit.flow.objective import Network, ObjectiveConfig, Transport
from flowkit.flow.registry import build_head, build_objective
from flowkit.flow.scale import FeatureScale
from flowkit.flow.solvers import ADAPTIVE, find_solver
from flowkit.model.config import DiTConfig
from flowkit.model.network import DiT
from flowkit.model.registry import find_architecture

SCHEMA = 1
DEFAULT_SEED = 0

AnyConfig = TypeVar("AnyConfig", DiTConfig, ObjectiveConfig)


@dataclass(frozen=True)
class Statistics:
    """What was fitted on the training features: both scales, the start noise and the mean target (raw scale)."""

    source: FeatureScale
    target: FeatureScale
    noise: StartNoise
    target_mean_TC: Tensor

    def to(self, device: torch.device | str) -> Statistics:
        """Return the same statistics on `device`."""
        return Statistics(
            self.source.to(device),
            self.target.to(device),
            self.noise.to(device),
            self.target_mean_TC.to(device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by the names they have in `statistics.safetensors`."""
        tensors = {
            "source_shift": self.source.shift_C,
            "source_spread": self.source.spread_C,
            "target_shift": self.target.shift_C,
            "target_spread": self.target.spread_C,
            "noise_positions": self.noise.positions_TT,
            "noise_channels": self.noise.channels_CC,
            "target_mean": self.target_mean_TC,
        }
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Statistics:
        """Return the statistics that `tensors()` wrote."""
        return cls(
            FeatureScale(tensors["source_shift"], tensors["source_spread"]),
            FeatureScale(tensors["target_shift"], tensors["target_spread"]),
            StartNoise(tensors["noise_positions"], tensors["noise_channels"]),
            tensors["target_mean"],
        )


@dataclass(frozen=True)
class Translation:
    """Target tokens, float32 at raw scale, and how often the network was evaluated, summed over the images."""

    tokens_BTC: Tensor
    evaluations: int


def build_network(config: DiTConfig, *, seed: int = DEFAULT_SEED) -> DiT:
    """Return an untrained network whose weights are a pure function of `config` and `seed`.

    Raises `ValueError` for an unknown architecture or head.
    """
    architecture = find_architecture(config.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_head(config.head, width=config.width, target_width=config.target_width)
        return architecture(config, head)


class Translator:
    """Translates source tokens into target tokens."""

    def __init__(
        self,
        network: DiT,
        config: DiTConfig,
        objective: ObjectiveConfig,
        feature_scale: str,
        statistics: Statistics,
    ) -> None:
        self.network = network
        self.config = config
        self.objective_config = objective
        self.feature_scale = feature_scale
        self.statistics = statistics
        self._objective = build_objective(objective)

    @property
    def is_regression(self) -> bool:
        """Whether the network is evaluated once, without noise, whatever solver is named."""
        return self.objective_config.kind == "regression"

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def to(self, device: torch.device | str) -> Translator:
        """Return this translator moved to `device`."""
        self.network.to(device)
        self.statistics = self.statistics.to(device)
        return self

    def network_evaluations(
        self, *, num_inference_steps: int, solver: str, guidance_scale: float = CONDITIONAL
    ) -> int:
        """Return how often `generate` evaluates the network for one image.

        Raises `ValueError` for the adaptive solver, which nobody can tell beforehand.
        """
        if self.is_regression:
            return 1
        return find_solver(solver).evaluations(num_inference_steps) * evaluations_per_velocity(guidance_scale)

    def generate(
        self,
        condition: Tensor,
        *,
        num_inference_steps: int = 50,
        solver: str = "heun",
        guidance_scale: float = CONDITIONAL,
        time_shift: float = 1.0,
        tolerance: float = DEFAULT_TOLERANCE,
        generator: torch.Generator | None = None,
        white_noise: Tensor | None = None,
    ) -> Tensor:
        """Return target tokens [B, T, C], float32 at raw scale, for source tokens `condition` [B, T, E].

        A translator of several views (`config.views`) takes and gives the tokens of all views, one after the other.
        A `time_shift` above 1 moves the steps towards the noise end. The solver "adaptive" chooses its steps by
        `tolerance`, image by image, and ignores their number and shift. Start noise comes from `white_noise` [B, T, C]
        if given, otherwise from `generator` (without one: from a fixed seed, so equal calls give equal tokens). A
        regression ignores solver, steps and noise. Raises `ConfigError` for guidance that the network was not trained
        for, `ValueError` for a condition of another shape or an impossible solver, number of steps, shift or tolerance.
        """
        transport = Transport(solver, num_inference_steps, guidance_scale, time_shift, tolerance)
        white = self._white_noise(len(condition), generator) if white_noise is None else white_noise
        return self.translate(condition, transport, [white]).tokens_BTC

    @torch.inference_mode()
    def translate(self, condition: Tensor, transport: Transport, noises: Iterable[Tensor]) -> Translation:
        """Return the mean of the samples that start from each of `noises` [B, T, C], and what they cost.

        The condition is encoded once. Raises as `generate` does.
        """
        self._check(condition, transport.guidance_scale)
        source = self.statistics.source.apply(condition.to(self.device, self._dtype))
        at_once = 1 if transport.solver == ADAPTIVE and not self.is_regression else max(1, len(source))
        encoded = [self.network.encode_condition(part) for part in source.split(at_once)]
        null = None
        if transport.guidance_scale != CONDITIONAL and not self.is_regression:
            dropped = torch.zeros(1, dtype=torch.bool, device=self.device)
            null = self.network.encode_condition(source[:1], dropped)
        network = _CountedNetwork(self.network)
        samples = 0
        total = torch.zeros(1, device=self.device)
        for white in noises:
            parts = white.to(self.device, self._dtype).split(at_once)
            made = [
                self._objective.sample(network, one, null, self.statistics.noise.color(part), transport)
                for one, part in zip(encoded, parts, strict=True)
            ]
            total = total + torch.cat(made)
            samples += 1
        tokens = self.statistics.target.undo((total / samples).float())
        return Translation(tokens, network.evaluations)

    def _white_noise(self, images: int, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            generator = torch.Generator(self.device).manual_seed(DEFAULT_SEED)
        shape = (images, self.config.target_tokens, self.config.target_width)
        return torch.randn(shape, generator=generator, device=generator.device).to(self.device)

    def _check(self, condition: Tensor, guidance_scale: float) -> None:
        expected = (self.config.source_tokens, self.config.source_width)
        if condition.ndim != 3 or tuple(condition.shape[1:]) != expected:
            raise ValueError(
                f"condition has shape {tuple(condition.shape)}, expected [images, {expected[0]}, {expected[1]}]; "
                "use tokens of the source encoder and layout that the translator was trained on"
            )
        if self.is_regression:
            return
        if guidance_scale != CONDITIONAL and not self.objective_config.condition_dropout:
            raise ConfigError(
                f"guidance_scale is {guidance_scale}, expected 1.0 for a translator trained without condition "
                "dropout; train a flow with condition_dropout > 0"
            )

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint folder; equal translators give equal bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        described = {
            "schema": SCHEMA,
            "network": asdict(self.config),
            "objective": asdict(self.objective_config),
            "feature_scale": self.feature_scale,
        }
        (folder / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
        for name, tensors in (
            ("model", self.network.state_dict()),
            ("statistics", self.statistics.tensors()),
        ):
            contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            (folder / f"{name}.safetensors").write_bytes(save(contiguous))

    @classmethod
    def load(cls, folder: str | Path) -> Translator:
        """Return the translator saved in `folder`, on the CPU; raises `CheckpointError` if it is damaged."""
        folder = Path(folder)
        described = _read_config(folder / "config.json")
        try:
            config = _parse(DiTConfig, described["network"])
            objective = _parse(ObjectiveConfig, described["objective"])
            network = build_network(config)
            network.load_state_dict(load_file(folder / "model.safetensors"))
            statistics = Statistics.from_tensors(load_file(folder / "statistics.safetensors"))
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {folder} cannot be read: {' '.join(str(error).split())}; expected config.json, "
                "model.safetensors and statistics.safetensors of one training; train again or restore the folder"
            ) from error
        return cls(network.eval(), config, objective, described["feature_scale"], statistics)


class _CountedNetwork:
    """A network that counts the images that it is evaluated for."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.evaluations = 0

    def encode_condition(self, source_BSE: Tensor, keep_B: Tensor | None = None) -> Any:
        return self._network.encode_condition(source_BSE, keep_B)

    def __call__(self, x_BTC: Tensor, t_B: Tensor, condition: Any) -> Tensor:
        self.evaluations += len(x_BTC)
        return self._network(x_BTC, t_B, condition)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        described = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint file {file} cannot be read: {error}; expected the config.json of a trained translator; "
            "give the folder that training wrote"
        ) from error
    if described.get("schema") != SCHEMA:
        raise CheckpointError(
            f"checkpoint file {file} has schema {described.get('schema')!r}, expected {SCHEMA}; train again"
        )
    return described


def _parse(kind: type[AnyConfig], values: dict[str, Any]) -> AnyConfig:
    names = {field.name for field in fields(kind)}
    if set(values) != names:
        raise ValueError(f"keys differ from those of {kind.__name__}: {sorted(set(values) ^ names)}")
    typed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return kind(**typed)
