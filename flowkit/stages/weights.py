"""Stage `weights`: where the weights of an encoder lie, and their digest.

The demo towers come with the package; with `encoders.retrain_demo_towers` they are trained here, and their accuracies
stand beside the weights. Other weights come by tag or as a file or folder of the user's. What is there already, also in
the cache of the hub's own tools, stays where it is: EVA-CLIP-8B takes 33 GB. What is fetched goes into this result.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from flowkit.encoders.registry import RemoteWeights, encoder_family, find_weights, weight_files
from flowkit.paths import LOCATION
from flowkit.progress import Progress, logger
from flowkit.provenance import digest_of, file_digest, write_json
from flowkit.shards.remote import RemoteFile, download
from flowkit.shards.space import demand_space
from flowkit.stages.session import Session, Spec, open_session

ACCURACIES = "accuracies.json"
MEASURED_IMAGES = 1000


def run(spec: Spec) -> None:
    """Commit the place and the digest of the weights of `target.encoder`."""
    name = spec.values["encoder"]["name"]
    brought = Path(name.partition("/")[2])  # a file or folder of the user's, which may be replaced by another
    content = [_digest(brought)] if brought.exists() and brought.name else []
    with open_session(spec, spec.places.weights(spec.target["encoder"]), [], content) as session:
        if not content and session.is_done:
            return
        made = session.work / "made"
        made.mkdir(exist_ok=True)
        if spec.values.get("encoders", {}).get("retrain_demo_towers"):
            file = _retrain(made, name)
        elif encoder_family(name).startswith("demo-"):
            file = made / "weights.safetensors"
            shutil.copyfile(find_weights(name), file)
        else:
            file = find_weights(name, made, download=_download)
        _commit(session, made, name, file)


def _commit(session: Session, made: Path, name: str, file: Path) -> None:
    is_here = file.is_relative_to(made)
    write_json(made / LOCATION, str(file.relative_to(made) if is_here else file.absolute()))
    counts = {"encoder": name, "file": file.name, "sha256": _digest(file)}
    session.commit(counts, untracked=(LOCATION,), folder=made)
    logger.info("encoder=%s weights=%s sha256=%s", name, "here" if is_here else file, counts["sha256"])


def _download(file: RemoteWeights, to: Path) -> Path:
    demand_space(to.parent, file.bytes, f"weights {to.name}")
    progress = Progress(f"fetch {to.name}", file.bytes, "byte")
    found = download(
        RemoteFile(file.url, file.bytes, file.sha256), to, progress=progress.advance, headers=file.headers
    )
    progress.close()
    return found


def _digest(path: Path) -> str:
    """Return the sha256 of a weights file, or one over the digests of the files in a folder."""
    if path.is_file():
        return file_digest(path)
    return digest_of({file.name: file_digest(file) for file in weight_files(path)})


def _retrain(folder: Path, name: str) -> Path:
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
    file = folder / "weights.safetensors"
    save_demo_tower(state, file)
    names, prompts = class_prompts()
    fresh = pictures.draw_pictures(pictures.TOWER_MEASURING_SEED, MEASURED_IMAGES)
    encoder = load_encoder(name, file)
    measured = measure_tower(encoder, fresh, classes=fresh.classes, class_names=names, prompts=prompts)
    write_json(folder / ACCURACIES, measured)
    logger.info("encoder=%s %s", name, " ".join(f"{key}={value:.3f}" for key, value in measured.items()))
    return file
