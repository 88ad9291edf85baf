"""Text as numbers: splitting into tokens, the vocabulary, and the way back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Level = Literal["character", "word"]
LEVELS: tuple[Level, ...] = ("character", "word")
UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"
MIN_COUNT = 3
"""Words that occur less often in the training part are unknown, unless the text was published with its tokens."""

# A run of letters and digits with inner apostrophes, a marker such as <unk>, a line's end, or any other visible mark.
_WORD = re.compile(r"<\w+>|\w+(?:['’]\w+)*|\n|[^\w\s]")


def split_words(text: str, *, is_tokenized: bool = False) -> list[str]:
    r"""Words, punctuation marks and line ends, in order; case is kept.

    Args:
        text: Any text.
        is_tokenized: Whether blanks separate its tokens already, as in published corpora: then nothing else does.

    Returns:
        The tokens; a line's end is `"<eos>"`.

    >>> split_words("Let there be light: and\nthere was.")
    ['Let', 'there', 'be', 'light', ':', 'and', '<eos>', 'there', 'was', '.']
    >>> split_words("it 's N <unk> u.s.\n", is_tokenized=True)
    ['it', "'s", 'N', '<unk>', 'u.s.', '<eos>']
    """
    if is_tokenized:
        return text.replace("\n", f" {END_OF_LINE} ").split()
    return [END_OF_LINE if word == "\n" else word for word in _WORD.findall(text)]


def character_vocabulary(text: str) -> tuple[str, ...]:
    """The unknown symbol, then the characters of a text in the order of their code points.

    >>> character_vocabulary("abba")
    ('<unk>', 'a', 'b')
    """
    return (UNKNOWN, *map(chr, np.unique(_code_points(text)).tolist()))


def word_vocabulary(words: Iterable[str], min_count: int = MIN_COUNT) -> tuple[str, ...]:
    """The unknown symbol, then all words that occur often enough: the most frequent first, equals by alphabet.

    >>> word_vocabulary(["to", "be", "or", "not", "to", "be"], min_count=2)
    ('<unk>', 'be', 'to')
    """
    counts = Counter(words)
    counts.pop(UNKNOWN, None)
    kept = [word for word, count in counts.items() if count >= min_count]
    return (UNKNOWN, *sorted(kept, key=lambda word: (-counts[word], word)))


def encode_characters(text: str, vocabulary: Sequence[str]) -> Tensor:
    """A text as indices into a vocabulary of characters; 0 for those that it lacks.

    Cost: one pass and a table as long as the largest code point, 0.05 s for four million characters.

    Returns:
        `(N,)`, of the smallest integer type that holds every index (`token_type`).

    >>> encode_characters("abc", ("<unk>", "a", "b")).tolist()
    [1, 2, 0]
    """
    points = _code_points(text)
    known = [ord(character) for character in vocabulary[1:]]
    table = np.zeros(max([int(points.max(initial=0)), *known]) + 1, dtype=np.int32)
    table[known] = np.arange(1, len(vocabulary))
    return torch.from_numpy(table[points]).to(token_type(len(vocabulary)))


def encode_words(words: Sequence[str], vocabulary: Sequence[str]) -> Tensor:
    """Words as indices into a vocabulary; 0 for those that it lacks. As `encode_characters` otherwise."""
    index = {word: number for number, word in enumerate(vocabulary)}
    return torch.tensor([index.get(word, 0) for word in words], dtype=token_type(len(vocabulary)))


def decode(tokens: Tensor, vocabulary: tuple[str, ...], level: Level) -> str:
    """Tokens as readable text; words are joined by blanks.

    >>> decode(torch.tensor([2, 1, 1, 2]), ("<unk>", "b", "a"), "character")
    'abba'
    """
    pieces: list[str] = [vocabulary[index] for index in tokens.tolist()]
    return "".join(pieces) if level == "character" else " ".join(pieces).replace(f" {END_OF_LINE} ", "\n")


def token_type(size: int) -> torch.dtype:
    """The smallest integer type for indices into a vocabulary of this size: text stays in memory as a whole.

    >>> token_type(64), token_type(10_000), token_type(33_278)
    (torch.uint8, torch.int16, torch.int32)
    """
    return torch.uint8 if size <= 1 << 8 else torch.int16 if size <= 1 << 15 else torch.int32


def _code_points(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
