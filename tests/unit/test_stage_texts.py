"""Text embeddings: a killed attempt goes on at the batch in hand and gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowkit.stages import texts as stage

WIDTH = 6


class CountingTower:
    """Embeds a text as a function of its characters; remembers what it was asked and can die at a batch."""

    pooled_width = WIDTH

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.dies_at = dies_at

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(len(texts))
        return torch.tensor([[float(len(text) + place) for place in range(WIDTH)] for text in texts])


@pytest.fixture
def captions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(stage, "BATCH", 4)
    return ["x" * number for number in range(11)]


@pytest.mark.parametrize("torn_bytes", [0, 5, 4 * WIDTH * 3])
def test_a_killed_attempt_goes_on_at_a_batch(captions: list[str], tmp_path: Path, torn_bytes: int) -> None:
    whole = stage._embed(CountingTower(), captions, tmp_path / "whole.partial")
    with pytest.raises(KeyboardInterrupt):
        stage._embed(CountingTower(dies_at=2), captions, tmp_path / "killed.partial")
    with (tmp_path / "killed.partial").open("ab") as file:  # what a kill in the middle of a write leaves
        file.write(b"\x7f" * torn_bytes)
    tower = CountingTower()
    resumed = stage._embed(tower, captions, tmp_path / "killed.partial")
    assert tower.asked == [3], "two whole batches of four are kept, the last three texts are embedded"
    assert torch.equal(resumed, whole)
    assert whole.shape == (11, WIDTH)


def test_a_finished_file_is_not_taken_for_more_than_its_texts(captions: list[str], tmp_path: Path) -> None:
    stage._embed(CountingTower(), captions, tmp_path / "same.partial")
    again = stage._embed(CountingTower(), captions, tmp_path / "same.partial")
    assert again.shape == (11, WIDTH)
    assert stage._embed(CountingTower(), [], tmp_path / "none.partial").shape == (0, WIDTH)
