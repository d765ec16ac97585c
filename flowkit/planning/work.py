"""Floating point operations of encoders and of training, counted on networks without memory ("meta").

Two operations are a multiplication with an addition; norms, activations and the optimiser are left out.

    operations of an encoder = forward pass of one image
    operations of a training sample = forward and backward pass of the network; the condition is encoded once
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from flowkit.encoders.eva_names import named_tower
from flowkit.encoders.names import split_name
from flowkit.encoders.token_shapes import EncoderShape, model_without_memory
from flowkit.planning.sizes import network_without_memory

if TYPE_CHECKING:
    from torch import Tensor, nn


@cache
def encoder_operations(name: str) -> float:
    """Return the operations of one image in the encoder `name`; raises `EncoderError` if it is unknown."""
    import torch

    parts = split_name(name)
    if parts.family == "eva_clip":
        from flowkit.encoders.eva_clip import build_eva

        config = named_tower(name)[0].config
        tower = build_eva(config).eval()
        return _counted(tower, torch.empty(1, 3, config.image_pixels, config.image_pixels, device="meta"))
    if parts.family == "open_clip":
        visual = model_without_memory(name).visual.eval()
        size = visual.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return _counted(visual, torch.empty(1, 3, height, width, device="meta"))
    from flowkit.encoders.registry import load_encoder

    encoder = load_encoder(name)
    pixels = encoder.preprocess(_black()).unsqueeze(0)
    return _counting(lambda: encoder.encode(pixels))


@cache
def training_operations(
    model: tuple[tuple[str, Any], ...], source: EncoderShape, target: EncoderShape, views: int = 1
) -> float:
    """Return the operations of one training sample in the network of a configuration (its items).

    The shapes are those of a sample in the layout that is translated. Raises `ConfigError` for shapes that do not fit.
    """
    import torch

    network = network_without_memory(model, source, target, views)
    with torch.device("meta"):
        x_BTC = torch.empty(1, target.tokens, target.width)
        source_BSE, t_B = torch.empty(1, source.tokens, source.width), torch.empty(1)
    outputs: list[Tensor] = []
    forward = _counting(lambda: outputs.append(network(x_BTC, t_B, network.encode_condition(source_BSE))))
    return forward + _counting(lambda: outputs[0].sum().backward())


def _counted(module: nn.Module, pixels: Tensor) -> float:
    return _counting(lambda: module(pixels))


def _counting(work: Any) -> float:
    """Return the operations of a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _black() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 64))
