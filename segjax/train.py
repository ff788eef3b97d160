"""Trains the model of an experiment; run the same command again to continue.

    python -m segjax.train --config=experiments/deeplab.py[:MODE] [--workdir=DIR] [--config.KEY=VALUE ...]

--config=FILE[:MODE]     the experiment; MODE is passed to its get_config
--config.KEY=VALUE       replaces one value of it
--workdir=DIR            where everything goes; runs/<experiment> by default
--compilation_cache=DIR  compiled programs are kept there (the workdir's own folder by default; "" for none)
--distributed            one of several processes: the cluster (SLURM, a TPU slice, Open MPI) tells jax the rest
--coordinator=HOST:PORT --processes=N --process=I    the same, told by hand
--help                   this text; with --config also every key of that experiment
"""

import argparse
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from segjax import config as configs
from segjax.training import devices, loop, setup, signals, tasks, workdirs
from segjax.training.checkpoint_files import is_disk_full
from segjax.types import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and trains; returns the exit status.

    0: finished, now or before. 2: something to mend (the message says what). 128 + N: stopped by signal N with a
    checkpoint saved, to be continued by the same command.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, overrides = configs.parse(_parser(), argv)
        if arguments.help:
            _help(arguments, overrides)
            return 0
        return _train(arguments, _config(arguments, overrides), ["python", "-m", "segjax.train", *argv])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(f"error: disk full: {error}; make room and run the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; the same command continues from the last checkpoint.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m segjax.train", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--config", default="")
    parser.add_argument("--workdir", default="")
    parser.add_argument("--compilation_cache", default=None)
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--coordinator", default=None)
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument("--process", type=int, default=None)
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def _config(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> ConfigDict:
    if not arguments.config:
        raise InputError("--config is missing: python -m segjax.train --config=experiments/deeplab.py")
    experiment = tasks.completed(configs.load_experiment(arguments.config))
    return workdirs.absolute_root(configs.override(experiment, overrides))


def _help(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    print(__doc__.strip())
    if arguments.config:
        print(f"\nThe config of {arguments.config}:\n\n{configs.describe(_config(arguments, overrides))}")
    else:
        print("\nWith --config=experiments/deeplab.py, --help also lists the keys of that experiment.")


def _show_notes() -> None:
    """Prints what the library reports of long work, such as the drawing of a data set."""
    logger = logging.getLogger("segjax")
    logger.setLevel(logging.INFO)
    logger.propagate = False  # absl's handler, where there is one, would print each note again
    logger.addHandler(logging.StreamHandler(sys.stdout))


def _train(arguments: argparse.Namespace, config: ConfigDict, command: list[str]) -> int:
    devices.start(
        distributed=arguments.distributed or arguments.coordinator is not None,
        coordinator=arguments.coordinator,
        processes=arguments.processes,
        process=arguments.process,
    )
    setup.check(config, devices=1)  # before the workdir, which would call a slip another config
    workdir = pathlib.Path(arguments.workdir or pathlib.Path("runs") / config.experiment)
    if workdirs.finished(workdir, config, command):
        return 0
    workdirs.prepare(workdir, config, command)
    cache = arguments.compilation_cache
    devices.keep_compiled_programs(workdir / "compiled" if cache is None else cache)
    with workdirs.held(workdir), signals.StopRequest() as stop, devices.explained(config):
        loop.run(config, workdir, stop, command)
    return 128 + stop.signal if stop.signal is not None else 0


if __name__ == "__main__":
    _show_notes()
    sys.exit(main())
