"""Extraction: bytes do not depend on where it was killed, a bad member is counted and never invented."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from features_material import files_of, png, write_tar
from PIL import Image

from flowkit.errors import ShardError
from flowkit.features.extraction import extract_tar
from flowkit.features.store import TokenStore
from flowkit.features.writer import Counts

BATCH = 4
BAD = {
    3: "image undecodable",
    8: "image missing",
    9: "image undecodable",
    10: "caption missing",
    11: "image missing",
}
MEMBERS = 14


class ToyEncoder:
    """Patch means and a class token; remembers its batches and can be told to die at one of them."""

    name, layer = "toy", "last block, before the final norm"
    grid, token_count, token_width, pooled_width = (2, 2), 5, 3, 2

    def __init__(self, dies_at: int | None = None, poison: int | None = None) -> None:
        self.device = torch.device("cpu")
        self.batches: list[int] = []
        self.dies_at, self.poison = dies_at, poison

    @property
    def preprocessing(self) -> dict[str, object]:
        return self.preprocessing_of("exact")

    def preprocessing_of(self, decoder: str) -> dict[str, object]:
        return {"size": 8, "decoder": decoder}

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.asarray(image.resize((8, 8)), dtype=np.float32))
        return pixels.permute(2, 0, 1) / 255

    def preprocess_pixels(self, pixels_CHW: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(pixels_CHW[None].float(), (8, 8))[0] / 255

    def encode(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append(len(pixels_NCHW))
        patches = torch.nn.functional.avg_pool2d(pixels_NCHW, 4).flatten(2).transpose(1, 2)
        cls = patches.mean(1, keepdim=True)
        tokens = torch.cat([cls, patches], dim=1)
        if self.poison is not None and len(self.batches) == 1:
            tokens[self.poison, 2, 1] = torch.inf
        return tokens, cls[:, 0, :2]

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        raise NotImplementedError

    def head(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """Fourteen members, five of them bad; members 8 to 11 make a batch without any good image."""
    files: dict[str, bytes] = {}
    for index in range(MEMBERS):
        key, why = f"{index:03d}", BAD.get(index)
        if why != "image missing":
            files[f"{key}.png"] = png(index)[: 40 if why == "image undecodable" else None]
        if why != "caption missing":
            files[f"{key}.txt"] = f"picture {index}".encode()
    files["000.json"] = json.dumps({"attributes": {"shape": "circle", "count": 1}}).encode()
    return write_tar(tmp_path / "00007.tar", files)


def extract(tar: Path, folder: Path, encoder: ToyEncoder | None = None, **options: object) -> Counts:
    return extract_tar(
        tar, encoder or ToyEncoder(), folder, batch_size=BATCH, attributes={"weights_sha256": "cd"}, **options
    )


def test_store_holds_the_good_members_and_the_reasons_of_the_bad(tar: Path, tmp_path: Path) -> None:
    done: list[int] = []
    encoder = ToyEncoder()
    counts = extract(tar, tmp_path / "store", encoder, progress=done.append)
    store = TokenStore(tmp_path / "store", encoder="toy")
    store.verify()
    assert counts == Counts(samples=9, rejects=5)
    assert list(store.samples["index"]) == [i for i in range(MEMBERS) if i not in BAD]
    found = {row.index: row.reason.partition(":")[0] for row in store.rejects.itertuples(index=False)}
    assert found == BAD
    assert sum(done) == MEMBERS
    assert encoder.batches == [3, 4, 2]


def test_rows_describe_the_source_image(tar: Path, tmp_path: Path) -> None:
    extract(tar, tmp_path / "store")
    samples = TokenStore(tmp_path / "store").samples
    assert samples["image_sha256"][1] == hashlib.sha256(png(1)).hexdigest()
    assert list(samples["captions"][1]) == ["picture 1"]
    assert json.loads(samples["attributes_json"][0]) == {"shape": "circle", "count": 1}
    assert samples["attributes_json"].isna()[1]
    assert (samples["width"][0], samples["height"][0]) == (8, 8)


def test_tokens_are_those_of_the_encoder(tar: Path, tmp_path: Path) -> None:
    extract(tar, tmp_path / "store", decode_threads=3)
    store, encoder = TokenStore(tmp_path / "store"), ToyEncoder()
    for row, index in enumerate(store.samples["index"]):
        path = tmp_path / "one.png"
        path.write_bytes(png(index))
        tokens, pooled = encoder.encode(encoder.preprocess(Image.open(path).convert("RGB"))[None])
        np.testing.assert_allclose(store.read_tokens([row]), tokens.numpy(), atol=1e-3)
        np.testing.assert_allclose(store.read_pooled([row]), pooled.numpy(), atol=1e-3)


def test_attributes_say_what_made_the_store(tar: Path, tmp_path: Path) -> None:
    extract(tar, tmp_path / "store")
    attributes = TokenStore(tmp_path / "store").attributes
    assert attributes["source"] == {
        "name": "00007.tar",
        "bytes": tar.stat().st_size,
        "sha256": hashlib.sha256(tar.read_bytes()).hexdigest(),
    }
    expected = {
        "encoder": "toy",
        "has_cls": True,
        "grid": [2, 2],
        "weights_sha256": "cd",
        "batch_size": BATCH,
    }
    assert expected.items() <= attributes.items()
    assert attributes["counts"] == {"seen": 14, "samples": 9, "rejects": 5}


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_resumed_store_has_the_same_bytes(tar: Path, tmp_path: Path, dies_at: int) -> None:
    extract(tar, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        extract(tar, tmp_path / "store", ToyEncoder(dies_at=dies_at))
    encoder = ToyEncoder()
    extract(tar, tmp_path / "store", encoder)
    assert encoder.batches == [3, 4, 2][dies_at:]
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")
    again = ToyEncoder()
    assert extract(tar, tmp_path / "store", again) == Counts(samples=9, rejects=5)
    assert again.batches == []


def test_non_finite_tokens_are_rejected_and_leave_a_gap(tar: Path, tmp_path: Path) -> None:
    assert extract(tar, tmp_path / "store", ToyEncoder(poison=1)) == Counts(samples=8, rejects=6)
    rejects = TokenStore(tmp_path / "store").rejects.set_index("index")
    assert rejects.loc[1, "reason"] == "not finite: 1 of 15 values of tokens"


def test_limit_takes_the_first_members(tar: Path, tmp_path: Path) -> None:
    assert extract(tar, tmp_path / "store", limit=6) == Counts(samples=5, rejects=1)
    assert TokenStore(tmp_path / "store").attributes["limit"] == 6


def test_text_that_is_no_unicode_is_a_reject(tmp_path: Path) -> None:
    files = {"a.png": png(0), "a.json": b'{"captions": ["\\ud800"]}', "b.png": png(1), "b.txt": b"fine"}
    assert extract(write_tar(tmp_path / "0.tar", files), tmp_path / "store") == Counts(samples=1, rejects=1)
    assert TokenStore(tmp_path / "store").rejects["reason"][0].startswith("text is not Unicode")


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda content: b"no tar" * 500]
)
def test_damaged_tar_is_named(tar: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(ShardError, match=r"00007\.tar"):
        extract(tar, tmp_path / "store")
    assert not (tmp_path / "store/zarr.json").exists()


def test_batch_size_must_be_positive(tar: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        extract_tar(tar, ToyEncoder(), tmp_path / "store", batch_size=0, attributes={})
