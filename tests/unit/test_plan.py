"""What a plan says of a machine before anything runs: shares, SBU, misfits, quotas, sizes, and what is not known."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flowkit.__main__ import app
from flowkit.config import load_config
from flowkit.datasets import FolderDataset, HubDataset
from flowkit.encoders.registry import load_encoder
from flowkit.encoders.token_shapes import DEMO_SHAPES, encoder_shape
from flowkit.errors import ConfigError, EncoderError
from flowkit.paths import MANIFEST, RUN_RECORD, Places
from flowkit.planning.billing import Ask, Partition, billed_share, machine_facts, sbu_per_hour
from flowkit.planning.data_facts import DataFacts
from flowkit.planning.misfits import SettingNames, misfits
from flowkit.planning.pending import State, job_states
from flowkit.planning.plan import machine_plan
from flowkit.planning.plan_text import plan_lines
from flowkit.planning.sizes import RESULT, store_size
from flowkit.planning.storage import KEPT_CHECKPOINTS
from flowkit.provenance import write_json
from flowkit.stages import shards
from flowkit.stages.session import committed
from flowkit.stages.specs import Plan
from flowkit.training.checkpoint import KEPT

ROOT = Path(__file__).parents[2]
SNELLIUS = ROOT / "profiles/snellius"
ROME = Partition(cores=128, memory_gb=224, smallest_share="1/8", sbu_per_core_hour=1, longest_hours=120)
H100 = Partition(
    cores=64, gpus=4, memory_gb=720, smallest_share="1/4", sbu_per_gpu_hour=192, longest_hours=120
)
PARTITIONS = {"rome": ROME, "gpu_h100": H100}
NAMES = SettingNames("s.partition", "s.gpus", "s.cpus", "s.memory_gb", "s.minutes")
TAR_BYTES, CONFIG = 1_000_000, "tests/workflow/tiny.yaml"


def hub_plan(folder: Path, *overrides: str, **dataset: object) -> Plan:
    """The tiny experiment on three listed tars of a hub."""
    raw = {"kind": "hub", "repository": "a/b", "shards": 3, **dataset}
    text = ", ".join(f"{key}: {value}" for key, value in raw.items())
    config = load_config(ROOT / CONFIG, (f"datasets.train={{{text}}}", *overrides))
    places = Places(config.experiment, folder, folder / "data")
    tars = [{"name": f"{n:05d}.tar", "bytes": (n + 1) * TAR_BYTES, "sha256": f"{n:064x}"} for n in range(3)]
    listing = {"repository": "a/b", "revision": "main", "commit": "c" * 40, "tars": tars}
    write_json(places.listing("a/b", "main"), listing)
    return Plan(config, places)


def ask_plan(folder: Path, *arguments: str) -> Result:
    """What the command prints for the tiny experiment with results in `folder`."""
    return CliRunner().invoke(app, ["plan", str(ROOT / CONFIG), "--results", str(folder), *arguments])


def profile(folder: Path, config: str, machine: str = "") -> Path:
    """A profile with these files."""
    folder.mkdir()
    (folder / "config.yaml").write_text(config)
    if machine:
        (folder / "machine.yaml").write_text(machine)
    return folder


@pytest.mark.parametrize(
    ("partition", "ask", "share", "sbu"),
    [
        (ROME, Ask("rome", 0, 1, 2, 60), Fraction(1, 8), 16),
        (ROME, Ask("rome", 0, 16, 28, 60), Fraction(1, 8), 16),
        (ROME, Ask("rome", 0, 17, 28, 60), Fraction(1, 4), 32),
        (ROME, Ask("rome", 0, 16, 29, 60), Fraction(1, 4), 32),
        (ROME, Ask("rome", 0, 128, 28, 60), Fraction(1), 128),
        (H100, Ask("gpu_h100", 1, 16, 180, 60), Fraction(1, 4), 192),
        (H100, Ask("gpu_h100", 1, 16, 181, 60), Fraction(1, 2), 384),
        (H100, Ask("gpu_h100", 3, 16, 180, 60), Fraction(3, 4), 576),
        (H100, Ask("gpu_h100", 4, 64, 720, 60, nodes=2), Fraction(1), 1536),
    ],
)
def test_a_job_pays_for_its_largest_share_of_a_node(
    partition: Partition, ask: Ask, share: Fraction, sbu: float
) -> None:
    assert billed_share(ask, partition) == share
    assert sbu_per_hour(ask, partition) == sbu


@pytest.mark.parametrize(
    ("ask", "says", "is_grave"),
    [
        (Ask("rome", 0, 129, 28, 60), "s.cpus=129: a node of rome has 128 cores", True),
        (Ask("rome", 1, 16, 28, 60), "s.gpus=1: a node of rome has no GPUs", True),
        (Ask("gpu_h100", 5, 16, 28, 60), "s.gpus=5: a node of gpu_h100 has 4 GPUs", True),
        (Ask("rome", 0, 16, 300, 60), "s.memory_gb=300: a node of rome has 224 GiB", True),
        (Ask("rome", 0, 16, 28, 7201), "s.minutes=7201: rome ends jobs after 7200 minutes; set 7200", True),
        (Ask("gpu_h100", 1, 16, 181, 60), "s.memory_gb=181: 1/2 of a node of gpu_h100 is billed", False),
        (Ask("gpu_h100", 1, 17, 180, 60), "s.cpus=17: 1/2 of a node of gpu_h100 is billed", False),
        (Ask("gpu_h100", 0, 16, 180, 60), "s.partition=gpu_h100: no GPU is asked for there", False),
        (Ask("rome", 0, 16, 113, 60), "s.memory_gb=113: attempt 2 asks for 226 GiB", False),
        (Ask("rome", 0, 16, 28, 3601), "s.minutes=3601: attempt 2 asks for 7202 minutes", False),
        (Ask("roma", 0, 16, 28, 60), "s.partition='roma': not among the partitions", False),
    ],
)
def test_what_does_not_fit_is_one_line_with_setting_value_and_remedy(
    ask: Ask, says: str, is_grave: bool
) -> None:
    found = list(misfits(ask, PARTITIONS, NAMES, attempts=2))
    assert [says in one.text for one in found].count(True) == 1
    assert all("\n" not in one.text and "; " in one.text for one in found)
    assert any(one.is_grave for one in found) is is_grave


def test_what_fits_gives_no_warning() -> None:
    for ask in (Ask("rome", 0, 16, 28, 3600), Ask("gpu_h100", 1, 16, 180, 3600)):
        assert not list(misfits(ask, PARTITIONS, NAMES, attempts=2))


def test_shipped_machine_knows_the_partitions_of_its_profile(tmp_path: Path) -> None:
    done = ask_plan(tmp_path, "--profile", str(SNELLIUS), "--data-root", str(tmp_path / "data"))
    assert done.exit_code == 0, done.output
    assert "warning" not in done.output
    assert "26 to run" in done.output
    assert "21 Slurm jobs; 5 run here" in done.output
    facts = machine_facts(SNELLIUS)
    assert facts.quotas[0].holds(Path("/scratch-shared/me/flowkit"))
    assert (facts.quotas[0].limit_bytes, facts.quotas[0].files) == (8 * 1024**4, 3_000_000)
    assert not facts.quotas[0].holds(Path("/scratch-shared-too"))


def test_profile_without_machine_file_has_no_quota_and_no_sbu(tmp_path: Path) -> None:
    done = ask_plan(tmp_path, "--profile", str(ROOT / "profiles/slurm-test"))
    assert done.exit_code == 0, done.output
    assert "quotas: none known" in done.output
    assert "SBU: not known" in done.output
    assert "19 Slurm jobs; 7 run here" in done.output
    alone = ask_plan(tmp_path)
    assert "0 Slurm jobs; 26 run here" in alone.output
    assert "cost: no job of Slurm's is to run" in alone.output


def test_setting_that_fits_no_node_ends_with_code_1(tmp_path: Path) -> None:
    wrong = "{default: {partition: rome}, extract: {cpus: 300}}"
    text = f"executor: slurm\nconfig:\n  stages: {wrong}\n"
    own = profile(tmp_path / "own", text, (SNELLIUS / "machine.yaml").read_text())
    done = ask_plan(tmp_path, "--profile", str(own))
    assert done.exit_code == 1
    warnings = [line for line in done.output.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: stages.extract.cpus=300: a node of rome has 128 cores; ask for no more"]


def test_names_of_training_settings_are_those_of_the_run(tmp_path: Path) -> None:
    training = "executor: slurm, partition: gpu_h100, gpus_per_node: 1, cpus_per_task: 16, minutes: 9999"
    text = f"config:\n  training: {{{training}, runs: {{flow: {{cpus_per_task: 99}}}}}}\n"
    own = profile(tmp_path / "own", text, (SNELLIUS / "machine.yaml").read_text())
    output = ask_plan(tmp_path, "--profile", str(own)).output
    assert "training.runs.flow.cpus_per_task=99: a node of gpu_h100 has 64 cores" in output
    assert output.count("training.minutes=9999: gpu_h100 ends jobs after 7200 minutes") == 1


@pytest.mark.parametrize(("limit", "over"), [("bytes: 1 MB", "TB"), ("files: 100", "of 100 files")])
def test_exceeded_quota_is_a_warning_and_code_1(tmp_path: Path, limit: str, over: str) -> None:
    machine = f"quotas:\n  - {{paths: [{tmp_path}], {limit}, note: emptied after 14 days}}\n"
    own = profile(tmp_path / "own", "cores: 2\n", machine)
    done = ask_plan(tmp_path, "--profile", str(own))
    assert done.exit_code == 1
    assert f"warning: data_root={tmp_path}/data and results={tmp_path}: takes " in done.output
    assert over in done.output
    assert "encoders.source_storage=int8" in done.output
    assert "emptied after 14 days" in done.output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quotas: [{paths: [/a], bytes: 8 TiBi}]", "quotas.0.bytes='8 TiBi': expected a number and a unit"),
        ("quotas: [{path: /a}]", "unknown key"),
        ("partitions: {rome: {cores: 1, memory_gb: 1, smallest_share: 0.3}}", "smallest_share=0.3"),
        ("- 1", "expected quotas and partitions, found list"),
        ("{", "not readable as YAML"),
    ],
)
def test_wrong_machine_file_is_one_line_that_names_it(tmp_path: Path, text: str, says: str) -> None:
    own = profile(tmp_path / "own", "cores: 2\n", text)
    with pytest.raises(ConfigError) as caught:
        machine_facts(own)
    lines = str(caught.value).splitlines()
    assert any(says in line for line in lines)
    assert all("machine.yaml" in line for line in lines)


def test_images_that_nobody_counted_are_unknown(tmp_path: Path) -> None:
    plan = hub_plan(tmp_path)
    assert DataFacts(plan).images("train") is None
    text = "\n".join(plan_lines(machine_plan(plan, None)))
    assert "nobody has counted their images yet" in text
    assert "tokens of train, demo-eva, float16" in text
    assert "unknown" in text
    assert "--set datasets.train.samples_per_shard=N" in text
    bounded = DataFacts(hub_plan(tmp_path, samples_per_shard=50))
    assert bounded.images("train") == 150
    assert bounded.is_estimate("train")


def test_finished_stores_tell_how_many_images_other_tars_have(tmp_path: Path) -> None:
    plan = hub_plan(tmp_path)
    counts = {"samples": 70, "rejects": 0}
    folder = plan.places.store("train", plan.target_id, "00000.tar")
    write_json(folder / MANIFEST, {"content": "x", "counts": counts})
    facts = DataFacts(plan)
    assert [tar.images for tar in facts.tars("train")] == [70, 140, 210]
    assert [tar.is_counted for tar in facts.tars("train")] == [True, False, False]
    limited = DataFacts(hub_plan(tmp_path, samples_per_shard=150))
    assert [tar.images for tar in limited.tars("train")] == [70, 140, 150]


def test_each_view_of_an_object_is_an_image(tmp_path: Path) -> None:
    evaluation = "datasets.test={kind: folder, path: x, views: 4}"
    facts = DataFacts(hub_plan(tmp_path, evaluation, samples_per_shard=50, views=4))
    assert facts.images("train") == 600


def test_solids_become_the_tars_that_were_planned(tmp_path: Path) -> None:
    solids = "{kind: solids, objects: %d, objects_per_shard: 5, views: 3, seed: %d}"
    overrides = (
        f"datasets.train={solids % (12, 1)}",
        f"datasets.test={solids % (11, 2)}",
        "evaluation.images=11",
    )
    config = load_config(ROOT / CONFIG, overrides)
    plan = Plan(config, Places(config.experiment, tmp_path, tmp_path / "data"))
    planned = DataFacts(plan).tars("train")
    assert [(tar.name, tar.images) for tar in planned] == [
        ("00000.tar", 15),
        ("00001.tar", 15),
        ("00002.tar", 6),
    ]
    assert not DataFacts(plan).is_estimate("train")
    (job,) = plan.select("shards", dataset="train")
    shards.run(job.spec)
    content, manifest = committed(job.folders[0])
    made = [(tar["name"], tar["bytes"]) for tar in manifest["counts"]["tars"]]
    assert made == [(tar.name, tar.bytes) for tar in planned]
    assert [(path.name, path.stat().st_size) for path in sorted(content.glob("*.tar"))] == made
    too_many = load_config(ROOT / CONFIG, (*overrides, "evaluation.images=12"))
    with pytest.raises(ConfigError, match="the evaluation set has 11 objects"):
        _ = Plan(too_many, plan.places).jobs


def test_int8_takes_half_and_costs_one_more_read(tmp_path: Path) -> None:
    whole = machine_plan(hub_plan(tmp_path, samples_per_shard=1000), None)
    half = machine_plan(hub_plan(tmp_path, "encoders.source_storage=int8", samples_per_shard=1000), None)
    assert whole.reading[0].step_reads == 2 * 16
    assert half.reading[0].step_reads == 3 * 16
    assert whole.reading[0].step_bytes == 16 * (17 * 128 * 2 + 4 + 17 * 96 * 2 + 4)
    assert half.reading[0].step_bytes == 16 * (17 * 128 + 4 + 17 * 4 + 4 + 17 * 96 * 2 + 4)
    stored = {line.what: line.to_come for line in half.stored if line.to_come is not None}
    assert (
        0.5
        < stored["tokens of train, demo-eva, int8"].bytes / stored["tokens of train, demo-eva, float16"].bytes
        < 0.6
    )
    assert half.superfluous.bytes > 0
    assert not whole.superfluous
    assert whole.reading[0].epoch_bytes == 2000 * whole.reading[0].step_bytes // 16


def test_steps_follow_epochs_where_images_are_known(tmp_path: Path) -> None:
    known = machine_plan(hub_plan(tmp_path, "train.epochs=1.5", samples_per_shard=100), None)
    assert known.reading[0].steps == 18
    unknown = machine_plan(hub_plan(tmp_path, "train.epochs=1.5"), None)
    assert unknown.reading[0].steps is None
    assert list(plan_lines(unknown))


def test_big_stores_are_all_tokens() -> None:
    shape = encoder_shape("eva_clip:EVA-CLIP-8B")
    assert (shape.tokens, shape.width, shape.pooled_width) == (257, 4096, 1280)
    size = store_size(shape, 5000)
    assert size.bytes == pytest.approx(5000 * 257 * 4096 * 2, rel=0.005)
    assert size.files == RESULT.files + 9


def test_demo_shapes_are_those_of_the_towers() -> None:
    for name in DEMO_SHAPES:
        encoder, shape = load_encoder(name), encoder_shape(name)
        assert (shape.tokens, shape.width) == (encoder.token_count, encoder.token_width)
        assert (shape.pooled_width, shape.grid) == (encoder.pooled_width, encoder.grid)


def test_shapes_of_open_clip_need_no_weights() -> None:
    shape = encoder_shape("open_clip:ViT-L-14-quickgelu/openai")
    assert (shape.tokens, shape.width, shape.pooled_width, shape.grid) == (257, 1024, 768, (16, 16))
    assert shape.weight_bytes == 4 * 427_616_513
    with pytest.raises(EncoderError, match="no model 'ViT-X'"):
        encoder_shape("open_clip:ViT-X/openai")


def test_what_only_finished_jobs_read_is_not_needed(tmp_path: Path) -> None:
    """A disk that is emptied costs nothing until something before it changes."""
    plan = hub_plan(tmp_path, samples_per_shard=10)
    assert set(job_states(plan.jobs).values()) == {State.TO_RUN}
    for job in plan.jobs.values():
        if job.spec.stage in ("fetch", "weights", "extract"):
            continue
        for folder in job.folders:
            write_json(folder / MANIFEST, {"content": "x", "counts": {"samples": 1}})
            write_json(folder / RUN_RECORD, {"spec": job.spec.as_dict(), "code": list(job.spec.code)})
    states = job_states(plan.jobs)
    stages = {plan.jobs[name].spec.stage for name, state in states.items() if state is State.NOT_NEEDED}
    assert State.TO_RUN not in states.values()
    assert stages == {"fetch", "weights", "extract"}
    (plan.places.pairs("train", plan.source_id, plan.target_id) / MANIFEST).unlink()
    (plan.places.train("flow") / MANIFEST).unlink()
    assert State.TO_RUN not in job_states(plan.jobs).values()
    samples = plan.jobs["sample_flow"]
    write_json(samples.folders[0] / RUN_RECORD, {"spec": samples.spec.as_dict(), "code": ["another@0"]})
    states = job_states(plan.jobs)
    running = {name for name, state in states.items() if state is State.TO_RUN}
    assert {"sample_flow", "train_flow", "pairs_train", "fetch_train"} <= running, "what it reads is missing"
    assert {"evaluate_flow", "summary", "report", "train_regression"} <= running, "what reads those follows"


def test_every_shipped_configuration_prints_a_plan(tmp_path: Path) -> None:
    for path in sorted((ROOT / "workflow/config").glob("*.yaml")):
        config, places = load_config(path), Places("planned", tmp_path, tmp_path / "data")
        for name, dataset in config.datasets.items():
            if isinstance(dataset, FolderDataset):
                for tar in ("00000.tar", "00001.tar"):
                    (tmp_path / name).mkdir(exist_ok=True)
                    (tmp_path / name / tar).touch()
            if isinstance(dataset, HubDataset):
                tars = [{"name": f"{n:05d}.tar", "bytes": 5, "sha256": f"{n:064x}"} for n in range(100)]
                listing = {"repository": dataset.repository, "revision": dataset.revision, "commit": "c" * 40}
                write_json(places.listing(dataset.repository, dataset.revision), {**listing, "tars": tars})
        folders = tuple(
            f"datasets.{name}.path={tmp_path}/{name}"
            for name, dataset in config.datasets.items()
            if isinstance(dataset, FolderDataset)
        )
        plan = Plan(load_config(path, folders), places)
        lines = list(plan_lines(machine_plan(plan, SNELLIUS)))
        tables = [line for line in lines if str(tmp_path) not in line and not line.startswith("warning")]
        assert all(len(line) <= 110 for line in tables), max(tables, key=len)


def test_as_many_checkpoints_are_counted_as_training_keeps() -> None:
    assert KEPT_CHECKPOINTS == KEPT


def test_asking_for_a_plan_of_the_demo_loads_no_more_than_it_needs() -> None:
    code = (
        "import sys, flowkit.planning.plan_text; assert not {'torch', 'open_clip', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
