"""Who takes the tokens, and in which form: one entry per consumer.

    channels_first   [N, D, T]   patches of the last block before the tower's final norm, no class token
    channels_last    [N, T, D]   the same, one row per patch
    pooled           [N, P]      class token through the tower's own final norm and projection, then of length 1

All are float32. Patches are in reading order in every consumer. T, D and P follow the data; for the encoder that the
consumers were trained on they are 256, 1024 and 768. Who takes text embeddings (Point-E's base40M-textvec, Shap-E's
text300M) is not listed: images and texts lie apart in CLIP's space. Reads no tensors, so a configuration is judged
before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from flowkit.encoders.names import split_name
from flowkit.errors import ConfigError
from flowkit.export_section import ConsumerName
from flowkit.validation import nearest

Form = Literal["channels_first", "channels_last", "pooled"]
RAW = "none: as the last block leaves them, before the tower's final norm; the consumer has a norm of its own"
UNIT = "the tower's own final norm and projection, then divided by its length"
ENCODER_MODEL, ENCODER_TAG = "ViT-L-14-quickgelu", "openai"
"""What all of them were trained on."""
ENCODER_CHANNELS = 1024
"""Width of its patches."""


@dataclass(frozen=True)
class Consumer:
    """One consumer: the form it takes, and where its source says so."""

    name: ConsumerName
    title: str
    form: Form
    source: str
    """Repository, file and function that the form was read from."""
    hook: str
    """Function of `flowkit.export.hooks` that hands the tensors over."""

    @property
    def norm(self) -> str:
        """Which norm the exported tensor has behind it."""
        return UNIT if self.form == "pooled" else RAW

    @property
    def needs_class_token(self) -> bool:
        """Whether tokens without a class token are of no use."""
        return self.form == "pooled"


_LISTED = (
    Consumer(
        "point-e",
        "Point-E base40M, base300M, base1B and upsample",
        "channels_first",
        "openai/point-e point_e/models/pretrained_clip.py embed_images_grid; models/transformer.py "
        "CLIPImageGridPointDiffusionTransformer",
        "given_embeddings",
    ),
    Consumer(
        "shap-e",
        "Shap-E image300M",
        "channels_first",
        "openai/shap-e shap_e/models/generation/pretrained_clip.py embed_images_grid; "
        "models/generation/transformer.py CLIPImageGridPointDiffusionTransformer",
        "given_embeddings",
    ),
    Consumer(
        "shap-e-diffusers",
        "ShapEImg2ImgPipeline of diffusers with openai/shap-e-img2img",
        "channels_last",
        "huggingface/diffusers pipelines/shap_e/pipeline_shap_e_img2img.py _encode_image",
        "given_image_embeds",
    ),
    Consumer(
        "point-e-imagevec",
        "Point-E base40M-imagevec",
        "pooled",
        "openai/point-e point_e/models/pretrained_clip.py embed_images; models/transformer.py "
        "CLIPImagePointDiffusionTransformer",
        "given_embeddings",
    ),
    Consumer(
        "openshape",
        "OpenShape pointbert-vitl14-rgb",
        "pooled",
        "Colin97/OpenShape_code README.md, cosine with its shape embeddings",
        "shape_similarity",
    ),
)
CONSUMERS: dict[str, Consumer] = {consumer.name: consumer for consumer in _LISTED}
"""All consumers by name; the names are those of `flowkit.export_section`."""


def consumer_named(name: str) -> Consumer:
    """Return a consumer; raises `ConfigError` with the nearest name for one that is not known."""
    if name not in CONSUMERS:
        known = ", ".join(get_args(ConsumerName))
        raise ConfigError(f"{name!r} is no consumer, they are {known}{nearest(name, CONSUMERS)}")
    return CONSUMERS[name]


def is_expected_encoder(name: str) -> bool:
    """Whether an encoder is the one that the consumers were trained on, from the hub or from a file of the user's."""
    parts = split_name(name)
    return (parts.family, parts.model, parts.tag) == ("open_clip", ENCODER_MODEL, ENCODER_TAG)


def demand_expected_encoder(consumer: str, encoder: str, *, any_encoder: bool) -> None:
    """Raise `ConfigError` unless tokens of `encoder` are what a consumer was trained on, or any will do for a trial."""
    if not any_encoder and not is_expected_encoder(encoder):
        raise ConfigError(
            f"{consumer} was trained on open_clip:{ENCODER_MODEL}/{ENCODER_TAG}, these tokens are of {encoder}: its "
            "output would mean nothing; for a trial of the way alone set export.any_encoder: true"
        )


def demand_form(consumer: Consumer, layout: str) -> None:
    """Raise `ConfigError` if tokens in `layout` do not hold what a consumer takes, with the reason."""
    if consumer.needs_class_token and layout == "patches":
        raise ConfigError(
            f"{consumer.name} takes the image embedding, which the tower makes of its class token, and "
            "data.layout=patches has none; a mean of patches is no stand-in: train with data.layout cls_patches or "
            "pooled"
        )
    if not consumer.needs_class_token and layout == "pooled":
        raise ConfigError(
            f"{consumer.name} takes the tokens of all patches, and data.layout=pooled holds one vector per image, from "
            "which they cannot be made; train with data.layout cls_patches or patches"
        )
