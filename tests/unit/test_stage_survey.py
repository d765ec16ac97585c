"""Stage `survey` on tars with planted faults: counts, pictures of what was refused, images that are in both sets."""

from __future__ import annotations

import csv
import importlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from features_material import files_of, write_tar
from PIL import Image
from shards_material import encoded

from flowkit.config import load_config
from flowkit.features.store import TokenStore
from flowkit.paths import Places
from flowkit.report.survey import Survey, read_survey
from flowkit.stages import matches, survey, token_figures
from flowkit.stages.refused import EXAMPLES, MOST_REASONS, OTHER_REASONS, Refusals, RefusedImage
from flowkit.stages.session import committed
from flowkit.stages.specs import Plan
from flowkit.stages.thumbnails import GONE

HOSTILE = "<script>alert(1)<!--script> ünï"
IMAGES_PER_TAR = 6


def drawn(number: int) -> Image.Image:
    """Waves that differ from number to number."""
    y, x = np.mgrid[0 : 1 : 40 * 1j, 0 : 1 : 60 * 1j]
    turns = np.random.default_rng(number).uniform(2, 14, 6)
    waves = [127 + 127 * np.sin(turns[2 * c] * x + turns[2 * c + 1] * y + number) for c in range(3)]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


def captioned(key: str, picture: bytes, ending: str = "png") -> dict[str, bytes]:
    return {f"{key}.{ending}": picture, f"{key}.txt": f"caption of {key}".encode()}


