"""Batches: one sequence for any process count, worker kind and restart; every evaluation example once."""

import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from segjax.data import canvas, fitted, folder, pipeline
from segjax.types import InputError

SIZES = [(6, 8), (9, 5), (6, 8), (12, 16), (70, 3), (6, 8), (5, 5)]
OPTIONS = {"size": (6, 8), "batch_size": 4, "seed": 5}


class Set:
    """Seven pictures of several sizes; pixel value = index, label = index % 3 with a stripe of the ignore label."""

    num_classes, class_names, ignore_label, name, split = 3, ("a", "b", "c"), 255, "set", "train"
    palette = np.zeros((3, 3), np.uint8)

    def __init__(self, bad=None, sizes=SIZES):
        self.bad = bad
        self.sizes = sizes
        self.reads = 0
        self.threads = set()

    def __len__(self):
        return len(self.sizes)

    def describe(self, i):
        return f"picture {i}"

    def __getitem__(self, i):
        self.reads += 1
        self.threads.add(threading.get_ident())
        if i == self.bad:
            raise InputError(f"picture {i}: label id 17")
        label = np.full(self.sizes[i], i % 3, np.uint8)
        label[0] = 255
        return {"image": np.full((*self.sizes[i], 3), i, np.uint8), "label": label}


def _take(count, dataset=None, **options):
    with pipeline.train_batches(dataset or Set(), **{**OPTIONS, **options}) as batches:
        return list(itertools.islice(batches, count))


def _assert_same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def _order(batches):
    """The examples in the order of the batches: the pixel values say which they are."""
    return np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])


def test_batches_have_the_stated_shapes_and_types():
    batch = _take(1)[0]
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 6, 8, 3), "uint8"),
        "label": ((4, 6, 8), "int32"),
        "valid": ((4,), "bool"),
    }
    assert batch["valid"].all()
    assert (batch["label"][:, -1, 0] == batch["image"][:, 0, 0, 0] % 3).all()


def test_each_epoch_is_another_permutation_and_batches_straddle_epochs():
    order = _order(_take(14)).reshape(8, 7)  # 14 batches of 4 = 8 epochs of 7
    assert all(sorted(epoch) == list(range(7)) for epoch in order)
    assert len({tuple(epoch) for epoch in order}) > 4
    assert (_order(_take(14)) == order.ravel()).all()
    assert (_order(_take(14, seed=6)) != order.ravel()).any()


def test_neighbouring_seeds_do_not_repeat_each_other_an_epoch_later():
    # A seed that is merely added to the epoch's number would make run 6 start with the second epoch of run 5.
    assert (_order(_take(14, seed=5))[7:28] != _order(_take(14, seed=6))[:21]).any()


@pytest.mark.parametrize("start", [1, 3, 9])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_needs_the_step_alone(start, workers):
    for fit in ("stretch", "crop"):
        whole = _take(12, fit=fit)
        _assert_same(_take(12 - start, start_step=start, workers=workers, fit=fit), whole[start:])


def test_the_last_step_ends_the_sequence_and_the_place_is_known():
    with pipeline.train_batches(Set(), **OPTIONS, num_steps=5, start_step=3) as batches:
        assert batches.step == 3
        assert len(list(batches)) == 2
        assert batches.step == 5
    assert _take(3, num_steps=5, start_step=5) == []


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_global_batch_by_rows(count):
    whole = _take(6)
    parts = [_take(6, process_index=p, process_count=count) for p in range(count)]
    joined = [{key: np.concatenate([part[s][key] for part in parts]) for key in whole[s]} for s in range(6)]
    _assert_same(joined, whole)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_thread_count_changes_nothing(workers):
    _assert_same(_take(9, workers=workers, fit="crop"), _take(9, fit="crop"))


