"""Reading images from where users have them; uint8 in memory; augmentation of whole batches; roles on arrival."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from parts_training import TINY, digits, noise
from PIL import Image

from lifelist.exporter.errors import BadInput
from lifelist.exporter.manifest import Preprocess
from lifelist.exporter.preprocess import decode
from lifelist.training.data import (
    GATE,
    HOLDOUT,
    TRAINING,
    Augmentation,
    colour_statistics,
    normalise,
    read,
    roles_on_arrival,
)
from lifelist.training.sources import encoded

HALF = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def png(seed: int, size: int = 12) -> bytes:
    """An image file unlike any other."""
    file = io.BytesIO()
    Image.fromarray(noise(1, size, seed)[0].numpy()).save(file, "png")
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# -------------------------------------------------------------------------------------------------------- sources


def test_a_folder_per_class_is_read_as_serving_would_decode_it(tmp_path: Path) -> None:
    files = {"wren/1.png": png(1), "wren/2.PNG": png(2, 30), "robin/a.png": png(3), "robin/notes.txt": b"-"}
    found = read(write(tmp_path, files), TINY)
    assert found.names == ("robin", "wren")
    assert found.images.labels.tolist() == [0, 1, 1]
    assert found.images.pixels.dtype == torch.uint8
    assert found.images.pixels.shape == (3, 8, 8, 3)
    golden = decode(png(2, 30), Preprocess(8, 8, *HALF))
    assert np.array_equal(found.images.pixels[2].numpy(), golden)
    assert not found.test.any()


def test_numbered_classes_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = {f"class {k}/x.png": png(k) for k in (10, 9, 2)}
    assert read(write(tmp_path, files), TINY).names == ("class 2", "class 9", "class 10")


def test_folders_named_train_and_test_are_a_split(tmp_path: Path) -> None:
    files = {"train/a/1.png": png(1), "train/b/2.png": png(2), "test/a/3.png": png(3)}
    found = read(write(tmp_path, files), TINY)
    assert found.names == ("a", "b")
    rows = sorted(zip(found.test.tolist(), found.images.labels.tolist(), strict=True))
    assert rows == [(False, 0), (False, 1), (True, 0)]


def parquet(path: Path, columns: dict[str, object], metadata: dict[str, str] | None = None) -> Path:
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
    return path


def images(*seeds: int) -> pyarrow.Array:
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    return pyarrow.array([{"bytes": png(seed), "path": f"{seed}.png"} for seed in seeds], kind)


HF = {
    "huggingface": json.dumps(
        {"info": {"features": {"label": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}}}}
    )
}


@pytest.mark.parametrize(
    ("columns", "metadata", "names", "labels"),
    [
        ({"label": [2, 0, 2]}, None, ("0", "2"), [1, 0, 1]),
        ({"label": [2, 0, 2]}, HF, ("cat", "emu"), [1, 0, 1]),
        ({"label": [2, 0, 2], "class_name": ["z", "y", "z"]}, HF, ("y", "z"), [1, 0, 1]),
        ({"label": [1, 0, 1], "class_name": ["a", "b", "a"]}, None, ("b", "a"), [1, 0, 1]),  # by label, not by name
        ({"label": ["owl", "jay", "owl"]}, None, ("jay", "owl"), [1, 0, 1]),
        ({"fine_label": [7, 3, 7], "coarse_label": [0, 0, 0]}, None, ("3", "7"), [1, 0, 1]),
    ],
)
def test_parquet_of_the_usual_public_layouts_is_read(
    tmp_path: Path,
    columns: dict[str, object],
    metadata: dict[str, str] | None,
    names: tuple[str, ...],
    labels: list[int],
) -> None:
    for image in (images(1, 2, 3), pyarrow.array([png(1), png(2), png(3)], pyarrow.binary())):
        file = parquet(tmp_path / "a.parquet", {"image": image, **columns}, metadata)
        found = read(file, TINY)
        assert found.names == names
        assert found.images.labels.tolist() == labels
        assert np.array_equal(found.images.pixels[1].numpy(), decode(png(2), Preprocess(8, 8, *HALF)))


def test_a_class_name_under_two_labels_is_refused_by_name(tmp_path: Path) -> None:
    columns = {"image": images(1, 2, 3), "label": [0, 1, 2], "class_name": ["crane", "owl", "crane"]}
    file = parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(BadInput, match=r"row 2 has class 'crane' with label 2, but .* row 0 has it with 0; give each"):
        read(file, TINY)


def test_shards_named_train_and_test_are_a_split(tmp_path: Path) -> None:
    parquet(tmp_path / "train-00000-of-00001.parquet", {"img": images(1, 2), "label": [0, 1]})
    parquet(tmp_path / "test-00000-of-00001.parquet", {"img": images(3), "label": [1]})
    found = read(tmp_path, TINY)
    assert sorted(zip(found.test.tolist(), found.images.labels.tolist(), strict=True)) == [
        (False, 0),
        (False, 1),
        (True, 1),
    ]


def test_the_digits_are_ten_classes_of_real_images() -> None:
    found = digits()
    assert found.names[:3] == ("zero", "one", "two")
    assert len(found.images) == len(set(found.images.ids)) >= 1790
    assert torch.bincount(found.images.labels).min() > 170
    sharp = read("digits", replace(TINY, image_size=16)).images
    assert sharp.pixels.shape[1:] == (16, 16, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "does not exist; give a folder"),
        (lambda p: write(p, {"a.jpg": png(1)}) / "a.jpg", "is a file, but not .parquet"),
        (
            lambda p: write(p, {"readme.txt": b"-"}),
            r"holds no images: expected one folder.*readme",
        ),
        (lambda p: write(p, {"a/1.txt": b"-", "b/1.txt": b"-"}), r"holds no images: expected one folder.*'a', 'b'"),
        (
            lambda p: write(p, {"a/1.png": png(1), "b/2.png": b"-"}),
            r"no image can be used of class 'b': .*b/2.png: not an image that we read",
        ),
        (lambda p: write(p, {"a.parquet": b"PAR1"}), "is not a Parquet file"),
        (
            lambda p: parquet(p / "a.parquet", {"image": images(1), "label": [None]}),
            "no column that is clearly the label",
        ),
        (
            lambda p: parquet(p / "a.parquet", {"image": images(1), "label": [-1]}),
            r"a.parquet row 0 has no label \(-1\)",
        ),
        (lambda p: parquet(p / "a.parquet", {"label": [1]}), "no column that is clearly the image.*label"),
        (
            lambda p: parquet(p / "a.parquet", {"image": images(1), "label": [5]}, HF),
            "has label 5, but the file's metadata name only 3 classes",
        ),
    ],
)
def test_data_that_cannot_be_used_says_what_is_wrong_and_where(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        read(make(tmp_path), TINY)


def test_an_image_that_stands_more_than_once_is_taken_as_what_it_was_first(tmp_path: Path) -> None:
    files = {"a/1.png": png(1), "a/2.png": png(1), "b/3.png": png(3), "b/4.png": png(1)}
    found = read(write(tmp_path, files), TINY)
    assert found.images.labels.tolist() == [0, 1]
    assert [re.sub(r"\S*/(\d.png)", r"\1", line) for line in found.screening.copies] == [
        "2.png (a) is 1.png (a)",
        "4.png (b) is 1.png (a)",
    ]


def test_encoded_images_come_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": png(1), "b/2.jpg": png(2)})
    assert [(e.class_name, e.data) for e in encoded(tmp_path)] == [("a", png(1)), ("b", png(2))]


# --------------------------------------------------------------------------------------------------- augmentation


def test_mean_and_spread_are_exact_and_the_same_in_any_order() -> None:
    pixels = noise(50)
    mean, std = colour_statistics(pixels)
    flat = pixels.reshape(-1, 3).double() / 255
    assert mean == pytest.approx(flat.mean(0).tolist())
    assert std == pytest.approx(flat.std(0, correction=0).tolist())
    assert colour_statistics(pixels.flip(0)) == (mean, std)
    assert min(colour_statistics(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))[1]) > 0


def test_i11_a_batch_is_normalised_as_each_of_its_images_would_be() -> None:
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    pixels = noise(5)
    together = normalise(pixels, mean, std)
    assert together.shape == (5, 3, 8, 8)
    for k in range(5):
        for channel in range(3):
            wanted = (pixels[k, :, :, channel] / 255 - mean[channel]) / std[channel]
            torch.testing.assert_close(together[k, channel], wanted)


def augmented(
    pixels: torch.Tensor, *, crop: bool = False, flip: bool = False, colour: bool = False, seed: int = 0
) -> torch.Tensor:
    """B×S×S×3 levels, 0 … 255, after augmentation; a shifted-in border is the mean, here 127.5."""
    lot = torch.Generator().manual_seed(seed)
    x = Augmentation(crop=crop, flip=flip, colour=colour)(pixels, *HALF, lot)
    return (x * 0.25 + 0.5).mul(255).permute(0, 2, 3, 1)


def test_without_augmentation_pixels_stay() -> None:
    torch.testing.assert_close(augmented(noise(4)), noise(4).float())


def test_a_crop_is_a_shift_by_at_most_an_eighth_and_what_comes_in_is_the_mean() -> None:
    pixels = noise(64, 16)
    shifted = augmented(pixels, crop=True)
    seen = set()
    for before, after in zip(pixels.float(), shifted, strict=True):
        fits = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                wanted = torch.full((16, 16, 3), 127.5)
                rows, columns = slice(max(0, -dy), 16 - max(0, dy)), slice(max(0, -dx), 16 - max(0, dx))
                wanted[rows, columns] = before[max(0, dy) : 16 + min(0, dy), max(0, dx) : 16 + min(0, dx)]
                if torch.allclose(wanted, after, atol=1e-2):
                    fits.append((dy, dx))
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 15  # each image by its own lot


def test_about_half_of_the_images_are_mirrored_and_only_if_asked() -> None:
    pixels = noise(200)
    flipped = augmented(pixels, flip=True)
    mirrored = [torch.allclose(a, b.flip(1).float(), atol=1e-2) for a, b in zip(flipped, pixels, strict=True)]
    as_it_was = [torch.allclose(a, b.float(), atol=1e-2) for a, b in zip(flipped, pixels, strict=True)]
    assert all(a != b for a, b in zip(mirrored, as_it_was, strict=True))
    assert 70 < sum(mirrored) < 130
    assert torch.allclose(augmented(pixels, crop=True).mean(), augmented(pixels, crop=True).flip(2).mean())


def test_colours_change_by_brightness_or_contrast_or_not_at_all_and_stay_levels() -> None:
    pixels = (noise(300) // 4 + 96).to(torch.uint8)  # 96 … 159: nothing is clipped
    found = augmented(pixels, colour=True)
    kinds = {"none": 0, "brightness": 0, "contrast": 0}
    for before, after in zip(pixels.float(), found, strict=True):
        change = after - before
        if change.abs().max() < 0.01:
            kinds["none"] += 1
        elif (change - change.mean()).abs().max() < 0.01:
            kinds["brightness"] += 1
            assert change.abs().max() <= 63.01
        else:
            kinds["contrast"] += 1
            mean = before.mean((0, 1))
            factor = ((after - mean) * (before - mean)).sum() / (before - mean).square().sum()
            assert 0.19 < float(factor) < 1.81
            torch.testing.assert_close(after, mean + (before - mean) * factor, atol=0.05, rtol=0)
    assert all(60 < count < 140 for count in kinds.values())
    wild = augmented(noise(300), colour=True)
    assert wild.min() > -0.01
    assert wild.max() < 255.01


def test_the_same_lot_gives_the_same_images() -> None:
    first, second, other = (augmented(noise(8), crop=True, flip=True, colour=True, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


# ---------------------------------------------------------------------------------------------------------- roles


def test_roles_are_given_by_the_same_shares_of_every_class() -> None:
    labels = torch.arange(10).repeat(50)
    roles = roles_on_arrival(labels, gate=0.2, holdout=0.1, generator=torch.Generator().manual_seed(0))
    for label in range(10):
        assert [int((roles[labels == label] == role).sum()) for role in (TRAINING, HOLDOUT, GATE)] == [35, 5, 10]


@pytest.mark.parametrize(("images", "expected"), [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (4, [2, 1, 1])])
def test_a_small_class_keeps_an_image_to_train_on(images: int, expected: list[int]) -> None:
    roles = roles_on_arrival(torch.zeros(images), gate=0.2, holdout=0.1, generator=torch.Generator().manual_seed(0))
    assert [int((roles == role).sum()) for role in (TRAINING, HOLDOUT, GATE)] == expected
