"""Reads texts from files: plain ones, published corpora in the layouts they come in, the King James Bible."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from weightspace.errors import DataError
from weightspace.training.data.found import MissingFilesError, read_bytes
from weightspace.training.data.parquet import read_table_file, values_of
from weightspace.training.data.tokens import Level

VERSES = 31_102
BIBLE_SHA256 = "376f0fd8429cec6cc77659d428b2debd01f069dbfb3917776a09a36a7cfed5c4"
BIBLE_COMMAND = ("bible", "-f", "gen1:1-rev22:21")
_REFERENCE = re.compile(r"^\d?[A-Za-z]+\d+:\d+ ")
_TEST_SHARE = 10  # one part in so many is the test text
_NEAR = 100  # characters before the cut among which a blank is looked for


@dataclass(frozen=True)
class FoundText:
    """A text as read, not yet divided into tokens.

    Attributes:
        train: Training text.
        test: Test text.
        what: Format and place.
        is_tokenized: Whether blanks separate its tokens already.
        notes: Further remarks for the `source` line.
    """

    train: str
    test: str
    what: str
    is_tokenized: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How a published corpus lies on disks.

    Attributes:
        pairs: File names of training and test text.
        folders: Folders below the place, or above the files in caches of other programs, by level: the first that
            holds the corpus is taken.
        column: Its column in parquet and arrow files.
    """

    pairs: tuple[tuple[str, str], ...]
    folders: dict[Level, tuple[str, ...]]
    column: str


LAYOUTS = {
    "wikitext-2": Layout(
        (("wiki.train.tokens", "wiki.test.tokens"), ("wiki.train.raw", "wiki.test.raw")),
        {
            "word": ("wikitext-2", "wikitext-2-v1", "wikitext-2-raw", "wikitext-2-raw-v1"),
            "character": ("wikitext-2-raw", "wikitext-2-raw-v1", "wikitext-2", "wikitext-2-v1"),
        },
        "text",
    ),
    "penn-treebank": Layout(
        (("ptb.train.txt", "ptb.test.txt"),),
        dict.fromkeys(("word", "character"), ("simple-examples/data", "data", "penn_treebank")),
        "sentence",
    ),
}


def read_text_root(root: Path) -> FoundText:
    """Read a text file, dividing it by position; or a folder with `train.txt` and `test.txt` (or `valid.txt`).

    Raises:
        DataError: Neither is there, or a file is empty or not UTF-8.
    """
    if root.is_file():
        train, test = divided(read_utf8(root), str(root))
        return FoundText(train, test, f"text file {root}", notes=(_division(),))
    test = next((root / name for name in ("test.txt", "valid.txt") if (root / name).is_file()), None)
    if not (root / "train.txt").is_file() or test is None:
        raise DataError(
            f"root={str(root)!r} is no text: wanted is a UTF-8 text file, or a folder with train.txt and test.txt (or "
            "valid.txt)."
        )
    return FoundText(read_utf8(root / "train.txt"), read_utf8(test), f"train.txt and {test.name} at {root}")


def read_verses() -> FoundText:
    """The 12,000 characters of the King James Bible that come with the package."""
    text = resources.files("weightspace.training.data").joinpath("verses.txt").read_text(encoding="utf-8")
    train, test = divided(text, "verses")
    return FoundText(train, test, "103 verses that come with weightspace", notes=(_division(),))


def read_corpus(name: str, place: Path, level: Level, *, owned: bool) -> FoundText | None:
    """Read WikiText-2 or the Penn Treebank from one place.

    Args:
        name: A key of `LAYOUTS`.
        place: A folder; a file stands for the folder it lies in.
        level: Decides which version of WikiText-2 is preferred: the one with `<unk>` for words, the raw one for
            characters.
        owned: Whether all that lies there is this corpus; in caches of other programs a folder must say so.

    Returns:
        The text; None if there is none.

    Raises:
        DataError: One of two files is missing, damaged or not UTF-8.
    """
    layout = LAYOUTS[name]
    place = place.parent if place.is_file() else place
    below = [place / folder for folder in layout.folders[level]]
    is_named = owned or any(folder in place.parts for folder in layout.folders[level])
    for folder in [place, *below] if is_named else below:
        found = _read_pair(layout, folder) or _read_tables(layout, folder)
        if found is not None:
            return found
    return None


def read_bible(place: Path) -> FoundText | None:
    """Read the King James Bible from a text file, or from the only one in a folder, a verse a line.

    References at the beginning of lines, as the command `bible -f` prints them, are left out.

    Returns:
        The text; None if there is no such file.

    Raises:
        DataError: There are several files, or other than 31,102 verses.
    """
    files = [place] if place.is_file() else sorted(place.glob("*.txt"))
    if len(files) > 1:
        raise DataError(f"{place} holds several texts ({files[0].name}, {files[1].name}, ...): keep one of them there.")
    return _bible(read_utf8(files[0]), f"text file {files[0]}") if files else None


