"""Prepares a public set once, so that it can be read ever after without TensorFlow.

    python -m segjax.data.prepare shapes              the drawn scenes: no network, no TensorFlow (training does it too)
    python -m segjax.data.prepare oxford_iiit_pet     any set of TFDS: downloads, unpacks, writes array_record files

The sets of TFDS's catalogue need TensorFlow here, and here alone, to unpack archives: pip install -e '.[prepare]'.
Files go to --root, else to $SEGJAX_CACHE, else to ~/.cache/segjax; data.root in a config must name the same folder.
Exit status 0: prepared; 2: it could not be, and the message says what to do.
"""

import argparse
import difflib
import importlib.util
import logging
import pathlib
import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds

from segjax.data import shapes
from segjax.data import tfds as prepared
from segjax.types import InputError

_PIP = "pip install -e '.[prepare]'   (or: pip install tensorflow-cpu)"
_log = logging.getLogger(__name__)


def prepare(name: str, root: str = "") -> pathlib.Path:
    """Downloads and stores a set, unless it is there.

    Args:
        name: "shapes", or a set as TFDS names it: "oxford_iiit_pet", "set/config", "set:1.0.0". A builder registered
            by importing its module counts too.
        root: see `prepared.cache_folder`.

    Returns:
        The folder of the prepared set.

    Raises:
        InputError: unknown name, TensorFlow is needed and not installed, or downloading or writing failed.
    """
    if name == "shapes":
        return shapes.prepare(root)
    place = prepared.cache_folder(root)
    cls = _builder_class(name)
    if cls.__module__.startswith("tensorflow_datasets.") and importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{name}: preparing it needs TensorFlow, once (TFDS unpacks archives with it; training does not need it): "
            f"{_PIP}, in this environment or in another one, then run this again"
        )
    try:
        place.mkdir(parents=True, exist_ok=True)
        builder = tfds.builder(name, data_dir=place, file_format="array_record")
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        line = _PIP if (error.name or "").startswith("tensorflow") else f"pip install {error.name}"
        raise InputError(f"{name}: preparing it needs the module {error.name!r}: {line}") from error
    except tfds.download.DownloadError as error:
        raise InputError(f"{name}: the download failed ({error}): run this again to go on with it") from error
    except (OSError, ValueError, AssertionError) as error:  # network, disk, versions and configs that do not exist
        raise InputError(f"{name}: could not be prepared in {place}: {error}") from error
    return pathlib.Path(builder.data_dir)


def _builder_class(name: str) -> type:
    try:
        return tfds.builder_cls(name.partition(":")[0])
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        near = difflib.get_close_matches(name, [*tfds.list_builders(with_community_datasets=False), "shapes"], 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see https://www.tensorflow.org/datasets/catalog"
        raise InputError(f"TFDS has no set {name!r}: {hint}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m segjax.data.prepare",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="shapes, or a TFDS set: NAME, NAME/CONFIG, NAME:VERSION")
    parser.add_argument("--root", default="", help="where prepared sets are kept")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        folder = prepare(arguments.name, arguments.root)
    except InputError as error:
        _log.error("%s", error)
        return 2
    _log.info("prepared: %s", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
