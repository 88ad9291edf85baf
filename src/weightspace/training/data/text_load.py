"""`load_text`: find a text by name, or say how to get it, and turn it into tokens."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from weightspace.errors import DataError
from weightspace.training.data.catalog import DATASETS, DatasetInfo
from weightspace.training.data.found import MissingFilesError
from weightspace.training.data.load import unknown_name
from weightspace.training.data.locate import VARIABLE, data_folder, given_root, search_places
from weightspace.training.data.text import TextData
from weightspace.training.data.text_files import (
    BIBLE_COMMAND,
    LAYOUTS,
    FoundText,
    read_bible,
    read_corpus,
    read_text_root,
    read_verses,
    run_bible,
)
from weightspace.training.data.tokens import (
    LEVELS,
    MIN_COUNT,
    Level,
    character_vocabulary,
    encode_characters,
    encode_words,
    split_words,
    word_vocabulary,
)

CONTEXT = 128
"""Tokens in a window where nothing else is asked for."""
_FILES = {
    "bible-kjv": f"a text file with what `{' '.join(BIBLE_COMMAND)}` prints",
    "wikitext-2": "wiki.train.tokens and wiki.test.tokens (or .raw), or the hub's train*.parquet and test*.parquet",
    "penn-treebank": "ptb.train.txt and ptb.test.txt, or the hub's train*.parquet and test*.parquet",
}


def load_text(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    level: Level = "character",
    context: int = CONTEXT,
    min_count: int | None = None,
) -> TextData:
    """Load a text by name and turn it into tokens. Nothing is downloaded.

    Looked for in `root` only, if given. Else in `$WEIGHTSPACE_DATA/<name>`, `~/.cache/weightspace/data/<name>`, what
    system packages bring and the caches of Hugging Face, in this order.

    Args:
        name: `"verses"` (12,000 characters that come with the package), `"bible-kjv"`, `"wikitext-2"`,
            `"penn-treebank"`, or `"text"` for a UTF-8 file of yours (which needs `root`).
        root: File or folder of the text.
        level: `"character"`: the vocabulary is the characters of the training text. `"word"`: words, punctuation marks
            and line ends; texts that were published as tokens are split at their blanks.
        context: Tokens in a window.
        min_count: Words that occur less often in the training text are unknown; `None`: 3, and 1 for texts that were
            published as tokens.

    Raises:
        DataError: Unknown name or level; a damaged, empty or short text; or nothing found, with the ways to get it.

    >>> load_text("verses", context=32)  # doctest: +ELLIPSIS
    TextData(103 verses, characters: 11,191 training and 1,245 test characters, vocabulary of 53, context 32; ...)
    """
    info = DATASETS.get(name)
    if info is None:
        raise unknown_name(name)
    if info.kind != "text":
        raise DataError(f"The data set {name!r} is images: load it with load_data({name!r}).")
    if level not in LEVELS:
        raise DataError(f"level={level!r} is unknown: choose 'character' or 'word'.")
    place = given_root(root) if root is not None else None
    found = _search(info, level) if place is None else _read_root(info, place, level)
    return to_text_data(info, found, level=level, context=context, min_count=min_count)


def to_text_data(
    info: DatasetInfo, found: FoundText, *, level: Level, context: int, min_count: int | None = None
) -> TextData:
    """Turn a text as read into tokens, and say in one line what was done.

    Args:
        info: The data set.
        found: Its text.
        level: What a token is.
        context: Tokens in a window.
        min_count: See `load_text`.

    Raises:
        DataError: A part of the text is too short.
    """
    least = min_count if min_count is not None else 1 if found.is_tokenized else MIN_COUNT
    if level == "character":
        vocabulary = character_vocabulary(found.train)
        train, test = (encode_characters(part, vocabulary) for part in (found.train, found.test))
    else:
        words = [split_words(part, is_tokenized=found.is_tokenized) for part in (found.train, found.test)]
        vocabulary = word_vocabulary(words[0], least)
        train, test = (encode_words(part, vocabulary) for part in words)
    unknown = int((test == 0).sum())
    notes = [f"{unknown:,} of {len(test):,} test {level}s unknown"] if unknown else []
    if level == "word" and least > 1:
        notes.insert(0, f"words that occur less than {least} times are unknown")
    title = info.title if info.name != "text" else found.what.rpartition("/")[2]
    return TextData(
        info.name,
        train,
        test,
        vocabulary,
        context,
        level,
        source="; ".join([found.what, *found.notes, *notes]),
        label=f"{title}, {level}s",
        characters_per_token=len(found.test) / max(1, len(test)) if level == "word" else 1.0,
    )


def _read_root(info: DatasetInfo, root: Path, level: Level) -> FoundText:
    if info.name == "verses":
        raise DataError('The text "verses" comes with weightspace and takes no root=: leave it out.')
    if not root.exists():
        raise DataError(
            f"root={str(root)!r} for the data set {info.name!r} does not exist; give the folder or file that holds it."
        )
    if info.name == "text":
        return read_text_root(root)
    found = read_bible(root) if info.name == "bible-kjv" else read_corpus(info.name, root, level, owned=True)
    if found is None:
        raise DataError(f"root={str(root)!r} holds no {info.title} in a known format: wanted is {_FILES[info.name]}.")
    return found


def _search(info: DatasetInfo, level: Level) -> FoundText:
    if info.name == "verses":
        return read_verses()
    if info.name == "text":
        raise DataError('The data set "text" needs root=: a UTF-8 text file, or a folder with train.txt and test.txt.')
    skipped: list[str] = []
    places = search_places(info)
    for place in places:
        if not place.path.is_dir():
            continue
        try:
            found = _read_place(info, place.path, level, owned=place.owned)
        except DataError as error:
            # As with images: what is damaged in a place of the user's must not go unnoticed.
            if place.owned and not isinstance(error, MissingFilesError):
                raise
            skipped.append(f"passed over {place.path}: {error}")
            continue
        if found is not None:
            return replace(found, notes=(*found.notes, *skipped))
    program = shutil.which(BIBLE_COMMAND[0]) if info.name == "bible-kjv" else None
    if program is not None:
        try:
            return run_bible(program)
        except DataError as error:
            skipped.append(str(error))
    raise DataError(_ways(info, ", ".join(str(place.path) for place in places), skipped))


def _read_place(info: DatasetInfo, path: Path, level: Level, *, owned: bool) -> FoundText | None:
    if info.name in LAYOUTS:
        return read_corpus(info.name, path, level, owned=owned)
    return read_bible(path)


def _ways(info: DatasetInfo, looked: str, skipped: list[str]) -> str:
    """One sentence: where it was looked for, what failed, and every way to get the text."""
    ways = [f"run `{info.system_package}`"] if info.system_package else []
    ways.append(f"put {_FILES[info.name]} into {data_folder(info)}")
    ways.append("pass root= (in a recipe: data.root) with the file or folder that holds them")
    ways.append(f"set {VARIABLE} to a folder that has them in {info.name}/")
    if info.hub_names:
        ways.append(
            f"where there is a network, run `hf download --repo-type dataset {info.hub_names[0]}`, which fills the "
            "cache of Hugging Face"
        )
    remarks = f" ({'; '.join(skipped)})" if skipped else ""
    return (
        f"The data set {info.name!r} was not found; looked in {looked}{remarks}; texts are not downloaded: "
        f"to get it, {'; or '.join(ways)}."
    )