def run_bible(program: str) -> FoundText:
    """What the command `bible` of Debian's package bible-kjv prints.

    Raises:
        DataError: The command fails or prints something else.
    """
    command = [program, *BIBLE_COMMAND[1:]]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL)  # noqa: S603 - a constant
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"`{' '.join(BIBLE_COMMAND)}` failed: {error}.") from error
    return _bible(_decoded(done.stdout, "what it printed"), f"the command `{' '.join(BIBLE_COMMAND)}`")


def normalized_verses(text: str) -> str:
    r"""A verse a line, without references, blanks single.

    >>> normalized_verses("Ge1:1 In the  beginning\n\n1Chr1:1 Adam,\r\n")
    'In the beginning\nAdam,\n'
    """
    verses = (" ".join(_REFERENCE.sub("", line.strip()).split()) for line in text.splitlines())
    return "".join(f"{verse}\n" for verse in verses if verse)


def read_utf8(path: Path) -> str:
    """A text file with line feeds as line ends, without a byte order mark.

    Raises:
        DataError: It cannot be read, is empty or not UTF-8.
    """
    text = _decoded(read_bytes(path), str(path))
    if not text.strip():
        raise DataError(f"{path} holds no text; give a file that does.")
    return text


def divided(text: str, name: str) -> tuple[str, str]:
    """The first nine tenths of a text and the rest, cut behind a blank if one is near.

    Raises:
        DataError: There are fewer than ten characters.

    >>> divided("one two three four five six", "a text")
    ('one two three four five ', 'six')
    """
    if len(text) < _TEST_SHARE:
        raise DataError(f"{name} has {len(text)} characters: too few to divide into a training and a test part.")
    cut = len(text) - len(text) // _TEST_SHARE
    near = [position for position in range(max(1, cut - _NEAR), cut + 1) if text[position - 1].isspace()]
    # A cut that would leave no training text to speak of is worse than one inside a word.
    cut = near[-1] if near and near[-1] > cut // 2 else cut
    return text[:cut], text[cut:]


def _division() -> str:
    return "divided by position: the last tenth is the test text"


def _bible(text: str, what: str) -> FoundText:
    whole = normalized_verses(text)
    count = whole.count("\n")
    if count != VERSES:
        raise DataError(
            f"{what} holds {count:,} verses, but the King James Bible has {VERSES:,}: give all of it, a verse a line, "
            f"as `{' '.join(BIBLE_COMMAND)}` prints it; for any other text use name: text."
        )
    agrees = hashlib.sha256(whole.encode()).hexdigest() == BIBLE_SHA256
    note = f"31,102 verses, check sum {'verified' if agrees else 'OTHER than that of the Debian package'}"
    train, test = divided(whole, what)
    return FoundText(train, test, what, notes=(note, _division()))


def _decoded(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start:,}; save it as UTF-8."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_pair(layout: Layout, folder: Path) -> FoundText | None:
    for names in layout.pairs:
        there = [(folder / name).is_file() for name in names]
        if all(there):
            train, test = (read_utf8(folder / name) for name in names)
            return FoundText(train, test, f"{names[0]} and {names[1]} at {folder}", is_tokenized=True)
        if any(there):
            raise MissingFilesError(
                f"{folder / names[there.index(False)]} is missing beside {folder / names[there.index(True)]}; "
                "put it there."
            )
    return None


def _read_tables(layout: Layout, folder: Path) -> FoundText | None:
    """Training and test part from `train*.parquet`, `train/*.parquet` or `*-train*.arrow`."""
    for pattern in ("{}*.parquet", "{}/*.parquet", "*-{}*.arrow"):
        train, test = (sorted(folder.glob(pattern.format(part))) for part in ("train", "test"))
        if train and test:
            what = f"{train[0].suffix[1:]} at {folder}"
            return FoundText(_rows(train, layout.column), _rows(test, layout.column), what, is_tokenized=True)
        if train or test:
            raise MissingFilesError(
                f"{folder} holds {(train or test)[0].name}, but not the other part of the corpus; put it there."
            )
    return None


def _rows(files: Sequence[Path], column: str) -> str:
    lines: list[str] = []
    for file in files:
        values: Iterable[object] = values_of(read_table_file(file), file, (column,))
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise DataError(f"{file}, row {row}: expected text, found {type(value).__name__}.")
            lines.append(value.rstrip("\n") + "\n")
    if not lines:
        raise DataError(f"{files[0]} holds no rows; get the file anew.")
    return "".join(lines)
