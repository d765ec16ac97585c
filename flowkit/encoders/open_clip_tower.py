"""Any open_clip model with CLS pooling as a frozen encoder: `open_clip:<model>/<tag>`.

One `forward_intermediates` call gives the last block's tokens before the final norm and the projected
embedding. Pixels come from open_clip's own PIL transform. Half precision means autocast around fp32
weights. Models that pool in another way (attention pooling, mean) are refused: their embedding is no
function of the CLS token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import PIL
import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.pretrained import download_pretrained
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import VisionTransformer
from PIL import Image
from safetensors import SafetensorError
from torch import nn

from flowkit.encoders.contract import TOKEN_LAYER
from flowkit.errors import EncoderError

FAMILY = "open_clip"
TEXT_BATCH = 512
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Tokenizer = Callable[[list[str]], torch.Tensor]


@dataclass(frozen=True)
class _Anatomy:
    """Where a vision tower keeps what the contract needs."""

    grid: tuple[int, int]
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor | None
    norm_epsilon: float
    projection_PD: torch.Tensor
    projection_bias: torch.Tensor | None


class OpenClipEncoder:
    """A `FrozenEncoder` around an open_clip model in evaluation mode."""

    def __init__(
        self,
        name: str,
        model: CLIP | CustomTextCLIP,
        *,
        preprocessing: PreprocessCfg,
        tokenizer: Callable[[], Tokenizer],
        precision: str = "fp32",
        device: str = "cpu",
    ) -> None:
        """Wrap `model`; `tokenizer` is called once, at the first text. Raises `EncoderError` if it cannot."""
        if precision not in PRECISIONS:
            raise EncoderError(f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")
        self.name = name
        self.layer = TOKEN_LAYER
        self._model = model.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        self._autocast_dtype = PRECISIONS[precision]
        self._visual: Any = self._model.visual
        self._anatomy = _anatomy(name, self._visual)
        self._settings = preprocessing
        self._transform = image_transform_v2(preprocessing, is_train=False)
        self._make_tokenizer = tokenizer
        self._tokenizer: Tokenizer | None = None
        self.grid = self._anatomy.grid
        self.token_count = self.grid[0] * self.grid[1] + 1
        self.pooled_width, self.token_width = self._anatomy.projection_PD.shape

    @property
    def preprocessing(self) -> dict[str, object]:
        """How pixels are made from an image, as JSON values."""
        settings = {key: list(value) if isinstance(value, tuple) else value
                    for key, value in asdict(self._settings).items()}  # fmt: skip
        return settings | {"decoder": "pillow", "version": PIL.__version__}

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels [3, H, W] of an image, exactly as open_clip makes them."""
        return self._transform(image)

    @torch.no_grad()
    def encode(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens [N, T, D] and pooled [N, P] of one forward pass, float32 on the CPU."""
        with self._precision():
            found = self._visual.forward_intermediates(
                pixels_NCHW.to(self._device),
                indices=1,
                normalize_intermediates=False,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
        patches_NTD = found["image_intermediates"][-1]
        cls_N1D = found["image_intermediates_prefix"][-1]
        tokens_NTD = torch.cat([cls_N1D, patches_NTD], dim=1)
        return tokens_NTD.float().cpu(), found["image_features"].float().cpu()

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Return the text embeddings [N, P], not normalised, float32 on the CPU."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        found = [torch.empty(0, self.pooled_width)]
        for start in range(0, len(texts), TEXT_BATCH):
            ids = self._tokenizer(texts[start : start + TEXT_BATCH]).to(self._device)
            with self._precision():
                found.append(self._model.encode_text(ids).float().cpu())
        return torch.cat(found)

    def head(self) -> dict[str, torch.Tensor]:
        """Return final norm and projection for `apply_head`, float32 on the CPU."""
        parts = self._anatomy
        tensors = {
            "norm.weight": parts.norm_weight,
            "norm.bias": parts.norm_bias,
            "projection.weight": parts.projection_PD,
            "projection.bias": parts.projection_bias,
        }
        head = {
            key: value.detach().float().cpu().contiguous()
            for key, value in tensors.items()
            if value is not None
        }
        return head | {"norm.epsilon": torch.tensor([parts.norm_epsilon], dtype=torch.float64)}

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None
        )


def load_open_clip(name: str, weights: Path | None, *, precision: str, device: str) -> OpenClipEncoder:
    """Return the encoder `open_clip:<model>/<tag or file>` with the weights of a file.

    The tag tells preprocessing and activation; instead of a tag a file may be named, then the model's
    defaults hold. Nothing is downloaded here. Raises `EncoderError` for an unknown model or tag, a missing
    file, or a tag that was trained with another GELU than the model's.
    """
    model_name, tag, tag_settings = _parsed(name)
    file = weights or Path(tag)
    if not file.is_file():
        raise EncoderError(f"weights file {file} of encoder {name!r} does not exist; fetch it first")
    try:
        model = open_clip.create_model(model_name, pretrained=str(file), precision="fp32", device="cpu")
    except (RuntimeError, ValueError, OSError, SafetensorError) as fault:
        raise EncoderError(f"{file} does not fit encoder {name!r}: {str(fault).splitlines()[0]}") from fault
    base = PreprocessCfg(size=model.visual.image_size)
    return OpenClipEncoder(
        name,
        model,
        preprocessing=PreprocessCfg(**merge_preprocess_dict(base, tag_settings)),
        tokenizer=lambda: open_clip.get_tokenizer(model_name),
        precision=precision,
        device=device,
    )


def find_weights(name: str) -> Path:
    """Return the weights file of `open_clip:<model>/<tag or file>`; a tag is fetched if its cache lacks it.

    Raises `EncoderError` for an unknown model or tag, and if the file is neither there nor to be had.
    """
    model_name, tag, tag_settings = _parsed(name)
    if not tag_settings:
        return Path(tag)
    try:
        return Path(download_pretrained(tag_settings))
    except (OSError, ValueError, RuntimeError) as fault:
        raise EncoderError(
            f"weights {tag} of {model_name} cannot be fetched ({str(fault).splitlines()[0]}); "
            f"fetch them where there is internet, then name the file: open_clip:{model_name}/FILE"
        ) from fault


def _parsed(name: str) -> tuple[str, str, dict[str, Any]]:
    """Return model, tag or file, and the tag's settings (empty for a file) after checking that they match."""
    model_name, _, tag = name.removeprefix(f"{FAMILY}:").partition("/")
    config = open_clip.get_model_config(model_name)
    if config is None:
        near = get_close_matches(model_name, open_clip.list_models(), n=3, cutoff=0.5)
        raise EncoderError(
            f"open_clip has no model {model_name!r} (encoder {name!r}); near: {', '.join(near)}"
        )
    tag_settings = open_clip.get_pretrained_cfg(model_name, tag) or {}
    if not tag_settings and Path(tag).suffix not in WEIGHTS_SUFFIXES:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model_name)) or "none"
        raise EncoderError(
            f"{tag!r} is neither a tag of {model_name} ({known}) nor a file "
            f"({', '.join(WEIGHTS_SUFFIXES)}) (encoder {name!r})"
        )
    activation = {True: "QuickGELU", False: "GELU"}
    model_gelu, tag_gelu = (bool(one.get("quick_gelu")) for one in (config, tag_settings or config))
    if model_gelu != tag_gelu:
        raise EncoderError(
            f"encoder {name!r}: the weights were trained with {activation[tag_gelu]}, the model has "
            f"{activation[model_gelu]}; name the twin model (QuickGELU models end in -quickgelu)"
        )
    return model_name, tag, tag_settings


