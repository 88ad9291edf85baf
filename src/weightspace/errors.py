"""Every error this library raises on purpose.

Each message is one sentence that says what was asked, what came, and what to do. All derive from
`WeightspaceError`, so a script (and the command line) can tell them from bugs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WeightspaceError(Exception):
    """Base of all errors raised on purpose by weightspace."""


class SelectionError(WeightspaceError, ValueError):
    """A rule's `on=` matches nothing, or what it matches cannot carry the rule."""


class RuleError(WeightspaceError, ValueError):
    """A rule's own parameters are out of range, or two rules cannot be combined."""


class AttachError(WeightspaceError, RuntimeError):
    """Rules and optimizer do not fit together (attached twice, unsupported optimizer, foreign state)."""


class NonFiniteGradientError(WeightspaceError, ArithmeticError):
    """A gradient holds NaN or infinity. Raised before the optimizer changed any weight."""


class VerificationError(WeightspaceError, ArithmeticError):
    """A declared property was measured and does not hold."""


class DataError(WeightspaceError, RuntimeError):
    """A data set is missing, truncated or not what its name says."""


class RecipeError(WeightspaceError, ValueError):
    """A recipe has an unknown key or a value out of range."""


class RunError(WeightspaceError, RuntimeError):
    """A run directory cannot be written, read or resumed."""


class DivergenceError(WeightspaceError, ArithmeticError):
    """Training produced a non-finite loss or gradient; what was reached before is on disk."""


class OperatorError(WeightspaceError, ValueError):
    """A layer is no linear map that can be analyzed, or a question is too large for the exact method."""


class VanishedWeightsWarning(UserWarning):
    """A penalty has made all weights of a layer zero: its strength is above what the network tolerates."""


class CompressError(WeightspaceError, ValueError):
    """A model cannot be pruned, shrunk or stored as asked, or a file is no whole sparse file."""


class InspectionError(WeightspaceError, ValueError):
    """A model cannot be inspected as asked: its forward pass fails, it is lazy, or a report cannot be made."""


class TemperatureWarning(UserWarning):
    """A sampler's thermometers are off the temperature that was asked for: its samples do not follow the law."""


class SamplingError(WeightspaceError, ValueError):
    """Samples of weights cannot be stored, read, averaged or diagnosed as asked."""


_LONGEST_NAME = 200


def nearest(name: object, known: Iterable[str], phrase: str = "; the nearest is {!r}") -> str:
    """The known name most like `name`, as a phrase for the end of an error sentence; letter case does not count.

    Args:
        name: What came; anything that is no string is compared as it prints.
        known: The names that there are.
        phrase: A format string with one field for the known name; `"{}"` gives the bare name.

    Returns:
        The filled phrase, or `""` if no known name is similar.

    Example:
        >>> nearest("resnet19", ["mlp", "ResNet18"]), nearest("zebra", ["mlp"])
        ("; the nearest is 'ResNet18'", '')
        >>> nearest("epoch", ["epochs", "batch_size"], "{}")
        'epochs'
    """
    by_lower = {entry.lower(): entry for entry in known}
    if len(str(name)) > _LONGEST_NAME:  # no misspelling, and slow to compare
        return ""
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return phrase.format(by_lower[close[0]]) if close else ""


def shortened(value: object, most: int = 200) -> str:
    """A value as it prints, cut: for values that come from files, which may be of any length.

    >>> shortened("a" * 300, most=8)
    "'aaaa..."
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
