"""Files and folders of images as people have them: right pixels, or one clear line."""

import io
import os
import shutil
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sup_tickets.data.folders import read_folder
from sup_tickets.data.imagenet import _to_test, _to_train
from sup_tickets.data.photos import centre_photo, random_photo
from sup_tickets.data.pixels import open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
BLACK, GREY = (0, 0, 0), (128, 128, 128)


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def row(values, mode, form="PNG", **options):
    """An image of one row."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return saved(image, form, **options)


def of_array(values, dtype, form="PNG"):
    return saved(Image.fromarray(np.asarray([values], dtype)), form)


def palette(transparency=None):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    options = {} if transparency is None else {"transparency": transparency}
    return saved(image, **options)


def grey(*values):
    return [(v, v, v) for v in values]


# 16 bits: 0, 1000, 2000 and white are 0, 3.89, 7.78 and 255 of 255.
SIXTEEN, EIGHT = [0, 1000, 2000, 32768, 65535], grey(0, 4, 8, 128, 255)

PIXELS = {
    "RGB": (row([RED, GREEN], "RGB"), [RED, GREEN]),
    "grey": (row([0, 7, 255], "L"), grey(0, 7, 255)),
    "one bit": (row([0, 1], "1"), grey(0, 255)),
    "one bit TIFF": (row([0, 1], "1", "TIFF"), grey(0, 255)),
    "16-bit PNG": (of_array(SIXTEEN, np.uint16), EIGHT),
    "16-bit TIFF": (of_array(SIXTEEN, np.uint16, "TIFF"), EIGHT),
    "16-bit big-endian TIFF": (of_array(SIXTEEN, ">u2", "TIFF"), EIGHT),
    "16-bit PGM": (of_array(SIXTEEN, np.uint16, "PPM"), EIGHT),
    "PGM of 10 bits": (b"P2 3 1 1023 0 512 1023", grey(0, 128, 255)),
    "16-bit PNG with a clear value": (
        saved(Image.fromarray(np.asarray([[0, 1000]], np.uint16)), transparency=1000),
        grey(0, 255),
    ),
    "GIF": (row([RED, GREEN], "RGB", "GIF"), [RED, GREEN]),
    "palette": (palette(), [RED, GREEN, BLUE]),
    "palette with one clear": (palette(transparency=1), [RED, WHITE, BLUE]),
    "palette with alphas": (palette(transparency=bytes([0, 255, 0])), [
        WHITE, GREEN, WHITE]),
    "grey with alpha": (row([(0, 255), (0, 0), (0, 127)], "LA"), grey(0, 255, 128)),
    "RGBA": (
        row([(*RED, 255), (*RED, 0), (0, 0, 0, 127)], "RGBA"),
        [RED, WHITE, GREY],
    ),
    "RGBA WebP": (row([(*BLACK, 255), (*RED, 0)], "RGBA", "WEBP", lossless=True), [
        BLACK, WHITE]),
    "grey with a clear value": (row([0, 9], "L", transparency=9), grey(0, 255)),
    "RGB with a clear colour": (row([RED, GREEN], "RGB", transparency=RED), [
        WHITE, GREEN]),
    "CMYK": (
        row([(0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)], "CMYK", "TIFF"),
        [WHITE, RED, BLACK],
    ),
    "BMP": (row([RED, GREEN], "RGB", "BMP"), [RED, GREEN]),
    "first of two pages": (
        saved(
            Image.new("RGB", (1, 1), RED),
            "TIFF",
            save_all=True,
            append_images=[Image.new("RGB", (2, 2), BLUE)],
        ),
        [RED],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PIXELS)
def test_what_a_file_becomes(kind):
    data, expected = PIXELS[kind]
    found = open_image(data)
    assert (found.mode, found.height) == ("RGB", 1)
    np.testing.assert_array_equal(np.asarray(found)[0], expected)


@pytest.mark.parametrize("color", [RED, BLACK, WHITE])
def test_an_adobe_jpeg_of_four_colours(color):
    data = saved(Image.new("RGB", (8, 8), color).convert("CMYK"), "JPEG", quality=100)
    np.testing.assert_allclose(np.asarray(open_image(data))[0, 0], color, atol=3)


def test_sixteen_bits_of_three_colours():
    # Pillow has no such mode: it takes the upper eight bits itself.
    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    # 1 x 1 pixel of 16 bits, RGB: (0x1234, 0x80ff, 0xffff).
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = b"\0" + struct.pack(">HHH", 0x1234, 0x80FF, 0xFFFF)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(pixel)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(np.asarray(open_image(data))[0, 0], [0x12, 0x80, 255])


# How a camera that was held as the number says stores the upright [[1, 2], [3, 4]].
STORED = {
    1: [[1, 2], [3, 4]], 2: [[2, 1], [4, 3]], 3: [[4, 3], [2, 1]], 4: [[3, 4], [1, 2]],
    5: [[1, 3], [2, 4]], 6: [[2, 4], [1, 3]], 7: [[4, 2], [3, 1]], 8: [[3, 1], [4, 2]],
    9: [[1, 2], [3, 4]],
}  # fmt: skip


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_orientation_that_a_camera_noted(orientation, dtype):
    scale = 1 if dtype == np.uint8 else 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.asarray(STORED[orientation], dtype) * dtype(scale))
    found = open_image(saved(image, exif=exif))
    np.testing.assert_array_equal(np.asarray(found)[..., 0], [[1, 2], [3, 4]])


def test_broken_notes_of_a_camera_do_no_harm():
    image = Image.new("RGB", (1, 1), RED)
    found = open_image(saved(image, exif=b"Exif\0\0no TIFF at all"))
    np.testing.assert_array_equal(np.asarray(found)[0, 0], RED)


NOISE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
)
REFUSED = {
    "empty": (b"", "it is empty"),
    "text": (b"<html>404</html>", "it is no image"),
    "truncated PNG": (saved(NOISE)[:-200], "truncated"),
    "truncated JPEG": (saved(NOISE, "JPEG")[:-200], "truncated"),
    "truncated TIFF": (saved(NOISE, "TIFF")[:600], ""),
    "truncated BMP": (saved(NOISE, "BMP")[:600], "truncated"),
    "header alone": (saved(NOISE)[:20], ""),
    "flipped bits": (saved(NOISE)[:100] + b"\xff" * 50 + saved(NOISE)[150:], ""),
    "floating point": (of_array([0, 0.5, 1], np.float32, "TIFF"), "floating point"),
    "32 bits": (of_array([0, 70000], np.int32, "TIFF"), "32-bit integers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_with_a_name(kind, tmp_path):
    data, message = REFUSED[kind]
    path = tmp_path / "a cat.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"image .*a cat\.jpg: .*{message}") as told:
        open_image(path)
    assert "\n" not in str(told.value)
    record = {"image": data, "label": 3, "file_name": b"n1/cat.JPEG"}
    rng = np.random.default_rng(0)
    for read in (
        partial(_to_train, rng=rng, size=8),
        partial(_to_test, size=8, shorter_side=10),
    ):
        with pytest.raises(ValueError, match=rf"image n1/cat\.JPEG: .*{message}"):
            read(record)
        del record["file_name"]
        with pytest.raises(ValueError, match="image with label 3: "):
            read(record)
        record["file_name"] = "n1/cat.JPEG"
    with pytest.raises(ValueError, match=f"image given as bytes: .*{message}"):
        random_photo(data, rng, size=8)


def test_photographs_have_the_same_pixels():
    white = saved(Image.fromarray(np.full((20, 20), 65535, np.uint16)))
    clear = saved(Image.new("RGBA", (20, 20)))
    for data in (white, clear):
        for found in (
            centre_photo(data, size=8, shorter_side=10),
            random_photo(data, np.random.default_rng(0), size=8),
        ):
            np.testing.assert_array_equal(found, np.full((8, 8, 3), 255))


# --- Folders --------------------------------------------------------------------------


def picture(value):
    return saved(Image.new("RGB", (2, 2), (value,) * 3))


@pytest.fixture
def folder(tmp_path):
    """Two classes, "cat" of value 1 and "dog" of value 2, in train and val."""
    for part in ("train", "val"):
        for value, name in ((1, "cat"), (2, "dog")):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            (place / "a.png").write_bytes(picture(value))
    return tmp_path


def check_unchanged(folder, more=()):
    """Cat is 0 and dog is 1; ``more`` are values of further training images."""
    data, classes = read_folder(folder)
    assert classes == ("cat", "dog")
    values = data.train.images[:, 0, 0, 0]
    assert sorted(values) == sorted([1, 2, *more])
    np.testing.assert_array_equal(data.train.labels, (values % 2 == 0).astype(int))
    assert data.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints", "__MACOSX", ".DS_Store", ".git", "__pycache__"),
        *("@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"),
    ],
)
def test_side_folders_are_no_classes(folder, name):
    for place in ("train", "train/cat", "val", "val/dog"):
        (folder / place / name).mkdir()
        (folder / place / name / "x.png").write_bytes(picture(9))
    check_unchanged(folder)


@pytest.mark.parametrize(
    "name", ["Thumbs.db", ".DS_Store", "._a.png", "desktop.ini", "boxes.txt", ".x.jpg"]
)
def test_side_files_are_no_images(folder, name):
    for place in ("train", "train/cat", "val", "val/dog"):
        (folder / place / name).write_bytes(b"whatever")
    check_unchanged(folder)


def test_endings_in_any_case_and_deeper_folders(folder):
    for i, name in enumerate(("B.PNG", "c.Png", "deep/er/d.png", "e.JPEG", "f.Tiff")):
        path = folder / "train/cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(2 * i + 3))  # by its bytes, whatever the ending says
    (folder / "train/cat/a folder.jpg").mkdir()
    check_unchanged(folder, more=(3, 5, 7, 9, 11))


def test_an_image_of_the_same_size_is_not_of_the_cache(folder):
    check_unchanged(folder)  # and kept
    path = folder / "train/cat/a.png"
    before = path.read_bytes()
    path.write_bytes(picture(5))
    assert len(path.read_bytes()) == len(before)
    assert read_folder(folder)[0].train.images[0, 0, 0].tolist() == [5, 5, 5]


def test_links_are_followed(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "b.png").write_bytes(picture(4))
    (other / "more").mkdir()
    (other / "more/c.png").write_bytes(picture(6))
    (folder / "train/dog/b.png").symlink_to(other / "b.png")
    (folder / "train/dog/more").symlink_to(other / "more")
    check_unchanged(folder, more=(4, 6))
    (folder / "train/dog/circle").symlink_to(folder / "train/dog")
    check_unchanged(folder, more=(4, 6))
    shutil.move(folder / "train/dog", other / "dog")
    (folder / "train/dog").symlink_to(other / "dog")
    (other / "dog/circle").unlink()
    check_unchanged(folder, more=(4, 6))


def write(text):
    return lambda folder: (folder / "val/val_annotations.txt").write_bytes(text)


def annotated(folder):
    """Val as two images "cat.png" and "dog.png" with a list."""
    (folder / "val/images").mkdir()
    for name in ("cat", "dog"):
        place = folder / "val" / name
        (place / "a.png").rename(folder / f"val/images/{name}.png")
        place.rmdir()
    write(b"cat.png\tcat\t0\t0\ndog.png\tdog\n")(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"dog.png\tdog\ncat.png\tcat",
        b"\xef\xbb\xbfcat.png\tcat\r\n\r\ndog.png\tdog\r\n",
        b"\n  \ncat.png\tcat\t\t\ndog.png\tdog\t1\n\n",
    ],
)
def test_lists_of_labels(folder, text):
    annotated(folder)
    for name in (".x.png", "Thumbs.db"):
        (folder / "val/images" / name).write_bytes(b"")
    write(text)(folder)
    check_unchanged(folder)


LISTS = {
    b"cat.png cat\ndog.png\tdog": "line 1 of .*annotations.txt must be FILE, a tab",
    b"cat.png\tcat\ndog.png": r"line 2 .* a tab and CLASS, got 'dog.png'",
    b"cat.png\tcat\n\tdog": "line 2 .* must be",
    b"cat.png\tcat\ndog.png\t": "line 2 .* must be",
    b"file\tclass\ncat.png\tcat\ndog.png\tdog": "line 1 .* train lacks: 'class'",
    b"cat.png\tcat\ndog.png\tDog": "line 2 .* train lacks: 'Dog'",
    b"cat.png\tcat\ndog.png\tdog\nemu.png\tdog": "no image .*images/emu.png",
    b"cat.png\tcat\n../dog.png\tdog": "no image .*dog.png",
    b"cat.png\tcat\ncat.png\tcat\ndog.png\tdog": "'cat.png' a second time",
    b"cat.png\tcat\ncat.png\tdog\ndog.png\tdog": "'cat.png' a second time",
    b"cat.png\tcat": "dog.png has no line in .*annotations.txt",
    b"": "no line in .*annotations.txt",
    b"\xff\xfe\0": "cannot read .*val_annotations.txt",
}


@pytest.mark.parametrize("text", LISTS)
def test_malformed_lists_of_labels(folder, text):
    annotated(folder)
    write(text)(folder)
    with pytest.raises(ValueError, match=LISTS[text]) as told:
        read_folder(folder)
    assert "\n" not in str(told.value)


def spoil(name, data=b""):
    return lambda folder: (folder / name).write_bytes(data)


def make_folder(name):
    return lambda folder: (folder / name).mkdir()


FOLDERS = {
    "an empty class": (make_folder("train/bee"), "train/bee has no images"),
    "a class of lists": (
        lambda f: (f / "train/bee").mkdir() or (f / "train/bee/x.txt").touch(),
        "train/bee has no images.* end in .*png",
    ),
    "hidden images alone": (
        lambda f: (f / "train/dog/a.png").rename(f / "train/dog/.a.png"),
        "train/dog has no images",
    ),
    "an image without a class": (spoil("train/x.JPG"), "train/x.JPG lies in no folder"),
    "the same in val": (spoil("val/x.png"), "val/x.png lies in no folder of a class"),
    "a class of val alone": (make_folder("val/emu"), r"val has .* lacks: \['emu'\]"),
    "an empty file": (spoil("train/dog/b.png"), "train/dog/b.png: it is empty"),
    "a truncated file": (
        spoil("val/dog/b.jpg", saved(NOISE, "JPEG")[:-200]),
        "val/dog/b.jpg: .*truncated",
    ),
    "a file of text": (spoil("train/cat/b.png", b"hello"), "train/cat/b.png: .*no im"),
    "a link to nothing": (
        lambda f: (f / "train/cat/b.png").symlink_to("nowhere"),
        "train/cat/b.png: No such file",
    ),
    "another size": (
        spoil("val/cat/b.png", saved(Image.new("L", (2, 3)))),
        r"val/cat/b.png has \(2, 3\)",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_is_wrong_with_a_folder_has_a_name(folder, kind):
    change, message = FOLDERS[kind]
    change(folder)
    with pytest.raises(ValueError, match=message) as told:
        read_folder(folder)
    assert "\n" not in str(told.value)


def test_a_class_may_be_missing_from_val(folder):
    shutil.rmtree(folder / "val/cat")
    data, classes = read_folder(folder)
    assert (classes, data.test.labels.tolist()) == (("cat", "dog"), [1])
    (folder / "val/cat").mkdir()
    assert read_folder(folder)[0].test.labels.tolist() == [1]
    shutil.rmtree(folder / "val/dog")
    with pytest.raises(FileNotFoundError, match="val has no images"):
        read_folder(folder)


def test_a_folder_that_may_not_be_read(folder, monkeypatch):
    def walk(place, onerror, followlinks):
        assert followlinks
        onerror(PermissionError(13, "Permission denied", f"{place}/locked"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(ValueError, match=r"folder .*cat/locked: Permission denied"):
        read_folder(folder)


def test_names_that_are_not_utf_8(folder):
    try:
        Path(os.fsdecode(bytes(folder / "train/cat") + b"/\xe9t\xe9.png")).write_bytes(
            picture(3)
        )
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    check_unchanged(folder, more=(3,))
