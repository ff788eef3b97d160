"""Trains the model of an experiment; run the same command again to continue.

    python -m segjax.train --config=experiments/deeplab.py[:MODE] [--workdir=DIR] [--config.KEY=VALUE ...]

  --config=FILE[:MODE]   the experiment; MODE is passed to its get_config
  --config.KEY=VALUE     replaces one value of it; the keys are listed below
  --workdir=DIR          where everything goes; runs/<experiment> by default
  --compilation_cache=DIR   compiled programs are kept there (the workdir's own folder by default; "" for none)
  --distributed          one of several processes: the cluster (SLURM, a TPU slice, Open MPI) tells jax the rest
  --coordinator=HOST:PORT --processes=N --process=I    the same, told by hand
  --help                 this text and every key of the config
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from segjax import config as configs
from segjax.training import devices, loop, signals, workdirs
from segjax.types import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and trains; returns the exit status.

    0: finished, now or before. 2: something to mend (the message says what). 128 + N: stopped by signal N with a
    checkpoint saved, to be continued by the same command.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, config = _parse(argv)
        if config is None:
            return 0
        return _train(arguments, config, ["python", "-m", "segjax.train", *argv])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; the same command continues from the last checkpoint.", file=sys.stderr)
        return 130


def _parse(argv: list[str]) -> tuple[argparse.Namespace, ConfigDict | None]:
    """The arguments and the resolved config; no config where --help was all that was asked."""
    rest, overrides = configs.split_arguments(argv)
    parser = argparse.ArgumentParser(prog="python -m segjax.train", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="")
    parser.add_argument("--workdir", default="")
    parser.add_argument("--compilation_cache", default=None)
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--coordinator", default=None)
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument("--process", type=int, default=None)
    parser.add_argument("-h", "--help", action="store_true")
    arguments, unknown = parser.parse_known_args(rest)
    flags = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for flag in unknown:
        hint = configs.nearest(flag.partition("=")[0], flags)
        raise InputError(f"unknown argument {flag}{hint or '; --help lists them'}")
    if arguments.help:
        print(__doc__.strip())
        if arguments.config:
            config = configs.override(configs.load_experiment(arguments.config), overrides)
            print(f"\nThe config of {arguments.config}:\n\n{configs.describe(config)}")
        else:
            print("\nGive --config=experiments/deeplab.py with --help to see the keys of that experiment.")
        return arguments, None
    if not arguments.config:
        raise InputError("--config is missing: python -m segjax.train --config=experiments/deeplab.py")
    config = configs.override(configs.load_experiment(arguments.config), overrides)
    return arguments, workdirs.absolute_root(config)


def _train(arguments: argparse.Namespace, config: ConfigDict, command: list[str]) -> int:
    devices.start(
        distributed=arguments.distributed or arguments.coordinator is not None,
        coordinator=arguments.coordinator,
        processes=arguments.processes,
        process=arguments.process,
    )
    workdir = pathlib.Path(arguments.workdir or pathlib.Path("runs") / config.experiment)
    if workdirs.finished(workdir, config, command):
        return 0
    workdirs.prepare(workdir, config, command)
    cache = arguments.compilation_cache
    devices.keep_compiled_programs(workdir / "compiled" if cache is None else cache)
    with signals.StopRequest() as stop, devices.explained(config):
        loop.run(config, workdir, stop, command)
    return 128 + stop.signal if stop.signal is not None else 0


if __name__ == "__main__":
    sys.exit(main())
