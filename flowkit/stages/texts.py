"""Stage `texts`: captions and class prompts of the evaluation set, embedded by the target's text tower.

texts.safetensors   captions [U, P], one row per distinct caption; prompts [C, P] where the data set has classes
texts.json          {"captions": [U texts], "classes": [C names], "prompts": [C texts]}
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save

from flowkit.encoders.registry import load_encoder
from flowkit.features.store import TokenStore
from flowkit.paths import TEXT_EMBEDDINGS, TEXTS
from flowkit.progress import Progress
from flowkit.provenance import write_json
from flowkit.stages.classes import class_texts
from flowkit.stages.device import best_device
from flowkit.stages.inputs import weights_of
from flowkit.stages.session import Spec, committed, open_session

if TYPE_CHECKING:
    from flowkit.encoders.contract import FrozenEncoder

BATCH = 256


def run(spec: Spec) -> None:
    """Commit the embeddings of every caption of `target.dataset`."""
    dataset, encoder_id, settings = spec.target["dataset"], spec.target["encoder"], spec.values["encoder"]
    stores = [spec.places.store(dataset, encoder_id, tar) for tar in spec.target["tars"].split(",")]
    with open_session(
        spec, spec.places.texts(dataset, encoder_id), [spec.places.weights(spec.target["weights"]), *stores]
    ) as session:
        if session.is_done:
            return
        captions = sorted({text for store in stores for text in _captions(TokenStore(committed(store)[0]))})
        described = spec.values["datasets"][dataset]
        classes, prompts = class_texts(described["kind"], described.get("has_instances", False))
        weights, _ = weights_of(spec)
        encoder = load_encoder(
            settings["name"], weights, precision=settings["precision"], device=best_device()
        )
        embedded = {
            name: _embed(encoder, texts, session.work / f"{name}.partial")
            for name, texts in (("captions", captions), ("prompts", prompts))
        }
        made = session.work / "made"
        made.mkdir(exist_ok=True)
        (made / TEXT_EMBEDDINGS).write_bytes(save(embedded))
        write_json(made / TEXTS, {"captions": captions, "classes": classes, "prompts": prompts})
        session.commit({"captions": len(captions), "classes": len(classes)}, folder=made)


def _embed(encoder: FrozenEncoder, texts: list[str], partial: Path) -> torch.Tensor:
    """Return the embeddings [N, P]; whole batches that a killed attempt left in `partial` are not made again."""
    row_bytes = np.dtype(np.float32).itemsize * encoder.pooled_width
    with partial.open("ab") as file:
        done = min(file.tell() // (BATCH * row_bytes) * BATCH, len(texts) // BATCH * BATCH)
        file.truncate(done * row_bytes)
        progress = Progress(partial.stem, len(texts), "text", done=done)
        for first in range(done, len(texts), BATCH):
            rows = encoder.encode_text(texts[first : first + BATCH]).cpu().numpy().astype("<f4", copy=False)
            file.write(rows.tobytes())
            file.flush()
            progress.advance(len(rows))
    progress.close()
    return torch.from_numpy(np.fromfile(partial, "<f4")).reshape(-1, encoder.pooled_width)


def _captions(store: TokenStore) -> list[str]:
    return [text for texts in store.samples["captions"] for text in texts]
