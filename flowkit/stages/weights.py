"""Stage `weights`: the weights file of an encoder, in place and with its digest.

The demo towers come with the package; with `encoders.retrain_demo_towers` they are trained here, and their accuracies
stand beside the weights. Weights of an open_clip encoder come by tag, from its cache or the hub, or from a file.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from flowkit.encoders.registry import encoder_family
from flowkit.progress import Progress, logger
from flowkit.provenance import file_digest, write_json
from flowkit.stages.session import Session, Spec, open_session

ACCURACIES = "accuracies.json"
MEASURED_IMAGES = 1000


def run(spec: Spec) -> None:
    """Commit the weights of `target.encoder`."""
    name = spec.values["encoder"]["name"]
    file = Path(name.partition("/")[2])  # a file of the user's, which may be replaced by another
    content = [file_digest(file)] if file.is_file() else []
    with open_session(spec, spec.places.weights(spec.target["encoder"]), [], content) as session:
        if session.is_done:
            return
        if spec.values.get("encoders", {}).get("retrain_demo_towers"):
            file = _retrain(session, name)
        else:
            found = _find(name)
            file = session.work / f"weights{found.suffix}"  # the suffix tells open_clip how to read it
            shutil.copyfile(found, file)
        session.commit({"encoder": name, "file": file.name})


def _find(name: str) -> Path:
    if encoder_family(name) != "open_clip":
        return Path(__file__).parents[1] / "encoders" / "assets" / f"{name}.safetensors"
    from flowkit.encoders.open_clip_tower import find_weights

    return find_weights(name)


def _retrain(session: Session, name: str) -> Path:
    from flowkit.encoders.demo_towers import save_demo_tower
    from flowkit.encoders.registry import load_encoder
    from flowkit.encoders.tower_training import RECIPES, measure_tower, train_tower
    from flowkit.shards import demo_pictures as pictures
    from flowkit.shards.demo_shapes import HARD_NEGATIVE_GROUP, class_prompts

    recipe = RECIPES[name]
    half = recipe.images // 2
    progress = Progress(f"train {name}", recipe.steps, "step")
    plain = pictures.draw_pictures(pictures.TOWER_TRAINING_SEED, half)
    state = train_tower(
        name,
        pictures.shorten_captions(plain, every=recipe.short_caption_every),
        pictures.draw_hard_negatives(pictures.TOWER_HARD_NEGATIVE_SEED, half // HARD_NEGATIVE_GROUP),
        group_size=HARD_NEGATIVE_GROUP,
        recipe=recipe,
        report=lambda step, loss: progress.advance(step - progress.done),
    )
    progress.close()
    file = session.work / "weights.safetensors"
    save_demo_tower(state, file)
    names, prompts = class_prompts()
    fresh = pictures.draw_pictures(pictures.TOWER_MEASURING_SEED, MEASURED_IMAGES)
    encoder = load_encoder(name, file)
    measured = measure_tower(encoder, fresh, classes=fresh.classes, class_names=names, prompts=prompts)
    write_json(session.work / ACCURACIES, measured)
    logger.info("encoder=%s %s", name, " ".join(f"{key}={value:.3f}" for key, value in measured.items()))
    return file
