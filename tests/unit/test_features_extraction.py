"""Extraction: bytes do not depend on where it was killed, a bad member is counted and never invented."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from features_material import files_of, png, write_tar
from PIL import Image
from shards_material import encoded, huge_jpeg, jpeg, picture, rotated_jpeg

from flowkit.errors import EncoderError, ShardError
from flowkit.features.extraction import extract_tar
from flowkit.features.store import TokenStore
from flowkit.features.writer import Counts
from flowkit.shards.catalogue import describe_tar

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

    name, layer, arithmetic = "toy", "last block, before the final norm", "fp32"
    grid, token_count, token_width, pooled_width = (2, 2), 5, 3, 2

    def __init__(
        self, dies_at: int | None = None, poison: int | None = None, value: float = torch.inf
    ) -> None:
        self.device = torch.device("cpu")
        self.batches: list[int] = []
        self.dies_at, self.poison, self.value = dies_at, poison, value

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
            tokens[self.poison, 2, 1] = self.value
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
        "arithmetic": "fp32",
        "preprocessing": {"size": 8, "decoder": "exact"},
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


@pytest.mark.parametrize("decode_threads", [2, 5])
def test_bytes_do_not_depend_on_the_number_of_threads(tar: Path, tmp_path: Path, decode_threads: int) -> None:
    extract(tar, tmp_path / "one")
    extract(tar, tmp_path / "many", decode_threads=decode_threads)
    assert files_of(tmp_path / "many") == files_of(tmp_path / "one")


def test_many_batches_keep_their_pixels_apart(tmp_path: Path) -> None:
    """More batches than buffers, most of them with a gap: every row is still the one of its image."""
    members = 60
    files = {f"{n:03d}.png": png(n)[: 40 if n % 4 == n // 4 % 4 else None] for n in range(members)}
    texts = {f"{n:03d}.txt": b"text" for n in range(members)}
    extract(write_tar(tmp_path / "0.tar", files | texts), tmp_path / "store", decode_threads=3)
    store, encoder = TokenStore(tmp_path / "store"), ToyEncoder()
    assert len(store) == members - members // 4
    for row, index in enumerate(store.samples["index"]):
        image = Image.open(io.BytesIO(png(index))).convert("RGB")
        tokens, _ = encoder.encode(encoder.preprocess(image)[None])
        np.testing.assert_array_equal(store.read_tokens([row]), tokens.half().numpy())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.inf, "not finite: 1 of 15 values of tokens"),
        (torch.nan, "not finite: 1 of 15 values of tokens"),
        (65505.0, "beyond float16: tokens reach 65505, the limit is 65504"),
        (-1e9, "beyond float16: tokens reach 1e+09, the limit is 65504"),
    ],
)
def test_tokens_that_do_not_fit_are_rejected_and_leave_a_gap(
    tar: Path, tmp_path: Path, value: float, reason: str
) -> None:
    encoder = ToyEncoder(poison=1, value=value)
    assert extract(tar, tmp_path / "store", encoder) == Counts(samples=8, rejects=6)
    rejects = TokenStore(tmp_path / "store").rejects.set_index("index")
    assert rejects.loc[1, "reason"] == reason


def test_largest_half_is_kept(tar: Path, tmp_path: Path) -> None:
    assert extract(tar, tmp_path / "store", ToyEncoder(poison=1, value=-65504.0)).samples == 9
    assert TokenStore(tmp_path / "store").read_tokens([1])[0, 2, 1] == -65504.0


def test_encoder_of_other_sizes_than_it_says_is_an_error(tar: Path, tmp_path: Path) -> None:
    encoder = ToyEncoder()
    encoder.token_width = 1
    with pytest.raises(EncoderError, match=r"returned tokens \(3, 5, 3\), expected \(3, 5, 1\)"):
        extract(tar, tmp_path / "store", encoder)


def test_fast_decoding_has_the_same_rejects_and_says_so_in_the_store(tmp_path: Path) -> None:
    usable = {
        "a": jpeg(),
        "b": jpeg(picture().convert("L")),
        "c": encoded(picture(), "PNG"),
        "d": rotated_jpeg(),
    }
    bad = {"e": jpeg()[:300], "f": b"", "g": huge_jpeg(), "h": b"\xff\xd8 no picture \xff\xd9"}
    files = {f"{key}.jpg": content for key, content in {**usable, **bad}.items() if key != "c"}
    files |= {"c.png": usable["c"], **{f"{key}.txt": b"text" for key in {**usable, **bad}}}
    tar = write_tar(tmp_path / "0.tar", files)
    stores = {}
    for decode in ("exact", "fast"):
        assert extract(tar, tmp_path / decode, decode=decode) == Counts(samples=4, rejects=4)
        stores[decode] = TokenStore(tmp_path / decode)
        assert stores[decode].attributes["preprocessing"]["decoder"] == decode
    exact, fast = stores["exact"], stores["fast"]
    assert exact.rejects.equals(fast.rejects)
    assert exact.samples.equals(fast.samples)
    assert sorted(exact.rejects["key"]) == sorted(bad)
    np.testing.assert_allclose(exact.read_tokens([0, 1, 2, 3]), fast.read_tokens([0, 1, 2, 3]), atol=0.2)


def test_progress_begins_where_the_killed_attempt_ended(tar: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(tar, tmp_path / "store", ToyEncoder(dies_at=1))
    begun: list[tuple[int, int]] = []
    done: list[int] = []
    extract(
        tar,
        tmp_path / "store",
        begin=lambda *numbers: begun.append(numbers),
        progress=done.append,
        limit=None,
    )
    assert begun == [(BATCH, MEMBERS)]
    assert sum(done) == MEMBERS - BATCH


def test_tar_that_is_not_the_listed_one_is_refused(tar: Path, tmp_path: Path) -> None:
    listed = describe_tar(tar)
    assert extract(tar, tmp_path / "same", source=listed).samples == 9
    tar.write_bytes(tar.read_bytes().replace(b"picture 0", b"picture X"))
    with pytest.raises(ShardError, match=r"00007\.tar .*its list says"):
        extract(tar, tmp_path / "other", source=listed)
    assert not (tmp_path / "other/zarr.json").exists()


def test_full_disk_ends_the_extraction_and_the_rerun_completes_it(tmp_path: Path) -> None:
    """The file size limit of a process stands for the full disk; the write happens in a thread, the error does not."""
    files = {f"{n:03d}.png": png(n) for n in range(200)} | {f"{n:03d}.txt": b"text" for n in range(200)}
    tar = write_tar(tmp_path / "0.tar", files)
    program = f"""
