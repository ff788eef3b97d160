"""python -m segjax.predict: what is written for images of any size, and what is said of files that are no images."""

import html.parser
import urllib.parse

import numpy as np
import pytest
import trained_run
from PIL import Image

from segjax import predict
from segjax.training import setup


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    trained_run.write_images(folder / "images")
    trained_run.write_run(folder / "run", folder / "images")
    return folder


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    monkeypatch.setattr(setup, "build_model", trained_run.build_model)


def call(run, *arguments):
    return predict.main([f"--workdir={run / 'run'}", "--compilation_cache=", *map(str, arguments)])


def ids(path):
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_a_folder_of_images_of_several_sizes(run, tmp_path, capsys):
    assert call(run, f"--input={run / 'images/val'}", f"--output={tmp_path}") == 0
    for number, size in enumerate(trained_run.SIZES):
        found = ids(tmp_path / f"labels/{number}.png")
        label = np.asarray(Image.open(run / f"images/valannot/{number}.png"))
        assert found.shape == size == label.shape
        counted = label != trained_run.CLASSES.ignore_label
        assert np.mean(found[counted] == label[counted]) > 0.93
        with Image.open(tmp_path / f"overlays/{number}.png") as overlay:
            assert overlay.height > size[0]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 320
    shown = capsys.readouterr().out
    assert "5 images, checkpoint 20" in shown and "predicted 5/5 images" in shown and "compiling" in shown
    assert trained_run.read_json(tmp_path / "classes.json")["classes"] == list(trained_run.CLASSES.names)
    palette = Image.open(tmp_path / "labels/0.png").getpalette()[:9]
    assert palette == trained_run.CLASSES.palette.ravel().tolist()


def test_batches_do_not_change_a_result(run, tmp_path):
    for batch in (1, 4):
        call(run, f"--input={run / 'images/val/*.png'}", f"--output={tmp_path / str(batch)}", f"--batch={batch}")
    for number in range(5):
        assert np.array_equal(*(ids(tmp_path / f"{batch}/labels/{number}.png") for batch in (1, 4)))


