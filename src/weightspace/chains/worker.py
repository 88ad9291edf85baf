"""What a worker process does: load the data once, sample one chain after the other, and save when asked to stop."""

from __future__ import annotations

import platform
import traceback
import warnings
from dataclasses import dataclass, replace

from weightspace.chains.keeper import ChainOrder, sample_chain
from weightspace.chains.records import SAMPLE_FILE
from weightspace.compare.worker import check_data, describe_data
from weightspace.errors import WeightspaceError
from weightspace.files import reason_of
from weightspace.training.data import Data
from weightspace.training.session import load_recipe_data

_loaded: dict[str, Data] = {}  # by check sum


@dataclass(frozen=True)
class Ended:
    """How a chain ended in a worker: with an error, or without: whole, or stopped by a signal with its state saved.

    Attributes:
        chain: Its number.
        error: The sentence; empty for none.
        traceback: Of an error.
        told: Warnings, each with its kind.
    """

    chain: int
    error: str = ""
    traceback: str = ""
    told: tuple[tuple[type[Warning], str], ...] = ()


def do_chain(order: ChainOrder, checksum: str) -> Ended:
    """Sample one chain. Never raises: an error comes back as text.

    Args:
        order: The chain.
        checksum: Of the data that all chains see.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        ended = _sample(order, checksum)
    told = dict.fromkeys((entry.category, str(entry.message)) for entry in caught)
    return replace(ended, told=tuple(told))


def do_chain_elsewhere(order: ChainOrder, checksum: str) -> Ended:
    """Sample one chain on what may be another machine, if it sees the chains' folder. Never raises.

    Args:
        order: The chain.
        checksum: Of the data that all chains see.
    """
    if not (order.run_dir / SAMPLE_FILE).is_file():
        sentence = (
            f"the machine {platform.node()} does not see {order.run_dir}; chains save their samples and states as they "
            "go, so choose a folder with --out that all machines of the cluster share"
        )
        return Ended(order.chain, sentence, traceback=f"{sentence}\n")
    return do_chain(order, checksum)


def _sample(order: ChainOrder, checksum: str) -> Ended:
    try:
        if checksum not in _loaded:
            data = load_recipe_data(order.recipe)
            check_data(describe_data(data), checksum)
            _loaded[checksum] = data
        sample_chain(order, _loaded[checksum])
    except WeightspaceError as error:
        return Ended(order.chain, str(error), traceback=traceback.format_exc())
    except OSError as error:  # a full disk, a folder that went away: no bug
        return Ended(order.chain, reason_of(error), traceback=traceback.format_exc())
    except KeyboardInterrupt:  # the state is saved; who judges the chains says that this one is not whole
        return Ended(order.chain)
    except Exception as error:  # noqa: BLE001 - the parent reports a bug with the chain's number
        return Ended(order.chain, f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    return Ended(order.chain)
