"""Turns published PyTorch weights into ours, shows how, and turns ours back; neither needs PyTorch.

  python -m segjax.convert --source=torchvision --model=resnet50 --weights=resnet50.pth --output=resnet50.safetensors
  python -m segjax.convert --source=smp --model=Unet --option.encoder_name=resnet34 --weights=unet.pth --report
  python -m segjax.convert --to-torch --weights=OURS.safetensors --output=TORCHS.safetensors
  python -m segjax.convert --to-torch --workdir=DIR --source=smp --model=Unet --output=TORCHS.safetensors

--source=NAME            torchvision, smp (segmentation_models_pytorch) or timm
--model=NAME             as the source names it: resnet50, deeplabv3_resnet50, DeepLabV3Plus
--option.KEY=VALUE       an option of that model, as the source names it; what is left out has the source's default
--weights=WHERE          a .safetensors or .pth file, or an id of the Hugging Face hub (timm/resnet18.a1_in1k)
--output=FILE            a .safetensors file: for --config.model.pretrained=FILE, or with --to-torch for PyTorch
--report                 a line for each tensor: its name, shape, the layout rule and our leaf
--to-torch               the way back: of a converted file, or of a run; safetensors.torch.load_file reads the result
--workdir=DIR            with --to-torch: the folder of a run of segjax.train
--checkpoint=best        of that run: best (the default), last or the number of a step
--ema, --no-ema          its moving average, or its parameters; by default as the run's eval.ema
--help                   this text

Every tensor is used exactly once and every leaf filled; anything else is an error that names it.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from segjax import config as configs
from segjax.interop import converted, files, safetensors, torch
from segjax.training import devices, setup, trained
from segjax.types import InputError

OPTION = "--option."


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and converts.

    Returns:
        the exit status: 0; 2 where the user has something to mend; 130 where Ctrl-C ended it.
    """
    try:
        arguments, options = _parse(sys.argv[1:] if argv is None else argv)
        if arguments.help:
            print(__doc__.strip())
        elif arguments.to_torch:
            _to_torch(arguments, options)
        else:
            _from_torch(arguments, options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    own = [argument for argument in argv if argument.startswith(OPTION)]
    options = dict(converted.option(argument.removeprefix(OPTION)) for argument in own)
    parser = argparse.ArgumentParser(
        prog="python -m segjax.convert", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    for name in ("source", "model", "weights", "output", "workdir"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--to-torch", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    arguments, overrides = configs.parse(parser, [argument for argument in argv if argument not in own])
    for key in overrides:
        raise InputError(f"--config.{key}: there is no config here; a model's options are --option.{key}=VALUE")
    return arguments, options


def _from_torch(arguments: argparse.Namespace, options: Mapping[str, Any]) -> None:
    _require(arguments, "source", "model", "weights")
    if arguments.workdir:
        raise InputError("--workdir is for the way back: add --to-torch")
    if not arguments.output and not arguments.report:
        raise InputError("nothing to do: give --output=FILE.safetensors or --report")
    _check_output(arguments.output)
    torch.find(arguments.source, arguments.model)
    weights = files.read(arguments.weights)
    if arguments.report:
        print(torch.report(weights.arrays, source=arguments.source, model=arguments.model, **options))
    found = converted.from_torch(weights, source=arguments.source, model=arguments.model, options=options)
    prepared = found.preprocessing
    print(f"{arguments.source} {arguments.model}: model {found.model!r} with {found.module.num_classes} classes")
    print(f"images: RGB in [0, 1], minus {prepared.mean}, divided by {prepared.std}; {prepared.resize or 'any size'}")
    print(f"batch norm: epsilon {prepared.epsilon:g}")
    if arguments.output:
        converted.write(arguments.output, found)
        print(f"wrote {arguments.output}; to train from it: --config.model.pretrained={arguments.output}")


def _to_torch(arguments: argparse.Namespace, options: Mapping[str, Any]) -> None:
    _require(arguments, "output")
    _check_output(arguments.output)
    if bool(arguments.workdir) == bool(arguments.weights):
        raise InputError("--to-torch needs either --weights=FILE, a converted file, or --workdir=DIR, a run")
    if arguments.workdir:
        _require(arguments, "source", "model")
        source, model = arguments.source, arguments.model
        module, variables = _of_run(arguments)
    else:
        found = converted.from_file(files.read(arguments.weights))
        module, variables = found.module, found.variables
        source, model = arguments.source or found.source, arguments.model or found.name
        options = {**(found.options if (source, model) == (found.source, found.name) else {}), **options}
    state_dict = torch.to_torch(module, variables, source=source, model=model, **options)
    if arguments.report:
        print(torch.report(state_dict, source=source, model=model, **options))
    safetensors.write(arguments.output, state_dict, {"format": "pt"})
    print(f"wrote {arguments.output}: {len(state_dict)} tensors of {source} {model}; in PyTorch:")
    print(f"  model.load_state_dict(safetensors.torch.load_file({arguments.output!r}))")


def _of_run(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model and the variables of a checkpoint."""
    devices.start()
    _, config, classes = trained.read(arguments.workdir, {})
    ema = config.eval.ema if arguments.ema is None else arguments.ema
    warn = lambda text: print(f"warning: {text}", file=sys.stderr, flush=True)
    _, variables, _ = trained.restore(
        arguments.workdir, config, classes, which=arguments.checkpoint, ema=ema, warn=warn
    )
    return setup.build_model(config, len(classes)), variables


def _require(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        if not getattr(arguments, name):
            known = f", one of {', '.join(torch.known())}" if name == "source" else ""
            raise InputError(f"--{name} is missing{known}; --help shows examples")


def _check_output(output: str) -> None:
    if output and pathlib.Path(output).suffix != ".safetensors":
        raise InputError(f"--output={output}: expected a name that ends in .safetensors; PyTorch reads these, too")


if __name__ == "__main__":
    sys.exit(main())