def test_worker_processes_give_the_same_bits(tmp_path):
    for place in ("train", "trainannot"):
        (tmp_path / place).mkdir()
        for i in range(5):
            array = np.random.default_rng(i).integers(0, 3, (9, 11), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / place / f"{i}.png")
    dataset = folder.make(split="train", root=str(tmp_path))
    options = {"fit": "crop", "start_step": 1, "cache": True}
    _assert_same(_take(4, dataset, **options, worker_mode="processes"), _take(4, dataset, **options))
    (tmp_path / "trainannot" / "3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="3.png: not an image"):
        _take(
            6,
            folder.make(split="train", root=str(tmp_path), fallback=dataset.classes),
            workers=1,
            worker_mode="processes",
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_surfaces_as_it_is(workers):
    with pipeline.train_batches(Set(bad=3), **OPTIONS, workers=workers) as batches:
        with pytest.raises(InputError) as error:
            list(itertools.islice(batches, 4))
        assert str(error.value) == "picture 3: label id 17"
        assert list(batches) == []  # closed


def test_the_cache_reads_each_example_once_and_is_shared():
    dataset = Set()
    plain = _take(8, fit="pad")
    _assert_same(_take(8, dataset, fit="pad", cache=True, workers=0), plain)
    assert dataset.reads == 7
    _assert_same(_take(8, dataset, fit="pad", cache=True), plain)
    assert dataset.reads == 7
    _take(2, dataset, fit="stretch", cache=True, workers=0)  # another canvas
    assert dataset.reads > 7


def test_verify_fills_the_cache_and_names_the_first_bad_record():
    dataset, seen = Set(), []
    pipeline.verify(dataset, lambda done, of: seen.append((done, of)), size=(6, 8), cache=True)
    assert seen == [(i + 1, 7) for i in range(7)]
    _take(5, dataset, cache=True)
    assert dataset.reads == 7
    pipeline.verify(dataset, size=(6, 8), native_label=True, cache=True)
    list(pipeline.eval_batches(dataset, size=(6, 8), batch_size=3, cache=True))
    assert dataset.reads == 14
    with pytest.raises(InputError, match="picture 3: label id 17"):
        pipeline.verify(Set(bad=3))


def test_the_cache_goes_with_its_dataset():
    before = len(fitted._STORES)
    dataset = Set()
    pipeline.verify(dataset, size=(6, 8), cache=True)
    assert len(fitted._STORES) == before + 1
    del dataset
    assert len(fitted._STORES) == before


def test_a_cache_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(fitted, "_free_memory", lambda: 1000)
    with pytest.raises(InputError, match="cache=True needs about.*set data.cache=False"):
        pipeline.verify(Set(), size=(600, 800), cache=True)


def test_evaluation_sees_every_example_once_in_order_at_native_size():
    batches = list(pipeline.eval_batches(Set(), size=(6, 8), batch_size=4))
    assert len(batches) == 2
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, [0, 1, 2, 3, 4, 5, 6, -1])
    np.testing.assert_array_equal(np.concatenate([batch["valid"] for batch in batches]), index >= 0)
    assert batches[0]["label"].shape == (4, 64, 64) and batches[1]["label"].shape == (4, 128, 64)
    for batch in batches:
        assert batch["image"].shape == (4, 6, 8, 3) and batch["label"].dtype == np.int32
        for row, i in enumerate(batch["index"]):
            label = np.full(batch["label"].shape[1:], 255)
            if i >= 0:
                h, w = SIZES[i]
                label[1:h, :w] = i % 3
                assert tuple(batch["native_size"][row]) == (h, w)
                assert (batch["image"][row] == i).all()
            np.testing.assert_array_equal(batch["label"][row], label)
            assert tuple(batch["content_size"][row]) == (6, 8)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_evaluation_over_processes_has_equal_steps_and_shapes(fit):
    options = {"size": (6, 8), "batch_size": 4, "fit": fit, "pad_native_to": 1}
    whole = list(pipeline.eval_batches(Set(), **options))
    for count in (2, 4):
        parts = [
            list(pipeline.eval_batches(Set(), **options, process_index=p, process_count=count)) for p in range(count)
        ]
        assert {len(part) for part in parts} == {2}
        joined = [{key: np.concatenate([part[s][key] for part in parts]) for key in whole[s]} for s in range(2)]
        _assert_same(joined, whole)


def test_evaluation_by_worker_processes_is_the_same():
    dataset = Set(sizes=SIZES[:3])
    options = {"size": (6, 8), "batch_size": 2}
    _assert_same(
        list(pipeline.eval_batches(dataset, **options, worker_mode="processes", workers=1)),
        list(pipeline.eval_batches(dataset, **options)),
    )


def test_stretch_resizes_as_pillow_does():
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    label = np.random.default_rng(1).integers(0, 9, (37, 53), dtype=np.uint8)
    for size in ((20, 31), (37, 100), (74, 53)):
        expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(canvas.fit_image(image, size, "stretch"), expected)
        expected = Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST)
        np.testing.assert_array_equal(canvas.fit_label(label, size, "stretch", 255), expected)


