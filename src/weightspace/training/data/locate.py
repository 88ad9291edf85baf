"""Where data sets are looked for, in which order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from weightspace.errors import DataError, shortened
from weightspace.training.data.cache import cache_root
from weightspace.training.data.catalog import DatasetInfo

VARIABLE = "WEIGHTSPACE_DATA"


@dataclass(frozen=True)
class Place:
    """One place to look.

    Attributes:
        path: A folder.
        owned: Whether the user put the data there for us. Damage there is an error; in a place that others fill
            (system packages, caches of other programs) it is a remark, and the search goes on.
    """

    path: Path
    owned: bool


def given_root(root: str | os.PathLike[str]) -> Path:
    """The place that `root=` names; whether anything is there is the caller's question.

    Raises:
        DataError: The system cannot have such a place (a name too long, a zero byte), or does not let us look.
    """
    path = Path(os.path.expanduser(os.fspath(root)))  # noqa: PTH111 - Path.expanduser raises where there is no home
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"root={shortened(str(root))} cannot be read: {reason.lower()}.") from error
    return path


def data_folder(info: DatasetInfo, environ: Mapping[str, str] | None = None) -> Path:
    """Where downloads go: `$WEIGHTSPACE_DATA/<name>` if set, else `<cache>/weightspace/data/<name>`."""
    values = os.environ if environ is None else environ
    if values.get(VARIABLE):
        return Path(os.path.expanduser(values[VARIABLE])) / info.name  # noqa: PTH111 - Path.expanduser raises where there is no home
    return cache_root(values) / "data" / info.name


def search_places(info: DatasetInfo, environ: Mapping[str, str] | None = None) -> list[Place]:
    """Every place where the data set may be, whether it exists or not, in the order of the search.

    1. `$WEIGHTSPACE_DATA/<name>`, 2. `$XDG_CACHE_HOME/weightspace/data/<name>` (`~/.cache` by default), 3. system
    packages, 4. the Hugging Face hub's cache, 5. the cache of Hugging Face's `datasets` library.
    """
    values = os.environ if environ is None else environ
    places = [Place(data_folder(info, values), owned=True)]
    default = Place(cache_root(values) / "data" / info.name, owned=True)
    if default not in places:
        places.append(default)
    places.extend(Place(Path(folder), owned=False) for folder in info.system_folders)
    places.extend(Place(path, owned=False) for path in _hub_folders(info, values))
    places.extend(Place(path, owned=False) for path in _datasets_folders(info, values))
    return places


def hugging_face_home(environ: Mapping[str, str]) -> Path:
    """`$HF_HOME`, or `$XDG_CACHE_HOME/huggingface`, or `~/.cache/huggingface`."""
    return Path(environ["HF_HOME"]) if environ.get("HF_HOME") else cache_root(environ).parent / "huggingface"


def _hub_folders(info: DatasetInfo, environ: Mapping[str, str]) -> Iterator[Path]:
    """Snapshots in the hub's cache, the one that `main` points to first, then the newest."""
    cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    root = Path(cache) if cache else hugging_face_home(environ) / "hub"
    for name in info.hub_names:
        folder = root / f"datasets--{name.replace('/', '--')}"
        snapshots = _subfolders(folder / "snapshots")
        if not snapshots:
            yield folder
        main = _first_line(folder / "refs" / "main")
        yield from sorted(snapshots, key=lambda path: path.name != main)


def _datasets_folders(info: DatasetInfo, environ: Mapping[str, str]) -> Iterator[Path]:
    """Folders `<name>/<configuration>/<version>/<hash>` of the `datasets` library, the newest first."""
    cache = environ.get("HF_DATASETS_CACHE")
    root = Path(cache) if cache else hugging_face_home(environ) / "datasets"
    for name in info.hub_names:
        folder = root / name.replace("/", "___")
        versions = {path.parent for path in folder.glob("*/*/*/*.arrow")}
        if not versions:
            yield folder
        yield from sorted(versions, key=_age)


def _subfolders(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*") if path.is_dir()), key=_age)


def _age(path: Path) -> tuple[float, str]:
    return -path.stat().st_mtime, path.name


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
