"""Losses: one file each, found by name. A loss maps (outputs, batch) to {term: (sum, weight)}, never to a mean.

``losses/<name>.py`` holds ``loss(outputs, batch, *, num_classes, ignore_label, axis_name=None, **options)`` and
``additive(**options)``: whether its sums over parts of a batch add up to those of the whole, which gradient
accumulation needs. A loss that does not add up (a ratio, a ranking) gathers its statistics over ``axis_name`` and
returns the value of the whole batch with weight 1 / devices.
"""

import importlib
import inspect
import pathlib
import re
from collections.abc import Callable, Mapping

from segjax.types import AUX_LOGITS, LOGITS, Array, Batch, InputError, Outputs

Loss = Callable[[Outputs, Batch], Mapping[str, tuple[Array, Array]]]
AUX_WEIGHT = 0.5  # torchvision's; mmsegmentation's is 0.4
_BOUND = ("num_classes", "ignore_label", "axis_name")  # what is not the config's to choose
_SUMMAND = re.compile(r"(?:(\d+\.?\d*|\.\d+)\s*\*\s*)?([A-Za-z]\w*)")


def names() -> list[str]:
    """Names of the losses there are: the files of this folder."""
    return sorted(path.stem for path in pathlib.Path(__file__).parent.glob("[a-z]*.py"))


def summands(name: str) -> dict[str, float]:
    """The losses that a name adds up with their factors: "focal+0.5*dice" is {"focal": 1, "dice": 0.5}.

    Raises:
      InputError: not of that form, or a loss twice; whether there are such losses is not asked.
    """
    found = {}
    for text in str(name).split("+"):
        match = _SUMMAND.fullmatch(text.strip())
        if match is None or match[2] in found:
            raise InputError(
                f"loss {name!r}: expected different losses joined by +, each with a factor or without, such as "
                "cross_entropy+0.5*dice"
            )
        found[match[2]] = float(match[1] or 1)
    return found


def options_of(name: str) -> dict[str, object]:
    """The options of the loss of one file, each with its default.

    Raises:
      InputError: no such file; the message lists the known ones.
    """
    if name not in names():
        raise InputError(f"loss {name!r} is unknown; known: {', '.join(names())}")
    loss = importlib.import_module(f"segjax.losses.{name}").loss
    parameters = inspect.signature(loss).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _BOUND}


def build(
    name: str,
    *,
    num_classes: int,
    ignore_label: int,
    axis_name: str | None = None,
    aux_weight: float = AUX_WEIGHT,
    **options: object,
) -> Loss:
    """The loss of the file ``losses/<name>.py`` with its options bound, or a sum such as "cross_entropy+0.5*dice".

    A model with an auxiliary head ("aux_logits" among its outputs) gets the same loss there, times ``aux_weight``.

    Args:
      name: file name without ".py"; or several joined by "+", each with a factor ("0.5*") or without.
      num_classes: K.
      ignore_label: label that counts nowhere.
      axis_name: of the devices that hold parts of the batch, under pmap.
      aux_weight: factor of the loss on "aux_logits"; 0: none.
      **options: keyword options; each goes to every loss of the sum that has it. Under the name of a loss, a mapping
        of options for that one alone: tversky={"gamma": 1.0}.
    Returns:
      loss(outputs, batch) -> {term: (sum, weight)}, factors within the sums, terms of the auxiliary head as
      "aux_" + term; its attribute ``additive`` says whether parts of a batch add up.
    Raises:
      InputError: unknown name or option; the message lists the known ones. A negative ``aux_weight``.
    """
    if not aux_weight >= 0:
        raise InputError(f"aux_weight is {aux_weight}, expected a number of at least 0")
    factors = summands(name)
    chosen = _chosen(factors, options)
    modules = {part: importlib.import_module(f"segjax.losses.{part}") for part in factors}

    def on(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        """The terms of one head."""
        terms = {}
        for part, factor in factors.items():
            bound = {"num_classes": num_classes, "ignore_label": ignore_label, "axis_name": axis_name}
            for term, (total, weight) in modules[part].loss(outputs, batch, **bound, **chosen[part]).items():
                terms[term] = (total if factor == 1 else factor * total, weight)
        return terms

    def loss(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        """The terms of all heads."""
        terms = on(outputs, batch)
        if AUX_LOGITS in outputs and aux_weight:
            aux = on({LOGITS: outputs[AUX_LOGITS]}, batch)
            terms |= {f"aux_{term}": (aux_weight * total, weight) for term, (total, weight) in aux.items()}
        return terms

    loss.additive = all(modules[part].additive(**chosen[part]) for part in factors)
    return loss


def _chosen(factors: Mapping[str, float], options: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """{loss: its options} of the options of a sum; those under a loss' name stand before those of the whole sum."""
    own = {key: value for key, value in options.items() if key in factors and isinstance(value, Mapping)}
    of_all = {key: value for key, value in options.items() if key not in own}
    known = {part: options_of(part) for part in factors}
    everything = sorted(set().union(*known.values()))
    asked = [("+".join(factors), of_all, everything)]
    asked += [(part, found, sorted(known[part])) for part, found in own.items()]
    for name, found, legal in asked:
        if unknown := sorted(set(found) - set(legal)):
            raise InputError(f"loss {name!r} has no option {unknown[0]!r}; known: {', '.join(legal)}")
    return {
        part: {key: value for key, value in of_all.items() if key in known[part]} | dict(own.get(part, {}))
        for part in factors
    }
