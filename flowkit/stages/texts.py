"""Stage `texts`: captions and class prompts of the evaluation set, embedded by the target's text tower.

texts.safetensors   captions [U, P], one row per distinct caption; prompts [C, P] where the data set has classes
texts.json          {"captions": [U texts], "classes": [C names], "prompts": [C texts]}
"""

from __future__ import annotations

import torch
from safetensors.torch import save

from flowkit.encoders.registry import load_encoder
from flowkit.features.store import TokenStore
from flowkit.paths import TEXT_EMBEDDINGS, TEXTS
from flowkit.progress import Progress
from flowkit.provenance import write_json
from flowkit.stages.device import best_device
from flowkit.stages.inputs import weights_of
from flowkit.stages.session import Spec, committed, open_session

BATCH = 256


def run(spec: Spec) -> None:
    """Commit the embeddings of every caption of `target.dataset`."""
    dataset, encoder_id, settings = spec.target["dataset"], spec.target["encoder"], spec.values["encoder"]
    stores = [spec.places.store(dataset, encoder_id, tar) for tar in spec.target["tars"].split(",")]
    with open_session(
        spec, spec.places.texts(dataset, encoder_id), [spec.places.weights(encoder_id), *stores]
    ) as session:
        if session.is_done:
            return
        captions = sorted({text for store in stores for text in _captions(TokenStore(committed(store)[0]))})
        classes, prompts = _class_prompts(spec.values["datasets"][dataset]["kind"])
        weights, _ = weights_of(spec, encoder_id)
        encoder = load_encoder(
            settings["name"], weights, precision=settings["precision"], device=best_device()
        )
        progress = Progress("texts", len(captions) + len(prompts), "text")
        embedded = {}
        for name, texts in (("captions", captions), ("prompts", prompts)):
            batches = []
            for first in range(0, len(texts), BATCH):
                batches.append(encoder.encode_text(texts[first : first + BATCH]))
                progress.advance(len(batches[-1]))
            embedded[name] = torch.cat(batches) if batches else torch.empty(0, encoder.pooled_width)
        progress.close()
        (session.work / TEXT_EMBEDDINGS).write_bytes(save(embedded))
        write_json(session.work / TEXTS, {"captions": captions, "classes": classes, "prompts": prompts})
        session.commit({"captions": len(captions), "classes": len(classes)})


def _captions(store: TokenStore) -> list[str]:
    return [text for texts in store.samples["captions"] for text in texts]


def _class_prompts(kind: str) -> tuple[list[str], list[str]]:
    """Return class names and prompts; data sets without classes have none, and zero-shot is then not measured."""
    if kind != "demo":
        return [], []
    from flowkit.shards.demo_shapes import class_prompts

    return class_prompts()