def test_pad_keeps_the_aspect_and_marks_the_rest():
    image = np.full((10, 40, 3), 7, np.uint8)
    label = np.full((10, 40), 2, np.uint8)
    assert canvas.content_size((10, 40), (16, 20), "pad") == (5, 20)
    out = canvas.fit_image(image, (16, 20), "pad")
    assert (out[:5] == 7).all() and (out[5:] == canvas.FILL).all()
    out = canvas.fit_label(label, (16, 20), "pad", 300)
    assert (out[:5] == 2).all() and (out[5:] == 300).all()
    assert canvas.content_size((1, 1000), (16, 20), "pad") == (1, 20)


def test_crop_takes_windows_everywhere_without_resizing():
    dataset = Set(sizes=[(3, 4)])
    ramp = np.arange(12, dtype=np.uint8).reshape(3, 4)
    dataset.__class__ = type(
        "Ramp", (Set,), {"__getitem__": lambda self, i: {"image": np.stack([ramp] * 3, -1), "label": ramp}}
    )
    batches = _take(30, dataset, size=(2, 3), fit="crop")
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(np.concatenate([b["image"][..., 0] for b in batches]), labels)
    corners = labels[:, 0, 0]
    np.testing.assert_array_equal(labels, corners[:, None, None] + np.array([[0, 1, 2], [4, 5, 6]]))
    assert set(corners.tolist()) == {0, 1, 4, 5}
    small = _take(1, dataset, size=(5, 6), fit="crop")[0]["label"][0]
    np.testing.assert_array_equal(small[:3, :4], ramp)
    assert (small[3:] == 255).all() and (small[:, 4:] == 255).all()
    with pytest.raises(InputError, match="picture 0 is 4x3, larger than the canvas 3x2"):
        list(pipeline.eval_batches(dataset, size=(2, 3), fit="crop", batch_size=1))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"fit": "squash"}, ValueError, "squash.*stretch, pad, crop"),
        ({"worker_mode": "fibres"}, ValueError, "fibres.*threads, processes"),
        ({"workers": -1}, ValueError, "workers=-1"),
        ({"size": (0, 4)}, ValueError, "size="),
        ({"start_step": -1}, ValueError, "start_step=-1"),
        ({"process_index": 2, "process_count": 2}, ValueError, "process_index=2"),
        ({"process_count": 3}, InputError, "batch of 4.*3 processes"),
    ],
)
def test_impossible_options_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        pipeline.train_batches(Set(), **{**OPTIONS, **change})


def test_an_empty_set_is_refused():
    with pytest.raises(InputError, match="empty"):
        pipeline.train_batches(Set(sizes=[]), **OPTIONS)


def test_threads_read_ahead_and_none_reads_in_the_caller():
    dataset = Set()
    _take(3, dataset, workers=0)
    assert dataset.threads == {threading.get_ident()}
    dataset = Set()
    _take(3, dataset, workers=2)
    assert threading.get_ident() not in dataset.threads
