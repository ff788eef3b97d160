"""The config of a run: read from an experiment or a workdir, overridden from the command line, compared, printed.

A config is a locked ``ml_collections.ConfigDict`` in which every value is present. A key is written with dots
(``data.root``); on the command line ``--config.data.root=/images``. An override takes the type of the value that is
there, and a key that is not there is an error that names the nearest one.
"""

import argparse
import ast
import copy
import difflib
import importlib.util
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from segjax.types import InputError

FLAG = "--config."
_PIPELINE = ("data", "augment", "model", "loss", "optimizer", "train", "eval", "checkpoint", "log")
_TRUE, _FALSE, _NONE = ("true", "1", "yes", "on"), ("false", "0", "no", "off"), ("none", "null", "")


def load_experiment(spec: str) -> ConfigDict:
    """Runs ``get_config`` of an experiment file and returns its config, locked.

    Args:
        spec: ``path/to/file.py``, or ``path/to/file.py:variant``, which calls ``get_config("variant")``.

    Returns:
        the config, unresolved references resolved.

    Raises:
        InputError: there is no such file (the message lists its neighbours), it has no ``get_config``, or it refuses
            the variant with a ``ValueError``.
    """
    file, _, variant = spec.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else pathlib.Path("experiments")
        known = ", ".join(str(p) for p in sorted(folder.glob("*.py"))) or "none"
        raise InputError(f"--config={spec}: there is no file {path}; experiments in {folder}/: {known}")
    module_spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"--config={spec}: {path} defines no function get_config")
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"--config={spec}: get_config({variant!r}) in {path} failed: {error}") from error
    return config.copy_and_resolve_references().lock()