def _anatomy(name: str, visual: Any) -> _Anatomy:
    if isinstance(visual, VisionTransformer) and visual.pool_type == "tok" and visual.attn_pool is None:
        if visual.proj is not None:
            norm, weight_PD, bias, grid = visual.ln_post, visual.proj.T, None, visual.grid_size
            return _Anatomy(tuple(grid), norm.weight, norm.bias, norm.eps, weight_PD, bias)
    elif isinstance(visual, TimmModel) and _pools_cls(visual.trunk):
        trunk: Any = visual.trunk
        linear: Any = trunk.head if isinstance(trunk.head, nn.Linear) else visual.head.proj
        norm, grid = trunk.norm, trunk.patch_embed.grid_size
        bias = getattr(norm, "bias", None)
        return _Anatomy(tuple(grid), norm.weight, bias, norm.eps, linear.weight, linear.bias)
    raise EncoderError(
        f"encoder {name!r}: its {type(visual).__name__} does not project the normed CLS token; "
        "expected a model with CLS pooling and one prefix token"
    )


def _pools_cls(trunk: nn.Module) -> bool:
    return (
        getattr(trunk, "global_pool", None) == "token"
        and getattr(trunk, "num_prefix_tokens", 0) == 1
        and isinstance(getattr(trunk, "fc_norm", None), nn.Identity)
        and not isinstance(getattr(trunk, "norm", None), nn.Identity)
    )