import resource, signal, sys
from pathlib import Path
from test_features_extraction import extract
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
extract(Path({str(tar)!r}), Path({str(tmp_path / "store")!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "StoreError" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "store/zarr.json").exists()
    extract(tar, tmp_path / "store")
    extract(tar, tmp_path / "whole")
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("depth", [100, 900, 960, 980])
def test_deep_attributes_are_written_or_counted(tmp_path: Path, depth: int) -> None:
    """Reading JSON and writing it end at different depths."""
    record = b'{"attributes":' * depth + b"{}" + b"}" * depth
    files = {"a.png": png(0), "a.txt": b"text", "a.json": record, "b.png": png(1), "b.txt": b"text"}
    counts = extract(write_tar(tmp_path / "0.tar", files), tmp_path / "store")
    assert counts.samples + counts.rejects == 2
    assert "b" in list(TokenStore(tmp_path / "store").samples["key"])


def test_decode_threads_start_no_threads_of_their_own(tar: Path, tmp_path: Path) -> None:
    """A team of OpenMP threads for each decode thread would be cores x cores threads on a GPU node."""
    seen: list[int] = []

    class Watching(ToyEncoder):
        def preprocess(self, image: Image.Image) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().preprocess(image)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        extract(tar, tmp_path / "store", Watching(), decode_threads=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    probe, *decoded = seen
    assert probe == 3
    assert set(decoded) == {1}


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


@pytest.mark.parametrize("name", ["batch_size", "decode_threads"])
def test_numbers_must_be_positive(tar: Path, tmp_path: Path, name: str) -> None:
    numbers = {"batch_size": 4, "decode_threads": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0"):
        extract_tar(tar, ToyEncoder(), tmp_path / "store", attributes={}, **numbers)
