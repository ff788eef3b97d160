"""Folders of images and labels: every kind of file, every way they can be wrong."""

import pickle

import numpy as np
import pytest
from PIL import Image

from segjax.data import folder, images
from segjax.data.metadata import Classes
from segjax.types import InputError

CLASSES = '{"classes": ["a", "b", "c"], "colors": [[255, 0, 0], [0, 255, 0], [0, 0, 255]], "ignore_label": 255}'


def _image(rows=6, columns=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def _label(rows=6, columns=8, seed=0):
    return np.random.default_rng(seed).integers(0, 3, (rows, columns), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    """Two examples in each of train and val."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        for i in range(2):
            Image.fromarray(_image(seed=i)).save(tmp_path / split / f"{i}.png")
            Image.fromarray(_label(seed=i)).save(tmp_path / f"{split}annot" / f"{i}.png")
    (tmp_path / "classes.json").write_text(CLASSES)
    return tmp_path


def test_reads_pixels_exactly_and_in_order(root):
    dataset = folder.make(split="val", root=str(root))
    assert len(dataset) == 2
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.ignore_label == 255
    assert dataset.describe(1) == str(root / "val" / "1.png")
    for i in range(2):
        np.testing.assert_array_equal(dataset[i]["image"], _image(seed=i))
        np.testing.assert_array_equal(dataset[i]["label"], _label(seed=i))
        assert dataset.label_size(i) == (6, 8)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[1]["label"], dataset[1]["label"])


def test_the_root_may_be_the_set_or_its_parent(root):
    for where, name in ((root, "absent"), (root, ""), (root.parent, root.name)):
        assert len(folder.make(split="train", root=str(where), folder=name)) == 2


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg", ".PNG"])
def test_image_formats(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    array = np.full((5, 7, 3), (40, 90, 200), np.uint8)
    Image.fromarray(array).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    read = images.read_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_allclose(read.astype(int), array, atol=2 if suffix == ".jpg" else 0)
    assert images.read_size(path) == (5, 7)


def test_every_mode_becomes_rgb(tmp_path):
    rgb = _image()
    grey = rgb[..., 0]
    palette = Image.fromarray(grey % 4).convert("P")
    palette.putpalette([9, 8, 7, 20, 30, 40, 50, 60, 70, 80, 90, 100])
    colours = np.array([[9, 8, 7], [20, 30, 40], [50, 60, 70], [80, 90, 100]], np.uint8)
    wide = grey.astype(np.uint16) * 257  # 16 bit: 255 * 257 = 65535
    alpha = np.concatenate([rgb, np.full((6, 8, 1), 90, np.uint8)], axis=-1)
    cases = {
        "grey": (Image.fromarray(grey), np.repeat(grey[..., None], 3, -1)),
        "grey_alpha": (Image.fromarray(np.stack([grey, grey], -1)), np.repeat(grey[..., None], 3, -1)),
        "rgba": (Image.fromarray(alpha), rgb),
        "palette": (palette, colours[grey % 4]),
        "bits16": (Image.fromarray(wide), np.repeat(grey[..., None], 3, -1)),
        "bilevel": (Image.fromarray(grey > 99), np.repeat(((grey > 99) * np.uint8(255))[..., None], 3, -1)),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / f"{name}.png")
        read = images.read_image(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read, expected, err_msg=name)
        assert read.dtype == np.uint8


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[..., 0] = 255  # all cyan: no red
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "x.jpg", quality=95)
    read = images.read_image(tmp_path / "x.jpg").astype(int)
    np.testing.assert_allclose(read, np.broadcast_to([0, 255, 255], (8, 8, 3)), atol=4)


def test_16_bit_grey_is_rounded_over_its_whole_range(tmp_path):
    wide = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(images.read_image(tmp_path / "x.tif")[0, :, 0], np.round(wide[0] / 257))


def test_exif_orientation_turns_the_image_so_that_a_label_of_the_view_fits(root):
    stored = _image(6, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    Image.fromarray(stored).save(root / "train" / "0.png", exif=exif)
    Image.fromarray(_label(8, 6)).save(root / "trainannot" / "0.png")
    dataset = folder.make(split="train", root=str(root))
    np.testing.assert_array_equal(dataset[0]["image"], np.rot90(stored, -1))
    assert images.read_size(root / "train" / "0.png") == (8, 6)


def _save_label(path, array, kind):
    if kind == "palette":
        image = Image.fromarray(array).convert("P")
        image.putpalette([200, 100, 50] * 256)
    elif kind == "16 bit":
        image = Image.fromarray(array.astype(np.uint16))
    elif kind == "32 bit":
        image = Image.fromarray(array.astype(np.int32))
    elif kind == "rgb":
        image = Image.fromarray((np.eye(3, dtype=np.uint8) * 255)[array])
    elif kind == "rgba":
        rgb = (np.eye(3, dtype=np.uint8) * 255)[array]
        image = Image.fromarray(np.concatenate([rgb, np.full((*array.shape, 1), 255, np.uint8)], -1))
    else:
        image = Image.fromarray(array)
    image.save(path)


@pytest.mark.parametrize("kind", ["grey", "palette", "16 bit", "32 bit", "rgb", "rgba"])
def test_label_kinds_give_the_same_ids(root, kind):
    suffix = ".tif" if kind == "32 bit" else ".png"
    (root / "trainannot" / "0.png").unlink()
    _save_label(root / "trainannot" / f"0{suffix}", _label(), kind)
    label = folder.make(split="train", root=str(root))[0]["label"]
    np.testing.assert_array_equal(label, _label())
    assert label.dtype in (np.uint8, np.int32)


def test_ignored_pixels_stay_whatever_the_kind(root):
    label = _label()
    label[2, 3] = 255
    Image.fromarray(label).save(root / "trainannot" / "0.png")
    np.testing.assert_array_equal(folder.make(split="train", root=str(root))[0]["label"], label)
    (root / "classes.json").write_text(CLASSES[:-1] + ', "ignore_colors": [[0, 0, 0]]}')
    colours = (np.eye(3, dtype=np.uint8) * 255)[np.where(label == 255, 0, label)]
    colours[2, 3] = 0
    Image.fromarray(colours).save(root / "trainannot" / "0.png")
    np.testing.assert_array_equal(folder.make(split="train", root=str(root))[0]["label"], label)


def test_ids_of_a_mask_are_mapped_to_classes(root):
    (root / "classes.json").write_text('{"classes": ["background", "object"], "ids": [0, 255], "ignore_label": 128}')
    mask = np.zeros((6, 8), np.uint8)
    mask[:2], mask[5] = 255, 128
    Image.fromarray(mask).save(root / "trainannot" / "0.png")
    label = folder.make(split="train", root=str(root))[0]["label"]
    np.testing.assert_array_equal(label, np.where(mask == 255, 1, mask))
    mask[3, 4] = 77
    Image.fromarray(mask).save(root / "trainannot" / "0.png")
    with pytest.raises(InputError, match=r"label id 77 at \(row 3, column 4\)"):
        folder.make(split="train", root=str(root))[0]


def test_an_id_out_of_range_names_file_id_and_first_pixel(root):
    label = _label()
    label[4, 5] = label[5, 1] = 17
    path = root / "trainannot" / "1.png"
    Image.fromarray(label).save(path)
    with pytest.raises(InputError, match=r"label id 17 at \(row 4, column 5\).*0 \.\. 2.*2 pixels") as error:
        folder.make(split="train", root=str(root))[1]
    assert str(path) in str(error.value)


def test_an_unknown_colour_names_file_colour_and_pixel(root):
    colours = (np.eye(3, dtype=np.uint8) * 255)[_label()]
    colours[1, 2] = (1, 2, 3)
    Image.fromarray(colours).save(root / "trainannot" / "0.png")
    with pytest.raises(InputError, match=r"0\.png.*colour \(1, 2, 3\) at \(row 1, column 2\)"):
        folder.make(split="train", root=str(root))[0]


def test_unlike_sizes_name_both_files_and_sizes(root):
    Image.fromarray(_label(6, 9)).save(root / "trainannot" / "0.png")
    with pytest.raises(InputError, match=r"train.0\.png is 8x6.*trainannot.0\.png is 9x6"):
        folder.make(split="train", root=str(root))[0]


@pytest.mark.parametrize(("place", "keep"), [("train", 0.7), ("trainannot", 0.7), ("train", 0.0)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_file_is_named(root, place, keep, suffix):
    path = root / place / "0.png"
    path.unlink()
    path = path.with_suffix(suffix)
    array = np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)
    Image.fromarray(array).save(path)
    other = root / {"train": "trainannot", "trainannot": "train"}[place] / "0.png"
    Image.fromarray(array).save(other)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(InputError) as error:
        folder.make(split="train", root=str(root))[0]
    assert str(path) in str(error.value)
    assert "truncated" in str(error.value) or "not an image" in str(error.value)


def test_a_bomb_is_refused(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"0\.png: too large.*tiles"):
        folder.make(split="train", root=str(root))[0]


def test_stacks_and_floats_are_refused(tmp_path):
    frames = [Image.fromarray(_image(seed=i)) for i in range(3)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="stack.tif: holds 3 frames"):
        images.read_image(tmp_path / "stack.tif")
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="floating-point"):
        images.read_image(tmp_path / "float.tif")
    with pytest.raises(InputError, match="no such file"):
        images.read_image(tmp_path / "absent.png")


def test_an_empty_split_says_what_matched_nothing_and_what_is_there(root):
    with pytest.raises(InputError, match=r"split 'test' is empty.*test.*holds.*train/, trainannot/, val/"):
        folder.make(split="test", root=str(root))
    with pytest.raises(InputError, match="no such folder"):
        folder.make(split="test", root=str(root / "absent"))
    with pytest.raises(InputError, match="SEGJAX_DATA"):
        folder.make(split="test", root="")


def test_files_without_a_partner_are_named(root):
    Image.fromarray(_image()).save(root / "train" / "lonely.png")
    Image.fromarray(_label()).save(root / "trainannot" / "widow.png")
    (root / "train" / "notes.txt").write_text("no picture, no partner needed")
    with pytest.raises(InputError, match="2 files without a partner.*lonely.png has no label.*widow.png has no image"):
        folder.make(split="train", root=str(root))
    partial = folder.make(split="train", root=str(root), partial=True)
    assert len(partial) == len(partial.unpaired) == 2


def test_two_files_of_one_name_are_refused(root):
    Image.fromarray(_image()).save(root / "train" / "0.jpg")
    with pytest.raises(InputError, match=r"0\.jpg and .*0\.png have the same name"):
        folder.make(split="train", root=str(root))


def test_wildcards_pair_files_whose_names_differ_by_more_than_the_suffix(tmp_path):
    for city in ("bonn", "ulm"):
        (tmp_path / "left" / "val" / city).mkdir(parents=True)
        (tmp_path / "fine" / "val" / city).mkdir(parents=True)
        Image.fromarray(_image()).save(tmp_path / "left" / "val" / city / "0_left8.png")
        Image.fromarray(_label()).save(tmp_path / "fine" / "val" / city / "0_ids.png")
        Image.fromarray(_label()).save(tmp_path / "fine" / "val" / city / "0_color.png")
    dataset = folder.make(
        split="val", root=str(tmp_path), images="left/{split}/*/*_left8.png", labels="fine/{split}/*/*_ids.png"
    )
    assert [pair[0] for pair in dataset.pairs] == ["bonn/0", "ulm/0"]
    deep = {"images": "left/{split}/**/*8.png", "labels": "fine/{split}/**/*s.png"}
    deep = folder.make(split="val", root=str(tmp_path), partial=True, **deep)
    assert len(deep) == 0 and len(deep.unpaired) == 4  # "0_left" and "0_id" are not one name


def test_patterns_by_split_and_lists(root):
    dataset = folder.make(
        split="b", root=str(root), images="a=train/*.png;b=val/*.png", labels="a=trainannot/*;b=valannot/*.png"
    )
    assert dataset.describe(0) == str(root / "val" / "0.png")
    (root / "sets").mkdir()
    (root / "sets" / "half.txt").write_text("1\n\n")
    options = {"images": "train/*", "labels": "trainannot/*", "lists": "sets/{split}.txt"}
    assert [pair[0] for pair in folder.make(split="half", root=str(root), **options).pairs] == ["1"]
    (root / "sets" / "half.txt").write_text("1\n7\n")
    with pytest.raises(InputError, match="7 of the list has no image"):
        folder.make(split="half", root=str(root), **options)


def test_without_a_classes_file_the_classes_are_handed_in_or_found(root):
    (root / "classes.json").unlink()
    handed = Classes(("x", "y", "z"), ignore_label=9)
    assert folder.make(split="val", root=str(root), fallback=handed).classes == handed
    label = _label()
    label[0, 0] = 4
    Image.fromarray(label).save(root / "trainannot" / "0.png")  # only the training split has class 4
    assert folder.make(split="val", root=str(root)).class_names == tuple(f"class {i}" for i in range(5))
    for i in range(2):
        Image.fromarray(_label() * 0 + np.uint8(255)).save(root / "trainannot" / f"{i}.png")
    with pytest.raises(InputError, match=r"hold the ids 255: .*\"ids\": \[0, 255\]"):
        folder.make(split="train", root=str(root))


def test_camvid_as_distributed(data_dir):
    dataset = folder.make(split="train", root=str(data_dir), folder="camvid")
    assert (len(dataset), dataset.num_classes, dataset.ignore_label) == (367, 11, 11)
    example = dataset[0]
    assert example["image"].shape == (360, 480, 3)
    plain = np.asarray(Image.open(dataset.describe(0)))
    np.testing.assert_array_equal(example["image"], plain)
    assert len(folder.make(split="val", root=str(data_dir / "camvid"), folder="camvid")) == 101
