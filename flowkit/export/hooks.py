"""What to override in each consumer so that it takes exported rows in the place of images.

Nothing here imports a consumer: a hook is handed the object that the consumer's own code made. Each is a context; after
it the object is as it was, also where contexts are nested. Shapes: N images, T patches, D channels, P embedding width.

    point-e, shap-e, point-e-imagevec    given_embeddings(model, rows): the samplers ask the model for its conditions
    shap-e-diffusers                     given_image_embeds(pipeline, rows), or the prior alone with prior_condition
    openshape                            shape_similarity(rows, shapes)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flowkit.errors import StoreError


class InPlaceOfAnImage:
    """What is passed to a sampler as an image while a hook answers for it; no encoder can take it for a picture.

    `None` would not do: Point-E and Shap-E encode it as a black image, so a model without its hook would be
    conditioned on black and nobody would notice.
    """

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(REFUSAL)

    def __repr__(self) -> str:
        return f"<{REFUSAL}>"


REFUSAL = "stands for an exported row and cannot be encoded: this model needs a hook of its own"


@contextmanager
def given_embeddings(model: Any, embeddings: torch.Tensor) -> Iterator[list[InPlaceOfAnImage]]:
    """Let a model of the original Point-E or Shap-E be conditioned on exported rows [N, D, T] or [N, P].

    Their samplers call `model.cached_model_kwargs(batch_size, model_kwargs)`, which would encode
    `model_kwargs["images"]`; guidance appends its zeros to what comes back. Yields what to pass: N stand-ins that no
    encoder takes,

        with given_embeddings(model, rows) as images:
            sampler.sample_batch(len(images), dict(images=images))

    A sampler of two models needs a context for each, or the second one fails on the stand-ins. Point-E's upsampler
    takes patches: beside `base40M-imagevec`, give it the rows of a second export, point-e, or let the sampler keep the
    images from it with `model_kwargs_key_filter=("*", "")`. A model that is given no images is left to itself.
    """
    encode: Callable[[int, dict[str, Any]], dict[str, Any]] = model.cached_model_kwargs

    def given(batch_size: int, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        if "images" not in model_kwargs:
            return encode(batch_size, model_kwargs)
        _demand_rows(embeddings, batch_size)
        others = {key: value for key, value in model_kwargs.items() if key not in ("images", "texts")}
        return {"embeddings": embeddings.to(_device_of(model)), **others}

    with _standing_in(model, "cached_model_kwargs", given):
        yield [InPlaceOfAnImage() for _ in range(len(embeddings))]


@contextmanager
def given_image_embeds(pipeline: Any, embeddings: torch.Tensor) -> Iterator[torch.Tensor]:
    """Let diffusers' ShapEImg2ImgPipeline be conditioned on exported rows [N, T, D].

    Its `_encode_image` is what knows the image encoder; the rows stand in for what that returns: repeated for
    `num_images_per_prompt`, behind as many zeros where there is guidance, in the type of the prior's weights. Yields
    what to pass as `image`: a stand-in that tells the pipeline the number of images.
    """

    def encode(
        image: torch.Tensor,
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> torch.Tensor:
        _demand_rows(embeddings, len(image))
        rows = embeddings.repeat_interleave(num_images_per_prompt, dim=0)
        condition = prior_condition(rows, is_guided=do_classifier_free_guidance)
        return condition.to(device=device, dtype=pipeline.prior.dtype)

    with _standing_in(pipeline, "_encode_image", encode):
        yield torch.zeros(len(embeddings), 1)


@contextmanager
def _standing_in(owner: Any, name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of one object, and put back what the object itself had under this name, if anything.

    Shap-E's models hold the method of a model inside them as an attribute of their own: to delete what stands under the
    name would take it from them.
    """
    is_own, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def prior_condition(embeddings_NTD: torch.Tensor, *, is_guided: bool) -> torch.Tensor:
    """Return the `proj_embedding` of diffusers' PriorTransformer: the rows, behind as many zeros for guidance."""
    if not is_guided:
        return embeddings_NTD
    return torch.cat([torch.zeros_like(embeddings_NTD), embeddings_NTD])


def shape_similarity(images_NP: torch.Tensor, shapes_MP: torch.Tensor) -> torch.Tensor:
    """Return the cosines [N, M] of exported rows, which have length 1, with OpenShape's embeddings of shapes.

    Raises `StoreError` if they are not of one width: a shape encoder that was trained on another CLIP.
    """
    if images_NP.shape[1] != shapes_MP.shape[1]:
        raise StoreError(
            f"images have {images_NP.shape[1]} channels and shapes {shapes_MP.shape[1]}: take the shape encoder that "
            "was trained on this CLIP, pointbert-vitl14-rgb"
        )
    return images_NP @ torch.nn.functional.normalize(shapes_MP, dim=1).T


def _demand_rows(embeddings: torch.Tensor, images: int) -> None:
    if len(embeddings) != images:
        raise StoreError(
            f"{len(embeddings)} exported rows for a batch of {images} images; hand over one row for each"
        )


def _device_of(model: Any) -> torch.device:
    """The device of a model's weights; the CPU for one without."""
    return next((weights.device for weights in model.parameters()), torch.device("cpu"))
