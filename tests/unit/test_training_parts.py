"""Schedule, optimizers, checkpoints and statistics."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from paired_material import MODEL, Pairs

from flowkit.errors import CheckpointError
from flowkit.training import checkpoint, optimizer, statistics
from flowkit.training.checkpoint import TrainingState, load_newest, save_state
from flowkit.training.schedule import learning_rate_factor
from flowkit.translator import build_network


def test_learning_rate_warms_up_and_ends_at_its_share() -> None:
    factors = [
        learning_rate_factor(step, steps=100, warmup_steps=10, final_share=0.02) for step in range(101)
    ]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.51)
    assert factors[100] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(factors[10:]))


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)])
def test_orthogonalized_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = optimizer.orthogonalized(matrix, coefficients=(3.4445, -4.775, 2.0315), steps=6, epsilon=1e-7)
    assert torch.linalg.svdvals(result).min() > 0.6
    assert torch.linalg.svdvals(result).max() < 1.25
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert float((result * (u @ vt)).sum()) > 0.9 * math.sqrt(float(result.square().sum()) * min(shape))


def test_muon_takes_the_steps_of_torch() -> None:
    start = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
    moved = []
    for kind in (torch.optim.Muon, optimizer.Muon):
        parameter = torch.nn.Parameter(start.clone())
        muon = kind([parameter], lr=0.1, weight_decay=0.05, momentum=0.95)
        for step in range(3):
            parameter.grad = torch.randn(24, 8, generator=torch.Generator().manual_seed(step))
            muon.step()
        moved.append(parameter.detach() - start)
    assert float((moved[0] - moved[1]).norm() / moved[0].norm()) < 0.02  # torch iterates in bfloat16


def test_muon_gets_the_matrices_that_tokens_pass_and_adamw_the_rest() -> None:
    network = build_network(MODEL)
    built = optimizer.build_optimizers(
        network, kind="muon", muon_learning_rate=0.1, muon_momentum=0.95, learning_rate=1e-3, weight_decay=0.0
    )
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    built.step(1.0)
    names = {name.split("/")[0]: set() for name in built.tensors()}
    for name in built.tensors():
        names[name.split("/")[0]].add(name.split("/")[1])
    every = {name for name, _ in network.named_parameters()}
    assert names["muon"] | names["adamw"] == every
    assert not names["muon"] & names["adamw"]
    assert names["muon"] == {
        name
        for name, parameter in network.named_parameters()
        if parameter.ndim == 2
        and name.startswith(("blocks.", "condition.adapter", "head"))
        and "modulation" not in name
    }


def test_unknown_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match=r"'sgd'.*adamw"):
        optimizer.build_optimizers(
            build_network(MODEL),
            kind="sgd",
            muon_learning_rate=1.0,
            muon_momentum=0.95,
            learning_rate=1.0,
            weight_decay=0.0,
        )


def _state(step: int) -> TrainingState:
    return TrainingState(step, {"skipped_steps": step}, {"network/w": torch.full((3,), float(step))})


def test_the_last_two_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path) -> None:
    for step in (4, 8, 12):
        save_state(tmp_path, _state(step))
    assert [folder.name for folder in sorted(tmp_path.iterdir())] == ["step-00000008", "step-00000012"]
    restored = load_newest(tmp_path)
    assert restored is not None
    assert (restored.step, restored.counters) == (12, {"skipped_steps": 12})
    assert torch.equal(restored.tensors["network/w"], torch.full((3,), 12.0))


@pytest.mark.parametrize(
    ("found", "put"), [('"step": 8', '"step": 2'), ('"skipped_steps": 8', '"skipped_steps": 0'), ("{", "[{")]
)
def test_counters_of_a_checkpoint_are_not_believed_without_their_digest(
    tmp_path, found: str, put: str
) -> None:
    for step in (4, 8):
        save_state(tmp_path, _state(step))
    file = tmp_path / "step-00000008" / "state.json"
    text = file.read_text()
    file.write_text(text.replace(found, put, 1) + ("]" if put == "[{" else ""))
    assert file.read_text() != text
    restored = load_newest(tmp_path)
    assert restored is not None
    assert restored.step == 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage: str) -> None:
    for step in (4, 8):
        save_state(tmp_path, _state(step))
    file = tmp_path / "step-00000008" / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes({"flip": bytes(content), "truncate": bytes(content[:-2]), "remove": b""}[damage])
    restored = load_newest(tmp_path)
    assert restored is not None
    assert restored.step == 4


def test_only_damaged_checkpoints_are_an_error(tmp_path) -> None:
    save_state(tmp_path, _state(4))
    (tmp_path / "step-00000004" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step-00000004.*remove the folder"):
        load_newest(tmp_path)
    assert load_newest(tmp_path / "nothing") is None


def test_a_partial_checkpoint_is_no_checkpoint(tmp_path) -> None:
    save_state(tmp_path, _state(4))
    (tmp_path / "partial-00000008").mkdir()
    restored = load_newest(tmp_path)
    assert restored is not None
    assert restored.step == 4


def test_tensors_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match="other tensors"):
        checkpoint.copy_into({"a": torch.zeros(1)}, {"network/b": torch.zeros(1)}, "network/")


@pytest.mark.parametrize("scale", ["none", "factor", "standardize"])
def test_statistics_are_those_of_the_training_features(scale: str) -> None:
    data = Pairs(300)
    fitted = statistics.fit_statistics(data, feature_scale=scale, start_noise="target_covariance")
    torch.testing.assert_close(fitted.target_mean_TC, data.target.mean(0), atol=1e-5, rtol=1e-5)
    applied = fitted.target.apply(data.target)
    centred = applied - applied.mean(0)
    drawn = fitted.noise.color(
        torch.randn(20000, *data.target_shape, generator=torch.Generator().manual_seed(0))
    )
    assert float(drawn.square().mean()) == pytest.approx(float(centred.square().mean()), rel=0.05)
    if scale == "factor":
        assert float(applied.square().mean()) == pytest.approx(1, abs=1e-5)
        assert float(fitted.source.apply(data.source).square().mean()) == pytest.approx(1, abs=1e-5)
