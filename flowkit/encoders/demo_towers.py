"""The two demo encoders, built from open_clip's own classes and trained on the demo shapes.

`demo-vit` (target): open_clip's VisionTransformer, 96 wide. `demo-eva` (source): timm's Eva class with
rotary positions, SwiGLU and sub-norms, 128 wide. Both: 32 px, 4 x 4 patches + CLS, 3 blocks, embedding 64,
and a one-block text tower that reads whole words. Their weights are small fp16 files in `assets/`; what
they are worth stands in its README.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.transform import PreprocessCfg
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models.eva import Eva
from torch import nn

from flowkit.encoders.open_clip_encoder import OpenClipEncoder
from flowkit.errors import EncoderError

ASSETS = Path(__file__).parent / "assets"
IMAGE_PIXELS = 32
EMBEDDING_WIDTH = 64
CONTEXT_LENGTH = 20
PAD, UNKNOWN, START, END = "<pad>", "<unknown>", "<start>", "<end>"
WORDS = (
    "a", "on", "background", "of", "left", "right", "above", "below", "striped", "small", "large",
    "circle", "square", "triangle", "cross", "black", "gray", "white",
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink",
)  # fmt: skip
_IDS = {
    word: number for number, word in enumerate((PAD, UNKNOWN, START, *WORDS, END))
}  # END last: CLIP pools there
PREPROCESSING = PreprocessCfg(size=IMAGE_PIXELS, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

_VISION: dict[str, dict[str, object]] = {
    "demo-vit": {"layers": 3, "width": 96, "head_width": 24, "patch_size": 8, "image_size": IMAGE_PIXELS},
    "demo-eva": {
        "timm_model_name": "flowkit_demo_eva",
        "timm_pool": "token",
        "timm_proj": None,
        "image_size": IMAGE_PIXELS,
    },
}
_TEXT = {"context_length": CONTEXT_LENGTH, "vocab_size": len(_IDS), "width": 64, "heads": 4, "layers": 1}


@timm.models.register_model
def flowkit_demo_eva(
    pretrained: bool = False, *, num_classes: int = 0, global_pool: str = "token", **ignored: object
) -> nn.Module:
    """Return the demo's Eva trunk; timm must know it: open_clip's dict config has no width or depth."""
    return Eva(
        img_size=IMAGE_PIXELS,
        patch_size=8,
        embed_dim=128,
        depth=3,
        num_heads=4,
        qkv_fused=False,
        mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
        head_init_scale=1.0,
        num_classes=num_classes,
        global_pool=global_pool,
    )


def build_demo_tower(name: str) -> CLIP | CustomTextCLIP:
    """Return the untrained model of a demo tower; raises `EncoderError` for another name."""
    if name not in _VISION:
        raise EncoderError(f"demo tower {name!r} is unknown; expected one of {', '.join(_VISION)}")
    model_class = CLIP if name == "demo-vit" else CustomTextCLIP
    return model_class(embed_dim=EMBEDDING_WIDTH, vision_cfg=dict(_VISION[name]), text_cfg=dict(_TEXT))


def tokenize(texts: list[str]) -> torch.Tensor:
    """Return word ids [N, 20]: start, words, end, padding; unknown words share one id, long texts are cut."""
    ids = torch.full((len(texts), CONTEXT_LENGTH), _IDS[PAD])
    for row, text in zip(ids, texts, strict=True):
        words = text.lower().replace(",", " ").replace(".", " ").split()[: CONTEXT_LENGTH - 2]
        numbers = [_IDS[START], *(_IDS.get(word, _IDS[UNKNOWN]) for word in words), _IDS[END]]
        row[: len(numbers)] = torch.tensor(numbers)
    return ids


def as_encoder(
    name: str, model: nn.Module, *, precision: str = "fp32", device: str = "cpu", compile: bool = False
) -> OpenClipEncoder:
    """Return a demo model as a frozen encoder."""
    return OpenClipEncoder(
        name,
        model,
        preprocessing=PREPROCESSING,
        tokenizer=lambda: tokenize,
        precision=precision,
        device=device,
        compile=compile,
    )


def load_demo_tower(
    name: str, weights: Path | None, *, precision: str, device: str, compile: bool = False
) -> OpenClipEncoder:
    """Return a demo tower with the weights of a file (default: the committed ones).

    Raises `EncoderError` if the file is missing, damaged, or its keys or shapes are not exactly the tower's.
    """
    model = build_demo_tower(name)
    file = weights or ASSETS / f"{name}.safetensors"
    try:
        state = load_file(file)
    except FileNotFoundError as fault:
        raise EncoderError(f"weights file {file} of {name} does not exist; train the tower first") from fault
    except (SafetensorError, OSError) as fault:
        raise EncoderError(f"weights file {file} is damaged ({fault}); train the tower again") from fault
    _check_state(name, file, state, model.state_dict())
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return as_encoder(name, model, precision=precision, device=device, compile=compile)


def save_demo_tower(state: dict[str, torch.Tensor], file: Path) -> None:
    """Write a state dict as fp16 safetensors under a temporary name and rename it."""
    partial = file.with_name(f".{file.name}.partial")
    halves = {key: value.detach().cpu().half().contiguous() for key, value in state.items()}
    partial.write_bytes(save(halves))  # not save_file, which makes files that only their owner can read
    partial.replace(file)


def _check_state(
    name: str, file: Path, state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    strange = sorted(state.keys() ^ expected.keys())
    if strange:
        which = "lacks" if strange[0] in expected else "has the unknown"
        raise EncoderError(
            f"{file} {which} tensor {strange[0]} ({len(strange)} keys are not as in {name}); name its file"
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise EncoderError(
                f"{file}: {key} is {tuple(value.shape)}, {name} expects {tuple(expected[key].shape)}; "
                "name its file"
            )