def load_json(path: str | os.PathLike) -> ConfigDict:
    """Reads a config written by ``save_json``; JSON lists become tuples again, and the result is locked.

    Raises:
        InputError: the file is absent or is not a JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; the folder of a run holds a config.json once it started") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object of config sections, found {type(values).__name__}")
    return ConfigDict(_tuples(values)).lock()


def save_json(path: str | os.PathLike, config: ConfigDict) -> None:
    """Writes the resolved config as JSON in one step, so that a reader never sees half a file."""
    path = pathlib.Path(path)
    text = json.dumps(config.copy_and_resolve_references().to_dict(), indent=2) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, 0o644)  # mkstemp gives 0600; others may read a run
    os.replace(temporary, path)


def split_arguments(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates ``--config.key=value`` (or ``--config.key value``) from the other arguments.

    Returns:
        (the other arguments in order, {key: text}); a key without a value reads as "true"; the last of two wins.
    """
    rest, overrides, waiting = [], {}, list(argv)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith(FLAG):
            rest.append(argument)
            continue
        key, equals, text = argument[len(FLAG) :].partition("=")
        if not equals:
            text = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        overrides[key] = text
    return rest, overrides


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Reads a command line that mixes a parser's own flags with ``--config.key=value``.

    Returns:
        (the parser's values, {key: text} of the config).

    Raises:
        InputError: an argument that the parser does not know (with the nearest one), or a value it refuses.
    """
    rest, overrides = split_arguments(argv)
    try:
        arguments, unknown = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:  # of a parser with exit_on_error=False
        raise InputError(f"{error}; --help lists the arguments") from error
    flags = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for argument in unknown:
        raise InputError(
            f"unknown argument {argument}{nearest(argument.partition('=')[0], flags) or '; --help lists them'}"
        )
    return arguments, overrides


def override(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of ``config`` with some values replaced; text takes the type of the value it replaces.

    bool: true/false, 1/0, yes/no, on/off. int: also 10_000 and 1e4. tuple: ``(192,256)``, ``[192, 256]`` or
    ``192,256``, its elements typed by those present. A value that is None now takes any Python literal or text, one
    with a declared type (``config_dict.placeholder``) takes that type, and both take ``none``.

    Args:
        config: the config; it is not changed.
        values: {"data.root": "/images", ...}; values that are not text are checked in the same way.

    Raises:
        InputError: a key that is not in the config (with the nearest one), or text of another type.
    """
    changed = copy.deepcopy(config)  # deep: keeps references between fields and the types of placeholders
    with changed.unlocked():
        for key, value in values.items():
            section = _section(changed, key)
            name = key.rpartition(".")[2]
            section[name] = _convert(key, value, section[name], section.get_type(name))
    return changed.copy_and_resolve_references().lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{"data.root": value, ...}: plain fields first, then sections in the order of the pipeline, names first."""
    resolved, flat = config.copy_and_resolve_references(), {}  # ConfigDict itself iterates in alphabetical order
    for name in sorted(resolved, key=lambda name: _place(name, resolved[name])):
        value = resolved[name]
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{key}": inner for key, inner in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def describe(config: ConfigDict) -> str:
    """Every field as the flag that would set it, one a line, a blank line between sections: the body of ``--help``."""
    lines, previous = [], None
    for key, value in flatten(config).items():
        section = key.partition(".")[0] if "." in key else ""
        if previous is not None and section != previous:
            lines.append("")
        previous = section
        text = value if isinstance(value, str) else str(value).replace(", ", ",")
        lines.append(f"  {FLAG}{key}={_quoted(text)}")
    return "\n".join(lines)


def differences(a: ConfigDict, b: ConfigDict) -> list[str]:
    """One line for each field in which two configs differ: ``data.size: (192, 256) -> (384, 512)``."""
    first, second = flatten(a), flatten(b)
    keys = list(first) + [key for key in second if key not in first]
    absent = "(absent)"
    return [
        f"{key}: {_shown(first.get(key, absent))} -> {_shown(second.get(key, absent))}"
        for key in keys
        if key not in first or key not in second or _tuples(first[key]) != _tuples(second[key])
    ]


def nearest(word: str, known: Sequence[str]) -> str:
    """The hint ``; did you mean X?`` for the known word most like ``word``, nothing where none is like it."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _place(name: str, value: Any) -> tuple:
    if isinstance(value, ConfigDict):
        return (2, _PIPELINE.index(name) if name in _PIPELINE else len(_PIPELINE), name)
    return (0 if name in ("experiment", "name") else 1, 0, name)


def _section(config: ConfigDict, key: str) -> ConfigDict:
    """The section that holds ``key``; InputError unless the key is a field of the config."""
    names, section = key.split("."), config
    fields = flatten(config)
    for name in names[:-1]:
        section = section[name] if isinstance(section, ConfigDict) and name in section else None
    if section is None or not isinstance(section, ConfigDict) or names[-1] not in section:
        # The same name in another section, or the name its initials stand for: lr, learning_rate.
        same_name = [
            field
            for field in fields
            if names[-1] in (name := field.rpartition(".")[2], "".join(part[:1] for part in name.split("_")))
        ]
        hint = f"; did you mean {same_name[0]}?" if len(same_name) == 1 else nearest(key, list(fields))
        raise InputError(f"{FLAG}{key}: the config has no such key{hint or '; --help lists all keys'}")
    if isinstance(section[names[-1]], ConfigDict):
        fields = ", ".join(f"{key}.{name}" for name in section[names[-1]])
        raise InputError(f"{FLAG}{key}: this is a section, set one of its fields: {fields}")
    return section


def _convert(key: str, value: Any, present: Any, declared: type) -> Any:
    """``value`` in the type of the present value, or InputError."""
    optional = present is None
    if optional and (value is None or (isinstance(value, str) and value.strip().lower() in _NONE)):
        return None
    kind = declared if optional else type(present)
    try:
        if kind is type(None):
            return _literal(value)
        if kind in (tuple, list):
            return _sequence(value, present or ())
        return _scalar(value, kind)
    except (ValueError, TypeError, SyntaxError) as error:
        now = f" (now {_shown(present)})"
        raise InputError(f"{FLAG}{key}={value}: expected {_name(kind, present)}{now}, got {value!r}") from error


def _scalar(value: Any, kind: type) -> Any:
    text = value.strip().lower() if isinstance(value, str) else value
    if kind is bool:
        if isinstance(text, bool):
            return text
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        raise ValueError(value)
    if isinstance(value, bool):
        raise TypeError(value)
    if kind is int:
        number = ast.literal_eval(text) if isinstance(text, str) else text
        if isinstance(number, bool) or int(number) != number:
            raise ValueError(value)
        return int(number)
    if kind is str and not isinstance(value, str):
        raise TypeError(value)
    return kind(value)


def _sequence(value: Any, present: Sequence) -> tuple:
    items = ast.literal_eval(_bracketed(value)) if isinstance(value, str) else value
    if not isinstance(items, (tuple, list)):
        raise TypeError(value)
    kind = type(present[0]) if present else None
    if kind in (bool, int, float, str):
        return tuple(_scalar(item, kind) for item in items)
    return _tuples(list(items))


def _bracketed(text: str) -> str:
    """``192,256``, ``192`` and ``(192)`` as a tuple literal; bare words (``a,b``) get their quotes."""
    text = text.strip()
    if text[:1] in ("(", "["):
        return text if isinstance(ast.literal_eval(text), (tuple, list)) else f"({text},)"
    try:
        ast.literal_eval(f"({text},)")
    except (ValueError, SyntaxError):
        return repr(tuple(word.strip() for word in text.split(",")))
    return f"({text},)"


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return _tuples(value)
    try:
        return _tuples(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value


def _tuples(value: Any) -> Any:
    """Lists inside a JSON value as tuples: a config holds no mutable values."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(inner) for inner in value)
    return value


def _name(kind: type, present: Any) -> str:
    if kind in (tuple, list):
        inner = f" of {type(present[0]).__name__}" if present else ""
        return f"a tuple{inner}, such as {_shown(present) if present else '(1, 2)'}"
    return {bool: "a bool (true or false)", int: "an int", float: "a float", str: "text"}.get(kind, kind.__name__)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) and value != "(absent)" else str(value)


def _quoted(text: str) -> str:
    plain = text and not any(character in text for character in " ()[]{}*?;&|<>$'\"\\")
    return text if plain else "'" + text.replace("'", "'\\''") + "'"
