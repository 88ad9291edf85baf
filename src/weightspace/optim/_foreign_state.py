"""States that no `state_dict` of ours gave: whatever is wrong with them, the error is one sentence."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from weightspace.errors import AttachError, WeightspaceError


@contextmanager
def refusing_foreign_state(owner: str, *, keep: tuple[type[Exception], ...] = ()) -> Generator[None, None, None]:
    """Turns what Python raises at an entry of the wrong kind into an `AttachError`.

    Args:
        owner: Whose state it should be, for the sentence.
        keep: What passes as it is: torch says by `ValueError` that parameter groups differ, and scripts catch it.

    Raises:
        AttachError: The state cannot be read.

    Example:
        >>> with refusing_foreign_state("rules"):
        ...     {}["steps"]
        Traceback (most recent call last):
        weightspace.errors.AttachError: This is no state of rules (KeyError: 'steps'); give what state_dict() returned.
    """
    try:
        yield
    except (WeightspaceError, *keep):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise AttachError(f"This is no state of {owner} ({reason}); give what state_dict() returned.") from error
