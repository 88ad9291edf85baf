"""Which data sets are on this machine, and where. Nothing is read or downloaded, only looked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from weightspace.doctor.finding import Finding
from weightspace.doctor.machine import place

if TYPE_CHECKING:
    from weightspace.training.data.catalog import DatasetInfo

_YOURS = ("folder", "text")  # files of the user's, in a folder of the user's
_NEEDED = ("numpy", "sklearn")  # to look for data at all, and the data set that scikit-learn carries


def data_sets() -> Iterator[Finding]:
    """Data sets that need no download, and the folder that downloads go to."""
    absent = [name for name in _NEEDED if find_spec(name) is None]
    if absent:
        found = f"not looked for: that needs {' and '.join(absent)}"
        yield Finding("data sets", "note", found, 'pip install "weightspace[train]"')
        return
    from weightspace.training.data import DATASETS
    from weightspace.training.data.cache import cache_root

    sets = [info for info in DATASETS.values() if info.name not in _YOURS]
    here = {info.name: where for info in sets if (where := found_in(info)) is not None}
    absent = [info.name for info in sets if info.name not in here]
    found = "; ".join(f"{name} ({where})" for name, where in here.items())
    yield Finding("data sets", "ok", f"{found}. Not here: {', '.join(absent)}" if absent else found)
    yield place("data and cache", cache_root(), "set XDG_CACHE_HOME to a folder that you can write to")


def found_in(info: DatasetInfo) -> str | None:
    """Where the first folder with files of a data set is; None if there is no such folder."""
    from weightspace.training.data.locate import search_places

    if info.name in {"digits", "verses"}:
        return "comes along"
    for candidate in search_places(info):
        try:
            if candidate.path.is_dir() and any(candidate.path.iterdir()):
                return str(candidate.path)
        except OSError:  # a folder that nobody may look into holds nothing for us
            continue
    return None
