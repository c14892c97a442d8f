"""Data as users have it: every kind of image, broken files among good ones, files of other kinds, names that are alike.

All of it through the path of training: folders and Parquet, `lifelist train` and `lifelist base`.
"""

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from parts import encoded
from parts_operator import bird, files, serving
from parts_rollout import pictures, settings
from parts_training import TINY, noise
from PIL import Image

from lifelist.client.blocking import Client
from lifelist.deploy import base, examples
from lifelist.deploy.cli import main
from lifelist.deploy.store import Store
from lifelist.exporter.errors import BadInput, BadSetting, Refused
from lifelist.training import experiment
from lifelist.training.data import Dataset, read
from lifelist.training.loop import Event
from lifelist.training.names import alike
from lifelist.training.sources import counted

ORANGE = (200, 120, 40)
SEEN = {"grey": (77, 77, 77), "transparent": (255, 255, 255)}  # where it is not orange


def of_kind(kind: str) -> bytes:
    """An image file of one colour, whose top half is black once it stands upright."""
    upright = np.full((40, 40, 3), ORANGE, np.uint8)
    upright[:20] = 0
    image = Image.fromarray(upright)
    if kind == "grey":
        return encoded(Image.fromarray(np.repeat([0, 77], 20).astype(np.uint8)[:, None].repeat(40, 1)))
    if kind == "16-bit":
        deep = np.repeat([0, ORANGE[0] * 257], 20).astype(np.uint16)[:, None].repeat(40, 1)
        return encoded(Image.fromarray(deep))
    if kind == "RGBA":
        image.putalpha(255)
    if kind == "transparent":
        image.putalpha(Image.fromarray(np.repeat([255, 0], 20).astype(np.uint8)[:, None].repeat(40, 1)))
    if kind == "palette":
        return encoded(image.quantize(4))
    if kind == "CMYK":
        return encoded(image.convert("CMYK"), "JPEG", quality=95)
    if kind == "EXIF-rotated":  # lies on its side, and says so
        lying = Image.fromarray(np.rot90(upright).copy())
        lying.getexif()[0x0112] = 6
        return encoded(lying, "JPEG", quality=95, exif=lying.getexif())
    if kind == "tiny":
        return encoded(
            Image.fromarray(np.array([[[0, 0, 0]], [ORANGE]], np.uint8)).crop((0, 0, 1, 2)).resize((2, 2), 0)
        )
    if kind == "huge":
        return encoded(image.resize((6000, 4000), Image.Resampling.NEAREST))
    return encoded(image)


KINDS = ("plain", "grey", "16-bit", "RGBA", "transparent", "palette", "CMYK", "EXIF-rotated", "tiny", "huge")


def png(seed: int, size: int = 8) -> bytes:
    """An image file unlike any other."""
    return encoded(noise(1, size, seed)[0].numpy())


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def parquet(file: Path, images: list[bytes | None], labels: list[str]) -> Path:
    pyarrow.parquet.write_table(
        pyarrow.table({"image": pyarrow.array(images, pyarrow.binary()), "label": labels}), file
    )
    return file


def as_folder(place: Path, images: dict[str, bytes]) -> Dataset:
    return read(write(place, {f"{kind}/1.png": content for kind, content in images.items()}), TINY)


def as_parquet(place: Path, images: dict[str, bytes]) -> Dataset:
    return read(parquet(place / "a.parquet", [*images.values()], [*images]), TINY)


@pytest.mark.parametrize("through", [as_folder, as_parquet])
def test_every_kind_of_image_is_trained_on_upright_and_in_its_colours(
    tmp_path: Path, through: Callable[[Path, dict[str, bytes]], Dataset]
) -> None:
    found = through(tmp_path, {kind: of_kind(kind) for kind in KINDS})
    assert sorted(found.names) == sorted(KINDS)
    assert not found.screening.broken
    for kind in KINDS:
        (pixels,) = found.images.pixels[found.images.labels == found.names.index(kind)].int()
        wanted = torch.tensor(SEEN.get(kind, (ORANGE[0],) * 3 if kind == "16-bit" else ORANGE))
        top, bottom = pixels[0, 4], pixels[-1, 4]
        assert top.max() <= 25, kind
        assert (bottom - wanted).abs().max() <= 25, kind


# --------------------------------------------------------------------------------------------------- what is left out