def write_tars(folder: Path) -> None:
    """Three training tars, the last of which is held out, and one for evaluation that holds two training images."""
    torn = encoded(drawn(99), "JPEG", quality=95)
    number = 0
    for tar in range(3):
        members: dict[str, bytes] = {}
        for _ in range(IMAGES_PER_TAR):
            members |= captioned(f"train-{number}", encoded(drawn(number), "PNG"))
            number += 1
        if tar == 1:
            members |= captioned(HOSTILE, torn[: 2 * len(torn) // 3], "jpg")
            members |= {"wordless.png": encoded(drawn(98), "PNG"), "words.txt": b"no picture"}
        write_tar(folder / "train" / f"{tar}.tar", members)
    members = captioned("first", encoded(drawn(200), "PNG"))
    members |= captioned("copy", encoded(drawn(7), "PNG"))
    members |= captioned("almost", encoded(drawn(2), "JPEG", quality=60), "jpg")
    members |= captioned("held-out", encoded(drawn(13), "PNG"))
    members |= captioned("not-evaluated", encoded(drawn(1), "PNG"))
    write_tar(folder / "test" / "0.tar", members)


def plan_of(folder: Path, *overrides: str) -> Plan:
    settings = {
        "experiment": "small",
        "datasets": {name: {"kind": "folder", "path": str(folder / name)} for name in ("train", "test")},
        "data": {"train": "train", "evaluation": "test"},
        "encoders": {"source": {"name": "demo-eva"}, "target": {"name": "demo-vit"}, "batch_size": 4},
        "evaluation": {"images": 4},
        "runs": {"flow": {}},
    }
    config = load_config(settings, overrides)
    return Plan(config, Places(config.experiment, folder / "results", folder / "results/data"))


def run_stages(plan: Plan, *stages: str) -> None:
    for stage in stages:
        for job in plan.select(stage):
            importlib.import_module(f"flowkit.stages.{stage}").run(job.spec)


def surveyed(plan: Plan) -> Survey:
    run_stages(plan, "survey")
    return read_survey(committed(plan.places.survey)[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tars, stores and pairs, which no test changes but by results of other experiments."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("train", "test"):
        (folder / name).mkdir()
    write_tars(folder)
    run_stages(plan_of(folder), "shards", "weights", "extract", "pairs")
    return folder


@pytest.fixture(scope="module")
def found(made: Path) -> Survey:
    return surveyed(plan_of(made))


def test_counts_go_from_tars_to_pairs(found: Survey) -> None:
    train, test = found.found.datasets
    assert (train.name, train.use, train.tars, train.held_out_tars) == ("train", "training", 3, 1)
    assert (train.pairs, train.held_out_pairs, train.refused) == (18, 6, 3)
    assert [(one.role, one.encoder, one.encoded, one.refused) for one in train.encoders] == [
        ("source", "demo-eva", 18, 3),
        ("target", "demo-vit", 18, 3),
    ]
    assert train.fell_out == {
        "both: caption missing": 1,
        "both: image missing": 1,
        "both: image undecodable": 1,
    }
    assert (test.use, test.pairs, test.evaluated, test.held_out_tars) == ("evaluation", 5, 4, 0)
    assert [(one.reason, one.source, one.target) for one in found.found.refused] == [
        ("caption missing", 1, 1),
        ("image missing", 1, 1),
        ("image undecodable", 1, 1),
    ]


def test_refused_images_are_drawn_as_far_as_they_go(found: Survey) -> None:
    examples = {one.key: one for one in found.found.examples}
    assert set(examples) == {HOSTILE, "wordless", "words"}
    assert {(one.dataset, one.tar) for one in examples.values()} == {("train", "1.tar")}
    assert set(examples[HOSTILE].reasons) == {"source", "target"}
    torn = pixels(found, examples[HOSTILE].thumbnail)
    assert np.abs(torn[:8] - np.asarray(drawn(99)).astype(int)[:8]).mean() < 10
    assert np.abs(torn[-2:] - 128).max() < 5
    assert looks_like(pixels(found, examples["wordless"].thumbnail), 98)
    assert examples["words"].thumbnail.words == "there is no picture that may be read"
    assert not examples["words"].thumbnail.file


def pixels(survey: Survey, thumbnail) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(survey.picture(thumbnail)))).astype(int)


def looks_like(picture: np.ndarray, number: int) -> bool:
    """Whether it is this drawing, and no other, after what JPEG does to it."""
    apart = {
        other: np.abs(picture - np.asarray(drawn(other)).astype(int)).mean() for other in (number, 1, 2, 3)
    }
    return apart[number] < 10 and all(apart[other] > 40 for other in (1, 2, 3))


def pooled_of(plan: Plan, dataset: str, tars: Sequence[str]) -> np.ndarray:
    stores = [TokenStore(committed(plan.places.store(dataset, plan.target_id, tar))[0]) for tar in tars]
    vectors = np.concatenate([store.read_pooled(range(len(store))) for store in stores]).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_every_evaluated_image_finds_its_nearest_training_image(made: Path, found: Survey) -> None:
    plan = plan_of(made)
    evaluated, training = pooled_of(plan, "test", ["0.tar"])[:4], pooled_of(plan, "train", ["0.tar", "1.tar"])
    cosines = evaluated @ training.T
    np.testing.assert_allclose(found.arrays["match-training"], cosines.max(axis=1), atol=2e-6)
    as_many = cosines[:, [0, 4, 8]]  # three of twelve, as many as an evaluated image has others beside it
    np.testing.assert_allclose(found.arrays["match-as-many"], as_many.max(axis=1), atol=2e-6)
    among = evaluated @ evaluated.T - 2 * np.eye(4)
    np.testing.assert_allclose(found.arrays["match-within"], among.max(axis=1), atol=2e-6)
    lines = list(csv.DictReader(io.StringIO(found.matches_csv.decode())))
    assert [line["key"] for line in lines] == ["first", "copy", "almost", "held-out"]
    assert [line["training_key"] for line in lines] == [f"train-{at}" for at in cosines.argmax(axis=1)]
    assert [line["training_tar"] for line in lines] == [
        f"{at // IMAGES_PER_TAR}.tar" for at in cosines.argmax(axis=1)
    ]
    assert [line["same_file"] for line in lines] == ["0", "1", "0", "0"]


def test_copies_are_named_and_shown_first_and_held_out_images_are_none(found: Survey) -> None:
    matched = found.found.matches
    assert (matched.evaluated, matched.training, matched.as_many, matched.same_file) == (4, 12, 3, 1)
    assert [(pair.evaluation.key, pair.training.key, pair.is_same_file) for pair in matched.pairs[:2]] == [
        ("copy", "train-7", True),
        ("almost", "train-2", False),
    ]
    assert matched.pairs[0].cosine == pytest.approx(1, abs=1e-3)
    assert matched.pairs[0].training.caption == "caption of train-7"
    for half in (matched.pairs[0].evaluation, matched.pairs[0].training):
        assert looks_like(pixels(found, half.thumbnail), 7)
    assert next(one.training for one in matched.above if one.cosine == 0.97) >= 2


def test_channels_and_norms_are_those_of_the_stores(made: Path, found: Survey) -> None:
    plan = plan_of(made)
    stores = [
        TokenStore(committed(plan.places.store("train", plan.source_id, f"{at}.tar"))[0]) for at in (0, 1)
    ]
    tokens = np.concatenate([store.read_tokens(range(len(store))) for store in stores]).astype(np.float64)
    flat = tokens.reshape(-1, tokens.shape[-1])
    np.testing.assert_allclose(found.arrays["source-training-spread"], flat.std(axis=0), rtol=1e-5)
    summary = found.found.channels[0]
    assert (summary.role, summary.use, summary.images, summary.of_images) == ("source", "training", 12, 12)
    assert summary.tokens == len(flat)
    assert summary.top[0].number == flat.std(axis=0).argmax()
    norms = np.linalg.norm(tokens, axis=-1)
    assert found.arrays["norms-source-class token-training"].sum() == 12
    assert found.arrays["norms-source-patches-training"].sum() == norms[:, 1:].size
    patches = next(
        one for one in found.found.norms if (one.role, one.use, one.kind) == ("source", "training", "patches")
    )
    assert patches.median == pytest.approx(np.median(norms[:, 1:]), rel=1e-5)
    assert patches.largest == pytest.approx(norms[:, 1:].max(), rel=1e-5)


@pytest.mark.parametrize(("layout", "kinds"), [("patches", {"patches"}), ("pooled", {"pooled vector"})])
def test_other_layouts_are_looked_at_as_training_reads_them(made: Path, layout: str, kinds: set[str]) -> None:
    found = surveyed(plan_of(made, f"data.layout={layout}", f"experiment={layout}"))
    assert {one.kind for one in found.found.norms} == kinds
    per_image = {"patches": 16, "pooled": 1}[layout]
    assert {one.tokens for one in found.found.norms} == {12 * per_image, 4 * per_image}
    assert found.found.matches.pairs[0].evaluation.key == "copy"


def test_int8_sources_are_read_as_the_numbers_that_they_stand_for(made: Path, found: Survey) -> None:
    plan = plan_of(made, "encoders.source_storage=int8", "experiment=int8")
    run_stages(plan, "convert", "pairs")
    converted = surveyed(plan)
    assert [one.storage for one in converted.found.datasets[0].encoders] == ["int8", "float16"]
    assert converted.found.datasets[0].refused == 3
    name = "source-training-spread"
    np.testing.assert_allclose(converted.arrays[name], found.arrays[name], rtol=0.02)
    assert not np.array_equal(converted.arrays[name], found.arrays[name])


def test_a_copy_of_the_training_set_is_found_out(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "train", tmp_path / "copy")
    plan = plan_of(made, f"datasets.test.path={tmp_path}/copy", "experiment=copy")
    moved = Plan(plan.config, Places("copy", tmp_path, tmp_path / "data"))
    run_stages(moved, "shards", "weights", "extract", "pairs")
    found = surveyed(moved).found
    assert found.matches.same_file == found.matches.evaluated == 4
    assert all(pair.is_same_file and pair.evaluation.key == pair.training.key for pair in found.matches.pairs)


def test_the_same_data_give_the_same_bytes_in_small_steps_too(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveyed(plan_of(made))
    whole = files_of(committed(plan_of(made).places.survey)[0])
    monkeypatch.setattr(matches, "ROWS", 2)
    again = plan_of(made, "experiment=again")
    surveyed(again)
    assert files_of(committed(again.places.survey)[0]) == whole
    assert {"survey.json", "arrays.npz", "matches.csv"} < whole.keys()


def test_few_images_are_looked_at_and_their_number_is_kept(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_figures, "SAMPLE_IMAGES", 5)
    found = surveyed(plan_of(made, "experiment=few")).found
    assert [(one.images, one.of_images) for one in found.channels if one.role == "target"] == [
        (5, 12),
        (4, 4),
    ]


def test_tars_that_are_gone_cost_nothing_but_pictures(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "moved")
    (tmp_path / "moved/results/data/shards/test/manifest.json").unlink()
    plan = plan_of(
        made, "experiment=gone"
    )  # the location that the shards stage noted is that of the first folder
    places = Places("gone", tmp_path / "moved/results", tmp_path / "moved/results/data")
    found = surveyed(Plan(plan.config, places)).found
    pair = found.matches.pairs[0]
    assert (pair.evaluation.thumbnail.words, pair.evaluation.key) == (GONE, "copy")
    assert pair.training.thumbnail.file


def test_stores_without_pooled_vectors_are_said_to_be_the_reason(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matches, "POOLED", "an array that no store holds")
    survey = surveyed(plan_of(made, "experiment=unpooled"))
    assert survey.found.matches.reason == "the stores of demo-vit hold no pooled vectors"
    assert (survey.found.matches.same_file, survey.found.matches.above) == (1, [])
    assert survey.matches_csv.decode().splitlines()[:2] == ["tar,key", "0.tar,first"]


def test_it_needs_no_training_and_is_adopted(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(made)
    surveyed(plan)
    assert not (plan.places.experiment_folder / "runs").exists()
    monkeypatch.setattr(survey, "search", None)
    surveyed(plan)
    (job,) = plan.select("survey")
    assert set(job.inputs) == {plan._pairs_folder(name) for name in ("train", "test")}
    assert not any("training" in code or "model" in code for code in job.spec.code), json.dumps(job.spec.code)


def test_of_many_reasons_each_has_its_turn_and_rare_ones_are_joined() -> None:
    refusals = Refusals()
    for number in range(200):
        refusals.add(RefusedImage("train", "0.tar", number, str(number), {"source": f"torn: {number}"}))
    for number in range(MOST_REASONS + 5):
        refusals.add(
            RefusedImage(
                "train", "0.tar", number, str(number), {"target": f"odd {number}: x", "source": "torn"}
            )
        )
    examples, table = refusals.examples(), refusals.table()
    assert len(examples) == EXAMPLES
    assert len(table) == MOST_REASONS + 1
    assert (table[0].reason, table[0].source) == ("torn", 200 + MOST_REASONS + 5)
    assert (table[-1].reason, table[-1].target) == (OTHER_REASONS, 6)
    assert len({next(iter(one.reasons.values())).partition(":")[0] for one in examples}) == EXAMPLES
