"""Which kind of run a config is: ``semantic`` or ``instance``, each a file with the functions in which they differ."""

import copy
import types
from typing import Any

from ml_collections import ConfigDict

from segjax import models
from segjax.training import instance, semantic
from segjax.types import InputError


def of(config: ConfigDict) -> types.ModuleType:
    """The kind of run that the model of a config makes it.

    Raises:
        InputError: no such model.
    """
    return instance if models.finds_instances(config.model.name) else semantic


def check_set(config: ConfigDict, dataset: Any) -> None:
    """Refuses a set of objects for a semantic model, and labels for one of objects.

    Raises:
        InputError: names the set and the model.
    """
    if getattr(dataset, "instances", False) != (of(config) is instance):
        kinds = ("a class for each pixel and no objects", "objects and no class for each pixel")
        has = kinds[bool(getattr(dataset, "instances", False))]
        raise InputError(
            f"data.name={config.data.name!r} has {has}: that is not what model {config.model.name!r} learns"
        )


def completed(config: ConfigDict) -> ConfigDict:
    """The config with the keys that configs of before had not, so that each can be overridden; locked.

    They are those of its kind's protocol in the section eval, and ``model.pretrained``.
    """
    whole = copy.deepcopy(config)  # deep: keeps references between fields and the types of placeholders
    sections = [whole.get(name) for name in ("eval", "model")]
    if all(isinstance(section, ConfigDict) for section in sections) and whole.model.get("name") in models.known():
        with whole.unlocked():
            for key, value in of(whole).EVAL_DEFAULTS.items():
                if key not in whole.eval:
                    whole.eval[key] = value
            if "pretrained" not in whole.model:
                whole.model.pretrained = ""
    return whole.lock()