@pytest.fixture(scope="module")
def ten_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 images of two classes, the 5,001st of which is cut off."""
    folder = tmp_path_factory.mktemp("ten thousand")
    images = noise(10_000, 8).numpy()
    for k, pixels in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png", compress_level=1)
        place = folder / f"class {k // 5000}" / f"{k:05d}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(file.getvalue()[:60] if k == 5000 else file.getvalue())
    return folder


def test_of_ten_thousand_images_one_is_broken_which_is_named_and_the_rest_is_used(
    ten_thousand: Path, tmp_path: Path
) -> None:
    found = read(ten_thousand, TINY, report=tmp_path / "left-out.txt")
    assert len(found.images) == len(found.images.pixels) == 9_999
    assert torch.bincount(found.images.labels).tolist() == [5000, 4999]
    broken = ten_thousand / "class 1" / "05000.png"
    ((what, message),) = found.screening.warnings()
    assert what == "data.broken-left-out"
    assert message.startswith(f"1 image is left out, cannot be used: {broken}: the image is broken or cut off")
    assert message.endswith(f"all are listed in {tmp_path / 'left-out.txt'}")
    title, line = (tmp_path / "left-out.txt").read_text().splitlines()
    assert title == "# 1 images that cannot be used"
    assert line.startswith(f"{broken}: the image is broken")


def test_strict_stops_at_the_broken_one_and_names_it(ten_thousand: Path) -> None:
    with pytest.raises(BadInput, match=r"class 1/05000\.png: the image is broken or cut off"):
        read(ten_thousand, TINY, strict=True)


def test_a_file_that_cannot_be_opened_is_left_out_with_the_systems_reason(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": png(1), "a/3.png": png(3)})
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "nowhere.png")
    found = read(tmp_path, TINY)
    assert len(found.images) == 2
    assert found.screening.broken == [f"{tmp_path}/a/2.png: cannot be read: No such file or directory"]


def test_an_image_over_the_limit_of_a_file_or_of_pixels_is_left_out_and_told(tmp_path: Path) -> None:
    bomb = encoded(Image.new("1", (7200, 7200)))
    write(tmp_path, {"a/1.png": png(1), "a/2.png": png(2) + bytes(11 * 2**20), "a/3.png": bomb, "a/4.png": png(4)})
    found = read(tmp_path, TINY)
    assert len(found.images) == 2
    large, wide = found.screening.broken
    assert "2.png: the image has 11,5" in large
    assert "3.png: the image is 7200×7200" in wide


def test_a_row_of_parquet_without_bytes_is_left_out_by_its_number(tmp_path: Path) -> None:
    found = read(parquet(tmp_path / "a.parquet", [png(1), None, png(3), b"?"], ["a"] * 2 + ["b"] * 2), TINY)
    assert found.images.labels.tolist() == [0, 1]
    empty, broken = found.screening.broken
    assert empty.startswith(f"{tmp_path}/a.parquet row 1: has no image bytes in column 'image'")
    assert broken.startswith(f"{tmp_path}/a.parquet row 3: not an image that we read")


def test_a_class_without_a_sound_image_is_an_error_even_if_most_images_are_sound(tmp_path: Path) -> None:
    sound = {f"a/{k}.png": png(k) for k in range(9)}
    write(tmp_path, sound | {"b/1.png": b"?", "b/2.png": png(1)})  # the second is a copy of one of a
    report = tmp_path / "report" / "left-out.txt"
    with pytest.raises(BadInput, match=rf"used of class 'b': .*/b/1\.png: not an image.*listed in {report}"):
        read(tmp_path, TINY, report=report)
    assert [line for line in report.read_text().splitlines() if line[0] == "#"] == [
        "# 1 images that cannot be used",
        "# 1 copies of other images",
    ]


def test_a_class_of_copies_only_does_not_vanish_silently(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": png(1), "a/2.png": png(2), "b/3.png": png(1)})
    with pytest.raises(BadInput, match=r"no image can be used of class 'b': .*/b/3\.png \(b\) is .*/a/1\.png \(a\)"):
        read(tmp_path, TINY)


def test_more_than_half_broken_is_another_folder_than_was_thought(tmp_path: Path) -> None:
    write(tmp_path, {f"a/{k}.png": png(k) for k in range(3)} | {f"a/broken {k}.png": b"?" for k in range(3)})
    assert len(read(tmp_path, TINY).images) == 3  # half
    (tmp_path / "a" / "broken 3.png").write_bytes(b"?")
    with pytest.raises(BadInput, match=r"4 of 7 images cannot be used, which is more than half: .*; and 1 more"):
        read(tmp_path, TINY)


def test_files_of_other_kinds_and_in_no_class_are_named_and_hidden_ones_are_not(tmp_path: Path) -> None:
    others = ("a/x.heic", "a/y.heic", "a/notes.txt", "stray.png", "LICENSE", "a/.DS_Store", ".git/config")
    write(tmp_path, {"a/1.png": png(1)} | dict.fromkeys(others, b"-"))
    found = read(tmp_path, TINY, report=tmp_path.with_suffix(".left"))
    ((what, message),) = found.screening.warnings()
    assert what == "data.files-ignored"
    assert message.startswith("files that are no images of a class are not read, by suffix: 2 .heic")
    assert {str(tmp_path / name) for name in others[:5]} == {
        line for line in tmp_path.with_suffix(".left").read_text().splitlines() if line[0] != "#"
    }


def test_folders_of_classes_without_an_image_are_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": png(1), "odd/notes.txt": b"-", "b/2.png": png(2)})
    (tmp_path / "empty").mkdir()
    report = tmp_path.with_suffix(".left")
    found = read(tmp_path, TINY, report=report)
    assert found.names == ("a", "b")
    told = dict(found.screening.warnings())
    assert told.keys() == {"data.files-ignored", "data.folders-empty"}
    assert told["data.folders-empty"].startswith(
        f"2 folders of classes without an image left out: {tmp_path}/empty; {tmp_path}/odd; all are listed in"
    )
    assert report.read_text().splitlines()[-3:] == [
        "# 2 folders of classes without an image", f"{tmp_path}/empty", f"{tmp_path}/odd"
    ]  # fmt: skip
    with pytest.raises(BadInput, match=rf"no image of \.jpg, .* in {tmp_path}/empty; {tmp_path}/odd; add some"):
        read(tmp_path, TINY, strict=True)


def test_a_base_is_made_beside_the_empty_folder_of_a_class(tmp_path: Path) -> None:
    (odd(tmp_path / "data") / "odd").mkdir()
    told: list[str] = []
    made = base.make_base(
        settings(tmp_path / "home"), tmp_path / "data", lambda kind, facts: told.append(facts.get("message", ""))
    )
    assert [entry.name for entry in made.classes] == ["green", "red"]
    assert any(message.startswith("1 folder of a class without an image left out: ") for message in told)


def test_data_with_nothing_to_tell_leaves_no_report_and_removes_an_old_one(tmp_path: Path) -> None:
    report = tmp_path / "left-out.txt"
    report.write_text("of an earlier try")
    assert list(read(write(tmp_path / "data", {"a/1.png": png(1)}), TINY, report=report).screening.warnings()) == []
    assert not report.exists()


def test_memory_that_runs_out_is_no_fault_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_it(*arguments: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", open_it)
    with pytest.raises(MemoryError):
        read(write(tmp_path, {"a/1.png": png(1)}), TINY)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_classes_are_counted_and_checked_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "folder":
        names = ("train/a/1.png", "train/a/2.png", "train/b/3.png", "test/a/4.png")
        write(tmp_path, dict.fromkeys(names, b"no image"))
        monkeypatch.setattr(Path, "read_bytes", None)
    else:
        for split, labels in (("train", ["a", "a", "b"]), ("test", ["a"])):
            parquet(tmp_path / f"{split}.parquet", [b"no image"] * len(labels), labels)
    assert counted(tmp_path) == {"a": 2, "b": 1}
    with pytest.raises(BadSetting, match="memory_total 1 is too small for method 'bic' with 2 classes"):
        read(tmp_path, replace(TINY, memory_total=1))


# -------------------------------------------------------------------------------------------------- the command line


def odd(folder: Path) -> Path:
    """Two classes, with a broken image, and one that stands in both."""
    for name in ("red", "green"):
        write(folder, {f"{name}/{file}": content for file, content in pictures(name, 12)})
    return write(folder, {"red/broken.png": b"?", "red/green.png": pictures("green", 1)[0][1]})


SMALL = ("--training.network=small", "--training.image_size=8", "--training.epochs=1", "--training.batch_size=4")


@pytest.mark.parametrize("command", ["train {} --classes-per-increment 2", "base {}"])
def test_the_command_tells_what_it_leaves_out_and_where_all_of_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    odd(tmp_path / "data")
    assert main([*command.format("data").split(), "--home", "home", *SMALL]) == 0
    told = capsys.readouterr().err
    report = (tmp_path / "home" / "left-out.txt").read_text()
    assert "warning: 1 image is left out, cannot be used: data/red/broken.png: not an image" in told
    assert "warning: 1 image is left out, copies of others: data/red/green.png (red) is data/green/" in told
    assert f"all are listed in {tmp_path}/home/left-out.txt" in told
    assert re.findall(r"^data/red/(\w+)", report, re.M) == ["broken", "green"]


@pytest.mark.parametrize("command", ["train", "base"])
def test_with_strict_the_command_stops_and_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    odd(tmp_path / "data")
    assert main([command, "data", "--strict", "--home", "home", *SMALL]) != 0
    assert "data/red/broken.png: not an image that we read" in capsys.readouterr().err
    (tmp_path / "data" / "red" / "broken.png").unlink()
    assert main([command, "data", "--strict", "--home", "home", *SMALL]) == 0  # and is mended


def test_what_a_base_took_before_it_was_stopped_is_dropped_if_the_data_have_it_no_more(tmp_path: Path) -> None:
    home, data = settings(tmp_path / "home"), odd(tmp_path / "data")
    with pytest.raises(BadInput, match="broken"):
        base.make_base(home, data, strict=True)  # green is taken before
    (data / "red" / "broken.png").unlink()
    (data / "red" / "green.png").unlink()
    (data / "green").rename(data / "emerald")
    (data / "emerald" / "green-0.png").unlink()
    told: list[str] = []
    made = base.make_base(home, data, lambda kind, facts: told.append(facts.get("message", "")), strict=True)
    assert [entry.name for entry in made.classes] == ["emerald", "red"]
    assert f"images of an earlier try that {data} has no more are dropped: 1" in told


def test_a_class_that_is_taken_out_after_the_gate_refused_a_base_is_not_learned(tmp_path: Path) -> None:
    data = write(odd(tmp_path / "data"), {f"blue/{file}": content for file, content in pictures("blue", 12)})
    with pytest.raises(Refused):
        base.make_base(settings(tmp_path / "home", gate=[{"check": "new_class_accuracy", "limit": 1.01}]), data)
    store = Store(settings(tmp_path / "home").database_url)
    before = {example.sha256: example.role for example in examples.kept(store)}
    shutil.rmtree(data / "blue")
    write(data, {"green/0.png": png(1)})  # first of its class now
    told: list[str] = []
    made = base.make_base(settings(tmp_path / "home"), data, lambda kind, facts: told.append(facts.get("message", "")))
    assert [entry.name for entry in made.classes] == ["green", "red"]
    assert f"images of an earlier try that {data} has no more are dropped: 12" in told
    after = {example.sha256: example.role for example in examples.kept(store)}
    assert {sha256: before[sha256] for sha256 in after if sha256 in before}.items() <= after.items()


def test_a_base_without_a_sound_image_of_some_class_trains_nothing(tmp_path: Path) -> None:
    write(odd(tmp_path / "data"), {"blue/1.png": b"?"})
    with pytest.raises(BadInput, match=r"no image can be used of class 'blue': .*blue/1\.png"):
        base.make_base(settings(tmp_path / "home"), tmp_path / "data")


# ---------------------------------------------------------------------------------------------------- names alike


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Great_Tit", "great tit"),
        ("great-tit", "greattit"),
        ("Müller", "Muller"),
        ("cafe\u0301", "café"),
        ("ＧＲＥＡＴ　ＴＩＴ", "great tit"),
        ("ﬁnch", "Finch"),
        ("Straße", "STRASSE"),
        ("great\u2013tit", "great tit"),
        ("class_1", "Class 1"),
        ("1_2", "1 - 2"),
        ("7 a", "7a"),
    ],
)
def test_names_that_people_take_for_one_are_alike(one: str, other: str) -> None:
    assert alike([one, "wren", other]) == [(one, other)]


@pytest.mark.parametrize(
    ("one", "other"), [("great tit", "great tits"), ("1-2", "12"), ("class 1 2", "class 12"), ("a", "b"), ("-", "wren")]
)
def test_names_that_differ_in_more_are_not(one: str, other: str) -> None:
    assert alike([one, other]) == []


def test_classes_with_names_alike_are_told_when_they_are_read_and_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        """Before anything is trained."""

    def stop(*given: object) -> None:
        raise Stopped

    monkeypatch.setattr(experiment.increment, "run", stop)
    names = ("Great_Tit", "great tit", "wren")
    folder = write(tmp_path, {f"{name}/{k}.png": png(10 * i + k) for i, name in enumerate(names) for k in range(5)})
    told: list[Event] = []
    with pytest.raises(Stopped):
        experiment.run_experiment(folder, replace(TINY, batch_size=0), classes_per_increment=3, on_event=told.append)
    (warning,) = [event for event in told if event.get("what") == "data.names-alike"]
    assert warning["message"].startswith("classes 'Great_Tit' and 'great tit' differ only in case")
    assert read(folder, TINY).names == names


def test_a_post_under_a_name_that_is_like_another_is_accepted_and_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "home") as server, Client(server.url) as client:
        assert client.add_examples("wren", files(3, 3))["warnings"] == []
        added = client.add_examples("Wren_", files(4, 3))
        assert (added["accepted"], added["class"]["id"]) == (3, 5)  # a class of its own
        (warning,) = added["warnings"]
        assert "'wren' and 'Wren_' differ only in case" in warning
        write(tmp_path, {"x.png": bird(4, 50), "copy.png": files(3, 1)[0][1]})
        images = [str(tmp_path / "x.png"), str(tmp_path / "copy.png")]
        assert main(["examples", "add", *images, "--class", "WREN", "--port", server.port]) == 0
    told = capsys.readouterr().out
    assert "warning: classes 'wren' and 'Wren_' and 'WREN' differ only in case" in told
    assert "copy.png: the same image is already an example of class 'wren'" in told