def test_every_link_of_the_page_leads_to_a_file(run, tmp_path):
    (tmp_path / "in/a b").mkdir(parents=True)
    for name in ("a b/é&.png", "0.png", "0.jpg"):
        Image.open(run / "images/val/0.png").save(tmp_path / "in" / name)
    call(
        run, "--input", tmp_path / "in/a b/é&.png", tmp_path / "in/0.png", tmp_path / "in/0.jpg", f"--output={tmp_path}"
    )
    links = []

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            links.extend(value for name, value in attributes if name in ("href", "src"))

    Links().feed((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert len(links) == 9
    assert all((tmp_path / urllib.parse.unquote(link)).is_file() for link in links)
    assert len(list((tmp_path / "labels").rglob("*.png"))) == 3


def test_unreadable_files_are_named_skipped_and_counted(run, tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.png").write_bytes((run / f"images/val/{number}.png").read_bytes())
    (source / "1.png").write_bytes((source / "1.png").read_bytes()[:60])
    (source / "text.jpg").write_text("no picture")
    assert call(run, f"--input={source}", f"--output={tmp_path / 'out'}") == 1
    assert sorted(path.name for path in (tmp_path / "out/labels").iterdir()) == ["0.png", "2.png"]
    shown = capsys.readouterr()
    assert "2 of 4 files could not be read" in shown.err
    for name in ("1.png", "text.jpg"):
        assert name in shown.out and name in shown.err and name in (tmp_path / "out/index.html").read_text()
    for name in ("0.png", "2.png", "1.png"):
        (source / name).unlink()
    assert call(run, f"--input={source}", f"--output={tmp_path / 'none'}") == 1
    assert "wrote 0 images" in capsys.readouterr().out


def test_a_picture_is_turned_by_its_exif_orientation(run, tmp_path):
    picture = Image.open(run / "images/val/0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    assert call(run, f"--input={tmp_path / 'turned.png'}", f"--output={tmp_path / 'out'}") == 0
    found = ids(tmp_path / "out/labels/turned.png")
    rows, columns = trained_run.SIZES[0]
    assert found.shape == (columns, rows)
    assert found[:, rows // 2].tolist() == sorted(found[:, rows // 2].tolist())  # the stripes run across now


def test_grey_and_one_pixel(run, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("L", (1, 1), 200).save(tmp_path / "in/one.png")
    Image.new("L", (300, 7), 200).save(tmp_path / "in/wide.webp")
    assert call(run, f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}") == 0
    assert ids(tmp_path / "out/labels/one.png").shape == (1, 1)
    assert ids(tmp_path / "out/labels/wide.png").shape == (7, 300)


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_other_fits(run, tmp_path, fit):
    assert call(run, f"--input={run / 'images/val'}", f"--output={tmp_path}", f"--config.data.fit={fit}") == 0
    for number in range(5):
        label = np.asarray(Image.open(run / f"images/valannot/{number}.png"))
        counted = label != trained_run.CLASSES.ignore_label
        assert np.mean(ids(tmp_path / f"labels/{number}.png")[counted] == label[counted]) > (0.93, 0.999)[fit == "crop"]


@pytest.mark.parametrize("tile", [32, 50])
def test_tiles(run, tmp_path, tile, capsys):
    """Nothing is resized, so that every pixel is right."""
    arguments = (f"--input={run / 'images/val'}", f"--output={tmp_path}", f"--tile={tile}", "--batch=3")
    assert call(run, *arguments) == 0
    assert f"compiling the model at {tile}x{tile}" in capsys.readouterr().out
    for number in range(5):
        label = np.asarray(Image.open(run / f"images/valannot/{number}.png"))
        counted = label != trained_run.CLASSES.ignore_label
        assert np.mean(ids(tmp_path / f"labels/{number}.png")[counted] == label[counted]) == 1


def test_large_sets_leave_the_sheet_readable(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "_SHEET_CELLS", 2)
    assert call(run, f"--input={run / 'images/val'}", f"--output={tmp_path}", "--batch=2") == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width < 3 * 320
    assert (tmp_path / "index.html").read_text().count("<figure>") == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output=out"], ["--input is missing"]),
        (["--input=x.png"], ["--output is missing"]),
        (["--input={run}/nowhere", "--output=out"], ["nowhere is no file"]),
        (["--input={run}/run", "--output=out"], ["holds no picture"]),
        (["--input={run}/images", "--output=out", "--batch=0"], ["--batch=0"]),
        (["--input={run}/images", "--output=out", "--batch=two"], ["--batch", "two"]),
        (["--input={run}/images", "--output=out", "--tile=0"], ["--tile=0", "nearest legal are 1,"]),
        (["--input={run}/images", "--output=out", "--inptu=2"], ["did you mean --input?"]),
        (["--input={run}/images", "--output={run}/run/config.json"], ["cannot write"]),
    ],
)
def test_errors(run, capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert call(run, *(argument.format(run=run) for argument in arguments)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and all(word in shown for word in words), shown


def test_a_model_that_gives_nan_is_an_error(run, tmp_path, capsys, monkeypatch):
    class Broken(trained_run.Brightest):
        def __call__(self, image, **options):
            return {"logits": super().__call__(image, **options)["logits"] * np.nan}

    monkeypatch.setattr(setup, "build_model", lambda config, num_classes: Broken(num_classes))
    assert call(run, f"--input={run / 'images/val/0.png'}", f"--output={tmp_path}") == 2
    assert "the model gives NaN" in capsys.readouterr().err


def test_help(capsys):
    assert predict.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{flag}" in shown for flag in ("workdir", "input", "output", "checkpoint", "ema", "batch", "config"))


def test_interrupted(run, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "_run", stop)
    assert call(run, f"--input={run / 'images/val'}", f"--output={tmp_path}") == 130
    assert capsys.readouterr().err.startswith("\ninterrupted: ")


def test_out_of_memory_advises_a_smaller_batch(run, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(predict, "_run", full)
    assert call(run, f"--input={run / 'images/val'}", f"--output={tmp_path}", "--batch=5") == 2
    said = capsys.readouterr().err
    assert "--batch=2 " in said and "train.batch_size" not in said
