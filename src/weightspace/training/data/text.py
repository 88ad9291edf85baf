"""`TextData`: a whole text in memory as tokens, with its vocabulary, cut into windows of one length."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from weightspace.errors import DataError
from weightspace.training.data.text_batches import TextBatches, window_count
from weightspace.training.data.tokens import LEVELS, Level, decode

# Numbers of logits at a time in evaluation. A CPU wants what fits its cache, an accelerator wants many.
_LOGITS_ON_CPU, _LOGITS = 1 << 21, 1 << 25


@dataclass(frozen=True, eq=False, repr=False)
class TextData:
    """A text that lives in memory as one tensor of tokens per part.

    Attributes:
        name: Name by which `load_text` knows it, such as `"wikitext-2"`.
        train_tokens: Integers `(N,)`, indices into the vocabulary.
        test_tokens: Integers `(M,)`.
        vocabulary: The tokens as text; the first is the unknown symbol.
        context: Tokens in a window: a model sees at most so many before the one it predicts.
        level: Whether tokens are characters or words.
        source: One line that says where the text was found and what was done to it. It goes into reports.
        label: Name for titles; `name` where none is given.
        characters_per_token: Mean number of characters that a token of the test part stands for; 1 for characters.

    Raises:
        DataError: Tokens have the wrong type or range, or a part is too short for one window.
    """

    name: str
    train_tokens: Tensor
    test_tokens: Tensor
    vocabulary: tuple[str, ...]
    context: int
    level: Level
    source: str
    label: str = ""
    characters_per_token: float = 1.0

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if self.level not in LEVELS:
            raise DataError(f"{self.name}: level={self.level!r} is unknown: choose 'character' or 'word'.")
        if isinstance(self.context, bool) or self.context < 1:
            raise DataError(f"{self.name}: context must be an integer of at least 1, not {self.context!r}.")
        for part, tokens, least in (("training", self.train_tokens, self.context + 1), ("test", self.test_tokens, 2)):
            _check_tokens(self.name, part, tokens, len(self.vocabulary), self.level)
            if len(tokens) < least:
                needed = f"a window of context={self.context:,} takes {least:,}" if least > 2 else "2 are needed"
                raise DataError(
                    f"{self.name}: the {part} text has {len(tokens):,} {self.level}s, but {needed}; "
                    "choose a smaller context or a longer text."
                )

    def __repr__(self) -> str:
        return (
            f"TextData({self.label}: {len(self.train_tokens):,} training and {len(self.test_tokens):,} test "
            f"{self.level}s, vocabulary of {self.num_classes:,}, context {self.context}; {self.source})"
        )

    @property
    def kind(self) -> Literal["text"]:
        """`"text"`."""
        return "text"

    @property
    def num_classes(self) -> int:
        """Size of the vocabulary: every token is a class."""
        return len(self.vocabulary)

    @property
    def samples(self) -> int:
        """Training windows in an epoch."""
        return window_count(len(self.train_tokens), self.context, shuffle=True)

    @property
    def num_data(self) -> int:
        """Terms of the likelihood, which the training loss is the mean of: training tokens, but for the first."""
        return len(self.train_tokens) - 1

    @property
    def model_arguments(self) -> dict[str, int]:
        """What `build_model` needs to know of the data."""
        return {"vocabulary": self.num_classes, "context": self.context}

    @property
    def checksum(self) -> str:
        """`"sha256:..."` of tokens, vocabulary and context. Cost: one pass; computed once."""
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        digest = hashlib.sha256(f"{self.level}:{self.context}:".encode())
        digest.update("\0".join(self.vocabulary).encode("utf-8", "surrogatepass"))
        for tokens in (self.train_tokens, self.test_tokens):
            digest.update(f":{len(tokens)}:".encode())
            digest.update(tokens.to(torch.int32).contiguous().numpy().data)
        return f"sha256:{digest.hexdigest()}"

    def take(self, train: int | None, test: int | None = None, *, seed: int = 0) -> TextData:
        """Keep the beginning of each part; the vocabulary stays.

        Args:
            train: Training tokens to keep; `None` keeps all.
            test: Test tokens to keep; `None` keeps all.
            seed: Has no effect: a text has one beginning. It is there because `ImageData` draws.

        Raises:
            DataError: More tokens are asked for than there are, or fewer than a window takes.
        """
        if train is None and test is None:
            return self
        parts = {"training": (self.train_tokens, train), "test": (self.test_tokens, test)}
        for part, (tokens, size) in parts.items():
            if size is not None and not 1 <= size <= len(tokens):
                raise DataError(
                    f"A subset of {size:,} {part} {self.level}s was asked for, but the text has {len(tokens):,}: "
                    f"choose a number between 1 and {len(tokens):,}."
                )
        kept = [tokens[:size] for tokens, size in parts.values()]
        note = f"the first {len(kept[0]):,} training and {len(kept[1]):,} test {self.level}s"
        return replace(self, train_tokens=kept[0], test_tokens=kept[1], source=f"{self.source}; {note}")

    def hold_out(self, fraction: float, *, seed: int) -> TextData:
        """Put the end of the training text in the place of the test text; the vocabulary stays.

        Tuning on the result never sees the test text. A text is divided by position, not at random: neighboring
        windows share sentences.

        Args:
            fraction: Part of the training text to hold out, strictly between 0 and 1.
            seed: Has no effect, for the same reason.

        Raises:
            DataError: One of the two parts would be too short.
        """
        size = round(fraction * len(self.train_tokens)) if 0.0 < fraction < 1.0 else 0
        kept = len(self.train_tokens) - size
        if size < 2 or kept <= self.context:
            raise DataError(
                f"hold_out(fraction={fraction}) of {len(self.train_tokens):,} {self.level}s leaves a part too short "
                f"for windows of {self.context:,}: choose a fraction strictly between 0 and 1, or a smaller context."
            )
        note = f"the last {size:,} of the training {self.level}s held out as test text"
        return replace(
            self,
            train_tokens=self.train_tokens[:kept],
            test_tokens=self.train_tokens[kept:],
            source=f"{self.source}; {note}",
        )

    def train_batches(
        self, *, batch_size: int, seed: int, device: torch.device | str, augment: Sequence[str] = ()
    ) -> TextBatches:
        """Batches to train on: windows of the training text, shuffled, a smaller last batch left out.

        Raises:
            DataError: There are fewer windows than a batch, or augmentations, which only images have.
        """
        if augment:
            raise DataError(f"Text has no augmentations, but augment={tuple(augment)} was asked for: leave it out.")
        return TextBatches(self.train_tokens, context=self.context, batch_size=batch_size, seed=seed, device=device)

    def test_batches(self, *, device: torch.device | str) -> TextBatches:
        """Batches of the test text in order: every token but the first is a label once.

        The first tokens of a window are predicted from few before them, so that the loss is slightly above that of
        sliding windows.
        """
        room = _LOGITS_ON_CPU if torch.device(device).type == "cpu" else _LOGITS
        return TextBatches(
            self.test_tokens,
            context=self.context,
            batch_size=max(1, room // (self.context * self.num_classes)),
            seed=0,
            device=device,
            shuffle=False,
            drop_last=False,
        )

    def test_metrics(self, test_loss: float) -> dict[str, float]:
        """Perplexity, which is e to the loss, and bits per character.

        With words, unknown ones cost less than their characters would, and `characters_per_token` is that of the whole
        test text: then bits per character are for orientation only.

        Args:
            test_loss: Mean loss per token in nats.
        """
        perplexity = math.inf if test_loss > 700.0 else math.exp(test_loss)
        return {
            "perplexity": perplexity,
            "bits_per_character": test_loss / (math.log(2.0) * self.characters_per_token),
        }

    def describe(self) -> dict[str, Any]:
        """Facts for run records: name, label, source, sizes, classes and check sum."""
        return {
            "name": self.name,
            "label": self.label,
            "source": self.source,
            "unit": f"{self.level}s",
            "train": len(self.train_tokens),
            "test": len(self.test_tokens),
            "samples": self.samples,
            "context": self.context,
            "classes": self.num_classes,
            "checksum": self.checksum,
        }

    def decode(self, tokens: Tensor) -> str:
        """Tokens `(N,)` as readable text."""
        return decode(tokens, self.vocabulary, self.level)


def _check_tokens(name: str, part: str, tokens: Tensor, size: int, level: Level) -> None:
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype is torch.bool:
        raise DataError(
            f"{name}: {part} tokens must be integers of shape (N,), not {tokens.dtype} of {tuple(tokens.shape)}."
        )
    if tokens.numel() == 0:
        raise DataError(f"{name}: there are no {part} {level}s; choose a longer text.")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= size:
        raise DataError(f"{name}: {part} tokens must be in 0..{size - 1}, but they range from {low} to {high}.")
