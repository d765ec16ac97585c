"""Configuration: what is accepted, what is refused and with which words, and the generated files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from flowkit.config import leaves, load_config
from flowkit.config_files import config_files
from flowkit.datasets import FolderDataset, HubDataset
from flowkit.errors import ConfigError
from flowkit.machine import machine_of, split_machine_settings
from flowkit.paths import Places
from flowkit.provenance import write_json
from flowkit.stages.jobs import pack_spec, unpack_spec
from flowkit.stages.specs import Plan

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "workflow/config/demo.yaml"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "workflow/config").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    assert load_config(path).runs


def test_seeds_differ_from_the_demo_in_runs_and_evaluation_pictures_alone() -> None:
    demo, seeds = (load_config(DEMO.with_name(name)).model_dump() for name in ("demo.yaml", "seeds.yaml"))
    fresh = seeds["datasets"].pop("shapes-fresh")
    assert fresh == {**demo["datasets"].pop("shapes-test"), "seed": fresh["seed"]}
    differing = {section for section in demo if demo[section] != seeds[section]}
    assert differing == {"experiment", "data", "train", "sampling", "evaluation", "goals", "report", "runs"}
    assert demo["data"] | {"evaluation": "shapes-fresh"} == seeds["data"]
    assert demo["train"] | {"steps": 4 * demo["train"]["steps"]} == seeds["train"]
    assert demo["sampling"]["samplers"] == seeds["sampling"]["samplers"]


def test_each_repair_adds_one_thing_and_ends_at_the_recipe_of_the_demo() -> None:
    repairs = load_config(DEMO.with_name("repairs.yaml"))
    steps = [name for name in repairs.runs if name.startswith("repair_")]
    changed = [
        {
            leaf.partition("=")[0]
            for leaf in set(leaves(repairs.run(name).model_dump()))
            - set(leaves(repairs.run(before).model_dump()))
        }
        for before, name in pairwise(steps)
    ]
    assert changed == [
        {"train.learning_rate"},
        {"objective.clock"},
        {"objective.kind"},
        {"model.head"},
        {"objective.prediction", "objective.clean_weight", "objective.velocity_weight"},
        {"objective.time", "objective.share_at_zero"},
    ]
    demo = load_config(DEMO)
    for run in ("flow", "regression"):
        for section in ("model", "train"):
            assert getattr(repairs.run(run), section) == getattr(demo.run(run), section)
    assert repairs.run("flow").objective == demo.run("flow").objective
    earlier = load_config(DEMO.with_name("earlier.yaml")).run("as_computed")
    assert repairs.run(steps[0]).objective == earlier.objective
    assert repairs.run(steps[0]).train.learning_rate == earlier.train.learning_rate


def test_a_run_may_say_what_it_asks_without_being_another_run() -> None:
    demo = load_config(DEMO)
    asked = load_config(DEMO, ("runs.flow.question=Why?",))
    assert asked.question("flow") == "Why?"
    assert asked.run("flow") == demo.run("flow")
    with pytest.raises(ConfigError, match=r"runs\.flow\.question=3: expected a sentence"):
        load_config(DEMO, ("runs.flow.question=3",))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.stesp=3", "train.stesp: unknown key, did you mean 'steps'?"),
        ("experimnt=x", "experimnt: unknown key, did you mean 'experiment'?"),
        ("train.steps=0", "train.steps=0: Input should be greater than 0"),
        ("train.steps=many", "train.steps='many'"),
        ("train.steps='100'", "train.steps='100'"),
        (
            "datasets.shapes-train.imagse=3",
            "datasets.shapes-train.imagse: unknown key, did you mean 'images'?",
        ),
        ("runs.flow.train.stepz=3", "runs.flow.train.stepz: unknown key, did you mean 'steps'?"),
        ("runs.flow.train.steps=-1", "runs.flow.train.steps=-1"),
        ("runs.flow.trian.steps=3", "runs.flow.trian: unknown section"),
        ("runs.ridge.train.steps=3", "runs.ridge has the name of a baseline"),
        ("baselines=[ridge, ridge]", "the same baseline is named twice"),
        ("baselines=[ridgee]", "baselines.0='ridgee': Input should be 'constant'"),
        ("sampling.samplers=[euler-4-shift0]", "a time shift of 0 leaves all steps at the noise end"),
        ("sampling.samplers=[heun-9999-shift0.001]", "its last step is shorter than 1e-06"),
        ("goals.dispersion=[2, 0.5]", "expected two numbers, the smaller one first"),
        ("goals.text_retrieval=98", "goals.text_retrieval=98: Input should be less than or equal to 1"),
        ("sampling.samplers=[rk4-4]", "sampling.samplers.0='rk4-4'"),
        (
            "sampling.samplers=[euler-4-guidance2]",
            "sampling.samplers=euler-4-guidance2 needs a run that was trained",
        ),
        ("encoders.source.name=eva", "encoders.source.name='eva'"),
        ("sampling.samplers=[huen-50]", "sampling.samplers.0='huen-50'"),
        ("sampling.samplers=[heun-50, heun-50]", "the same sampler is named twice"),
        ("data.train=nowhere", "data.train=nowhere is not among the data sets"),
        ("runs.flow.objective.clean_weight=0", "all loss weights are 0"),
        ("goals.flow_r2=high", "goals.flow_r2='high'"),
        ("goals.flow_r2=.nan", "goals.flow_r2=nan"),
        ("train.learning_rate=.inf", "train.learning_rate=inf"),
        ("train.learning_rate=true", "train.learning_rate=True: expected a number, not true or false"),
        ("train={", "--set train={: not readable as YAML"),
        ("data.evaluation=shapes-train", "data.evaluation=shapes-train is the training set"),
        ("datasets.shapes-test.seed=1", "datasets.shapes-test.seed=1 draws the training images again"),
        (
            "runs.flow.sampling.guidance_scale=2",
            "needs a run that was trained with objective.condition_dropout",
        ),
        ("train", "--set train: expected section.key=value"),
        ("datasets.x={kind: hub, repository: nameless}", "datasets.x.repository='nameless'"),
        (
            "datasets.x={kind: hub, repository: a/b, shard: 3}",
            "datasets.x.shard: unknown key, did you mean 'shards'?",
        ),
        ("datasets.x={kind: hub, repository: a/b, first_shard: -1}", "datasets.x.first_shard=-1"),
        ("datasets.x={kind: hub}", "datasets.x.repository: missing, it has no default"),
        (
            "datasets.x={kind: coco, captions: annotations}",
            "datasets.x.captions='annotations': expected the name of a",
        ),
        (
            "datasets.x={kind: coco, pictures: {url: 'ftp://h/x.zip', bytes: 1, sha256: ab}}",
            "datasets.x.pictures.url=",
        ),
        ("encoders.decode=quick", "encoders.decode='quick'"),
        ("encoders.source_storage=int4", "encoders.source_storage='int4'"),
        ("encoders.target.name=eva_clip:EVA-CLIP-8B", "target=eva_clip:EVA-CLIP-8B has no text tower"),
        ("encoders.source.name=eva_clip:EVA-CLIP-18B", "encoders.source.name='eva_clip:EVA-CLIP-18B'"),
    ],
)
def test_bad_input_is_one_line_that_names_key_value_and_remedy(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, (override,))
    lines = [line for line in str(caught.value).splitlines() if says in line]
    assert len(lines) == 1, caught.value


@pytest.mark.parametrize("layout", ["patches", "pooled"])
def test_only_a_class_token_can_stand_for_all(layout: str) -> None:
    with pytest.raises(ConfigError, match="source_tokens=cls goes with layout=cls_patches"):
        load_config(DEMO, ("data.source_tokens=cls", f"data.layout={layout}"))


def test_names_of_baselines_are_taken_also_where_they_are_left_out() -> None:
    for name in ("true", "constant", "true_crop"):
        with pytest.raises(ConfigError, match=f"runs.{name} has the name of a baseline"):
            load_config(DEMO, ("baselines=[ridge]", f"runs.{name}={{}}"))


def test_a_plain_true_among_baselines_is_the_name() -> None:
    assert load_config(DEMO, ("baselines=[true, ridge]",)).baselines == ("true", "ridge")


def test_every_shipped_configuration_can_be_planned(tmp_path: Path) -> None:
    """With a listing where a hub is named, so that nothing is asked there."""
    for path in sorted((ROOT / "workflow/config").glob("*.yaml")):
        config, places = load_config(path), Places("planned", tmp_path, tmp_path / "data")
        for dataset in config.datasets.values():
            if isinstance(dataset, FolderDataset):
                config = load_config(
                    path, tuple(f"datasets.{n}.path={tmp_path}/{n}" for n in config.datasets)
                )
            if isinstance(dataset, HubDataset):
                tars = [{"name": f"{n:05d}.tar", "bytes": 5, "sha256": f"{n:064x}"} for n in range(100)]
                listing = {"repository": dataset.repository, "revision": dataset.revision, "commit": "c" * 40}
                write_json(places.listing(dataset.repository, dataset.revision), {**listing, "tars": tars})
        for name in config.datasets:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "00000.tar").touch()
            (tmp_path / name / "00001.tar").touch()
        jobs = Plan(config, places).jobs.values()
        assert all(job.tracked for job in jobs)
        local = {job.spec.stage for job in jobs if job.is_local}
        assert local <= {"fetch", "weights", "summary", "page", "report"}, (
            "what takes long and needs no network runs on a compute node"
        )


def test_long_specs_are_packed_into_one_argument() -> None:
    text = json.dumps({"tars": ",".join(f"webdataset_shard_{number}.tar" for number in range(10_000))})
    packed = pack_spec(text)
    assert len(text) > 131_072 > len(packed)
    assert unpack_spec(packed) == text
    assert pack_spec("{}") == "{}"
    with pytest.raises(ValueError):
        unpack_spec("zlib:!!")


def test_commands_take_the_machine_of_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text(
        "cores: 4\nconfig: {data_root: /scratch/me, stages: {extract: {cpus: 6}}}\n"
    )
    monkeypatch.setenv("FLOWKIT_RESULTS", "elsewhere")
    machine = machine_of(tmp_path)
    assert (machine.results, machine.data_root) == (Path("elsewhere"), Path("/scratch/me"))
    assert (machine.shards_per_job, machine.stages) == (32, {"extract": {"cpus": 6}})
    assert machine_of(tmp_path, data_root=Path("given")).data_root == Path("given")
    with pytest.raises(ConfigError, match="no readable profile"):
        machine_of(tmp_path / "nowhere")


HUB = "{kind: hub, repository: a/b, first_shard: %d, shards: %s}"
SOLIDS = "{kind: solids, objects: 5, views: %d, seed: %d}"


@pytest.mark.parametrize(
    ("train", "evaluation", "clash"),
    [
        (HUB % (0, 10), HUB % (10, 2), None),
        (HUB % (12, "null"), HUB % (10, 2), None),
        (HUB % (0, 10), HUB % (9, 2), "repository=a/b is the training set's, and the ranges of tars overlap"),
        (HUB % (0, "null"), HUB % (10, 2), "repository=a/b is the training set's"),
        ("{kind: folder, path: x}", "{kind: folder, path: ./x}", "path=./x is the training set's folder"),
        ("{kind: folder, path: x, shards: 2}", "{kind: folder, path: x, first_shard: 2}", None),
        ("{kind: coco}", "{kind: coco, images: 100}", "is the training set's archive"),
        (SOLIDS % (4, 1), SOLIDS % (4, 1), "seed=1 draws the training objects again"),
        (SOLIDS % (4, 1), "{kind: folder, path: x, views: 4}", None),
    ],
)
def test_images_of_the_training_set_are_refused_for_evaluation(
    train: str, evaluation: str, clash: str | None
) -> None:
    overrides = (f"datasets={{one: {train}, two: {evaluation}}}", "data.train=one", "data.evaluation=two")
    if clash is None:
        load_config(DEMO, overrides)
        return
    with pytest.raises(ConfigError, match=re.escape(clash)):
        load_config(DEMO, overrides)


@pytest.mark.parametrize(
    ("train", "evaluation", "views"),
    [
        (SOLIDS % (4, 1), SOLIDS % (6, 2), (4, 6)),
        ("{kind: demo, images: 9, seed: 1}", SOLIDS % (2, 1), (1, 2)),
        ("{kind: hub, repository: a/b, views: 3}", "{kind: coco}", (3, 1)),
    ],
)
def test_training_and_evaluation_need_equal_views(
    train: str, evaluation: str, views: tuple[int, int]
) -> None:
    overrides = (f"datasets={{one: {train}, two: {evaluation}}}", "data.train=one", "data.evaluation=two")
    said = f"datasets.two has {views[1]} views in a sample, the training set one has {views[0]}; give both the same"
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(DEMO, overrides)


def test_every_kind_of_data_set_tells_its_views_and_only_some_let_them_be_chosen() -> None:
    kinds = ("{kind: demo, images: 9, seed: 1}", SOLIDS % (4, 1), HUB % (0, 1), "{kind: coco}")
    config = load_config(DEMO, tuple(f"datasets.set{place}={kind}" for place, kind in enumerate(kinds)))
    assert [config.datasets[f"set{place}"].views for place in range(4)] == [1, 4, 1, 1]
    with pytest.raises(ConfigError, match=re.escape("datasets.x.views: unknown key")):
        load_config(DEMO, ("datasets.x={kind: demo, images: 9, seed: 1, views: 2}",))
    with pytest.raises(ConfigError, match=re.escape("datasets.x.views=1: Input should be greater than")):
        load_config(DEMO, (f"datasets.x={SOLIDS % (1, 1)}",))
    with pytest.raises(ConfigError, match=re.escape("datasets.x.views=0: Input should be greater than")):
        load_config(DEMO, ("datasets.x={kind: folder, path: x, views: 0}",))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.validation_shards=13", "data.validation_shards=13: shapes-train has 13 tars"),
        ("evaluation.images=9999", "evaluation.images=9999: the evaluation set has 2048 images"),
        ("runs.earlier-recipe={}", "two rules would be called train_earlier_recipe"),
    ],
)
def test_what_could_only_fail_after_hours_fails_at_once(override: str, says: str) -> None:
    config = load_config(DEMO, (override,))
    with pytest.raises(ConfigError, match=re.escape(says)):
        _ = Plan(config, Places("demo", Path("results"), Path("results/data"))).jobs


def test_two_settings_of_one_encoder_have_rules_of_their_own() -> None:
    config = load_config(DEMO, ("encoders.target.name=demo-eva", "encoders.target.precision=bf16"))
    plan = Plan(config, Places("demo", Path("results"), Path("results/data")))
    assert len([name for name in plan.jobs if name.startswith("extract_shapes_test_demo_eva_")]) == 2
    assert [name for name in plan.jobs if name.startswith("weights_")] == ["weights_demo_eva"]


@pytest.mark.parametrize("settings", [{"shards_per_job": 0}, {"shards_per_job": "abc"}, {"set": 5}])
def test_bad_machine_settings_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        split_machine_settings(settings, {})


def test_machine_settings_come_from_configuration_then_environment_then_default() -> None:
    machine, values, overrides = split_machine_settings(
        {"data_root": "/scratch", "set": "train.steps=3", "experiment": "x"}, {"FLOWKIT_RESULTS": "/home/r"}
    )
    assert (machine.results, machine.data_root, machine.shards_per_job) == (
        Path("/home/r"),
        Path("/scratch"),
        32,
    )
    assert (values, overrides) == ({"experiment": "x"}, ("train.steps=3",))


def test_scientific_notation_arrives_as_text_and_is_a_number() -> None:
    assert load_config(DEMO, ("train.learning_rate=1e-4",)).train.learning_rate == 1e-4


def test_run_merges_its_overrides_and_nothing_else() -> None:
    config = load_config(DEMO)
    assert config.run("regression").objective.kind == "regression"
    assert config.run("regression").train == config.train
    assert config.run("earlier_recipe").train.learning_rate == config.train.learning_rate


def test_missing_file_and_broken_yaml_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file"):
        load_config(tmp_path / "nothing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(b"experiment: \xff")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not readable as YAML"):
        load_config(broken)
    broken.write_text("train: [1")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not readable as YAML"):
        load_config(broken)


def test_leaves_tell_swapped_values_apart() -> None:
    assert leaves({"a": {"heads": 12, "layers": 16}}) != leaves({"a": {"heads": 16, "layers": 12}})
    assert leaves({"b": {"c": (1, 2)}, "a": None}) == ["a=None", "b.c=1,2"]


@pytest.mark.parametrize("name", sorted(config_files()))
def test_generated_files_are_in_step_with_the_models(name: str) -> None:
    assert (ROOT / "workflow/config" / name).read_text() == config_files()[name], (
        "run: python -m flowkit config-files"
    )


def test_workflow_layer_imports_no_numeric_library() -> None:
    heavy = ("torch", "numpy", "zarr", "pandas", "open_clip")
    code = f"import sys, flowkit.__main__; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
