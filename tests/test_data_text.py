"""Texts: files in every layout, odd texts, tokens and the way back, windows and their order, parts, check sums."""

from __future__ import annotations

import hashlib
import math
import stat
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import DataError
from weightspace.training.data import TextBatches, TextData, load_data, load_text
from weightspace.training.data import text_load as load_module
from weightspace.training.data.text_files import VERSES, divided, normalized_verses
from weightspace.training.data.tokens import (
    UNKNOWN,
    character_vocabulary,
    decode,
    encode_characters,
    encode_words,
    split_words,
    token_type,
    word_vocabulary,
)

TEXT = "In the beginning God created the heaven and the earth.\n" * 40


@pytest.fixture(autouse=True)
def _empty_machine(tmp_path, monkeypatch):
    """No text of this machine is found, and no program, unless a test says so."""
    for name in ("WEIGHTSPACE_DATA", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def text_file(folder, data, name="a.txt"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def put(folder, files):
    for name, content in files.items():
        text_file(folder, content, name)
    return folder


# ---------------------------------------------------------------- tokens


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_characters_come_back(text):
    vocabulary = character_vocabulary(text)
    assert vocabulary == (UNKNOWN, *sorted(set(text)))
    tokens = encode_characters(text, vocabulary)
    assert tokens.tolist() == [vocabulary.index(character, 1) for character in text]  # a slow reference
    assert decode(tokens, vocabulary, "character") == text


@settings(max_examples=40, deadline=None)
@given(train=st.text("abc", min_size=1), test=st.text("abcdeé𝄞"))
def test_characters_that_training_lacks_are_unknown(train, test):
    vocabulary = character_vocabulary(train)
    found = encode_characters(test, vocabulary).tolist()
    assert [index == 0 for index in found] == [character not in train for character in test]


def test_words_punctuation_and_line_ends():
    assert split_words("Don't stop—it's 5,5 <unk>!\n\n") == [
        *("Don't", "stop", "—", "it's", "5", ",", "5", "<unk>", "!", "<eos>", "<eos>"),
    ]
    assert split_words(" no it was n't \n the @-@ end \n", is_tokenized=True) == [
        *("no", "it", "was", "n't", "<eos>", "the", "@-@", "end", "<eos>"),
    ]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(["a", "b", "c", "d", UNKNOWN]), max_size=30), least=st.integers(1, 4))
def test_rare_words_are_unknown(words, least):
    vocabulary = word_vocabulary(words, least)
    counts = Counter(word for word in words if word != UNKNOWN)
    assert vocabulary[0] == UNKNOWN
    assert set(vocabulary[1:]) == {word for word, count in counts.items() if count >= least}
    assert [counts[word] for word in vocabulary[1:]] == sorted((counts[word] for word in vocabulary[1:]), reverse=True)
    tokens = encode_words(words, vocabulary)
    assert [vocabulary[i] for i in tokens.tolist()] == [word if word in vocabulary else UNKNOWN for word in words]


@pytest.mark.parametrize(
    ("size", "dtype"), [(256, torch.uint8), (257, torch.int16), (32_768, torch.int16), (32_769, torch.int32)]
)
def test_the_type_of_tokens_holds_every_index(size, dtype):
    assert token_type(size) is dtype
    assert int(torch.tensor([size - 1]).to(dtype)) == size - 1


# ---------------------------------------------------------------- sources


def test_a_file_is_divided_by_position(tmp_path):
    data = load_text("text", root=text_file(tmp_path, TEXT), context=8)
    joined = data.decode(data.train_tokens) + data.decode(data.test_tokens)
    assert joined == TEXT
    assert abs(len(data.test_tokens) - len(TEXT) / 10) <= 100
    assert data.label == "a.txt, characters"
    assert "divided by position" in data.source


def test_a_folder_has_its_own_division(tmp_path):
    put(tmp_path, {"train.txt": "abcabcabcabc", "valid.txt": "cabd"})
    data = load_text("text", root=tmp_path, context=4)
    assert (data.decode(data.train_tokens), data.decode(data.test_tokens)) == ("abcabcabcabc", "cab<unk>")
    assert "1 of 4 test characters unknown" in data.source
    put(tmp_path, {"test.txt": "bb"})
    assert (
        load_text("text", root=tmp_path, context=4).decode(load_text("text", root=tmp_path, context=4).test_tokens)
        == "bb"
    )


def test_line_ends_and_byte_order_marks_do_not_count(tmp_path):
    one = load_text("text", root=text_file(tmp_path, "ab\ncd\n" * 20), context=4)
    other = load_text("text", root=text_file(tmp_path / "dos", b"\xef\xbb\xbf" + b"ab\r\ncd\r\n" * 20), context=4)
    assert one.checksum == other.checksum


def test_a_text_without_a_last_line_end_is_whole(tmp_path):
    data = load_text("text", root=text_file(tmp_path, "abcdefghij" * 3), context=4)
    assert data.decode(data.test_tokens).endswith("j")


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (b"", {}, "holds no text"),
        (b" \n\n ", {}, "holds no text"),
        (b"a", {}, "has 1 characters: too few to divide"),
        (b"abcd\xff\xfe", {}, "is not UTF-8 text: byte 0xff at position 4; save it as UTF-8"),
        (
            b"abcdefghijklmnopqrst",
            {"context": 64},
            "the training text has 18 characters, but a window of context=64 takes 65",
        ),
        (b"abcdefghijk", {"context": 2}, "the test text has 1 characters, but 2 are needed"),
        (b"abcdefghij" * 3, {"context": 0}, "context must be an integer of at least 1, not 0"),
        (b"abcdefghij" * 3, {"level": "letter"}, "level='letter' is unknown: choose 'character' or 'word'"),
    ],
)
def test_odd_texts_are_refused_in_one_sentence(tmp_path, content, options, sentence):
    with pytest.raises(DataError, match=sentence.replace("(", r"\(")):
        load_text("text", root=text_file(tmp_path, content), **options)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60), level=st.sampled_from(["character", "word"]), context=st.integers(1, 20))
def test_any_bytes_are_a_text_or_an_error(tmp_path_factory, content, level, context):
    path = text_file(tmp_path_factory.mktemp("any"), content)
    try:
        data = load_text("text", root=path, level=level, context=context, min_count=1)
    except DataError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert "\n" not in refusal
        return
    inputs, labels = next(data.train_batches(batch_size=1, seed=0, device="cpu").epoch(0))
    assert inputs.shape == labels.shape == (1, context)
    assert sum(labels.numel() for _, labels in data.test_batches(device="cpu").epoch(0)) == len(data.test_tokens) - 1


def test_missing_roots_and_names(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_text("text", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"needs root=: a UTF-8 text file"):
        load_text("text")
    with pytest.raises(DataError, match=r"is no text: wanted is a UTF-8 text file, or a folder with train.txt"):
        load_text("text", root=tmp_path)
    with pytest.raises(DataError, match="Did you mean 'wikitext-2'"):
        load_text("wikitext2")
    with pytest.raises(DataError, match=r"is images: load it with load_data\('digits'\)"):
        load_text("digits")
    with pytest.raises(DataError, match=r"is text: load it with load_text\('verses'\)"):
        load_data("verses")
    with pytest.raises(DataError, match="takes no root"):
        load_text("verses", root=tmp_path)


def test_verses_come_with_the_package():
    data = load_text("verses", context=32)
    assert (len(data.train_tokens), len(data.test_tokens), data.num_classes) == (11_191, 1_245, 53)
    assert data.decode(data.train_tokens[:24]) == "In the beginning God cre"


WIKI = {"wiki.train.tokens": " \n = A = \n \n the <unk> @-@ the \n" * 4, "wiki.test.tokens": " the sea \n" * 3}


def test_wikitext_is_split_at_its_blanks(tmp_path):
    data = load_text("wikitext-2", root=put(tmp_path, WIKI), level="word", context=8)
    assert data.vocabulary == (UNKNOWN, "<eos>", "=", "the", "@-@", "A")
    assert data.decode(data.test_tokens) == "the <unk>\nthe <unk>\nthe <unk> <eos>"
    assert data.characters_per_token == pytest.approx(30 / 9)


def test_wikitext_prefers_raw_text_for_characters_and_tokens_for_words(tmp_path):
    put(tmp_path / "wikitext-2", {name: content.replace("A", "tokens") for name, content in WIKI.items()})
    put(
        tmp_path / "wikitext-2-raw",
        {name.replace("tokens", "raw"): content.replace("A", "raw") for name, content in WIKI.items()},
    )
    words = load_text("wikitext-2", root=tmp_path, level="word", context=8)
    characters = load_text("wikitext-2", root=tmp_path, context=8)
    assert ("tokens" in words.decode(words.train_tokens), "raw" in characters.decode(characters.train_tokens)) == (
        True,
        True,
    )


def test_penn_treebank_in_its_layout(tmp_path):
    files = {"ptb.train.txt": " no it was n't black monday \n" * 5, "ptb.test.txt": " it was <unk> \n" * 3}
    data = load_text(
        "penn-treebank", root=put(tmp_path / "simple-examples" / "data", files).parents[1], level="word", context=8
    )
    assert data.decode(data.test_tokens[:4]) == "it was <unk> <eos>"
    (tmp_path / "simple-examples" / "data" / "ptb.test.txt").unlink()
    with pytest.raises(DataError, match=r"ptb.test.txt is missing"):
        load_text("penn-treebank", root=tmp_path)


def put_tables(folder, column, suffix="parquet"):
    folder.mkdir(parents=True)
    for part, rows in (("train", ["", " the sea \n", " a sea\n"] * 9), ("test", [" the sea \n"] * 3)):
        table = pa.table({column: rows})
        if suffix == "parquet":
            pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
        else:
            with (
                pa.OSFile(str(folder / f"wikitext-{part}.arrow"), "wb") as sink,
                pa.ipc.new_stream(sink, table.schema) as out,
            ):
                out.write_table(table)


def test_the_caches_of_hugging_face_are_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    snapshot = tmp_path / "hf" / "hub" / "datasets--Salesforce--wikitext" / "snapshots" / "abc"
    put_tables(snapshot / "wikitext-103-v1", "text")
    with pytest.raises(DataError, match="was not found"):
        load_text("wikitext-2", level="word", context=8)  # another corpus of the same repository
    put_tables(snapshot / "wikitext-2-v1", "text")
    data = load_text("wikitext-2", level="word", context=8)
    assert data.decode(data.test_tokens[:3]) == "the sea <eos>"
    assert "parquet at" in data.source


def test_the_cache_of_the_datasets_library_is_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "ds"))
    put_tables(tmp_path / "ds" / "Salesforce___wikitext" / "wikitext-2-v1" / "0.0.0" / "abc", "text", "arrow")
    assert load_text("wikitext-2", level="word", context=8).decode(torch.tensor([1])) == "<eos>"


def test_the_folder_of_the_variable_comes_first_and_damage_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(tmp_path / "mine"))
    place = put(tmp_path / "mine" / "wikitext-2", WIKI)
    assert str(place) in load_text("wikitext-2", level="word", context=8).source
    text_file(place, b"\xff", "wiki.test.tokens")
    with pytest.raises(DataError, match="is not UTF-8"):
        load_text("wikitext-2", level="word", context=8)


def test_what_is_not_found_names_places_and_ways(tmp_path):
    with pytest.raises(DataError) as caught:
        load_text("wikitext-2")
    for words in (
        "looked in",
        "wiki.train.tokens",
        "root=",
        "WEIGHTSPACE_DATA",
        "hf download --repo-type dataset Salesforce/wikitext",
    ):
        assert words in str(caught.value)
    with pytest.raises(DataError, match="run `apt-get install bible-kjv`"):
        load_text("bible-kjv")


def bible_text(count=VERSES):
    return "".join(f"1Chr{number // 40 + 1}:{number % 40 + 1} And verse {number}.\n" for number in range(count))


def test_the_bible_from_a_file_or_the_command(tmp_path):
    path = text_file(tmp_path / "texts", bible_text())
    data = load_text("bible-kjv", root=path)
    assert "31,102 verses, check sum OTHER" in data.source
    assert data.decode(data.train_tokens[:12]) == "And verse 0."
    program = text_file(
        tmp_path / "bin", f'#!/bin/sh\n[ "$*" = "-f gen1:1-rev22:21" ] && exec /bin/cat {path}\n', "bible"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    from_command = load_text("bible-kjv")
    assert from_command.checksum == data.checksum
    assert "the command `bible -f gen1:1-rev22:21`" in from_command.source
    text_file(tmp_path / "bin", "#!/bin/sh\nexit 3\n", "bible").chmod(0o755)
    with pytest.raises(DataError, match="failed: .*exit status 3"):
        load_text("bible-kjv")


def test_other_texts_are_no_bible(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"holds 31,101 verses, but the King James Bible has 31,102"):
        load_text("bible-kjv", root=text_file(tmp_path, bible_text(VERSES - 1)))
    text_file(tmp_path, bible_text(), "b.txt")
    with pytest.raises(DataError, match="several texts"):
        load_text("bible-kjv", root=tmp_path)
    whole = normalized_verses(bible_text())
    monkeypatch.setattr("weightspace.training.data.text_files.BIBLE_SHA256", hashlib.sha256(whole.encode()).hexdigest())
    assert "check sum verified" in load_text("bible-kjv", root=tmp_path / "b.txt").source


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("ab \n"), min_size=10, max_size=400))
def test_no_character_is_lost_where_a_text_is_divided(text):
    train, test = divided(text, "it")
    assert train + test == text
    assert train
    assert test


# ---------------------------------------------------------------- windows


def slow_windows(tokens, context, begins):
    return [(tokens[b : b + context], tokens[b + 1 : b + context + 1]) for b in begins]


@settings(max_examples=80, deadline=None)
@given(length=st.integers(2, 60), context=st.integers(1, 12), batch=st.integers(1, 5), epoch=st.integers(0, 4))
def test_shuffled_windows_are_neighbors_at_one_offset(length, context, batch, epoch):
    tokens = torch.arange(length)
    try:
        batches = TextBatches(tokens, context=context, batch_size=batch, seed=3, device="cpu", drop_last=False)
    except DataError:
        assert length <= context
        return
    seen = [(i, y) for inputs, labels in batches.epoch(epoch) for i, y in zip(inputs, labels, strict=True)]
    begins = sorted(int(inputs[0]) for inputs, _ in seen)
    assert begins == list(range(begins[0], begins[0] + len(begins) * context, context))
    for inputs, labels in seen:
        assert inputs.tolist() == list(range(int(inputs[0]), int(inputs[0]) + context))
        assert labels.tolist() == (inputs + 1).tolist()
    assert length - 1 - len(seen) * context < 2 * context  # less than two windows are left out


@settings(max_examples=80, deadline=None)
@given(length=st.integers(2, 60), context=st.integers(1, 12), batch=st.integers(1, 5))
def test_in_order_every_token_but_the_first_is_a_label_once(length, context, batch):
    tokens = torch.arange(length)
    batches = TextBatches(
        tokens, context=context, batch_size=batch, seed=0, device="cpu", shuffle=False, drop_last=False
    )
    served = list(batches.epoch(0))
    assert len(served) == len(batches)
    assert [int(label) for _, labels in served for label in labels.flatten()] == list(range(1, length))
    assert [int(token) for inputs, _ in served for token in inputs.flatten()] == list(range(length - 1))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 3), epoch=st.integers(0, 3), start=st.integers(0, 6))
def test_an_epoch_goes_on_at_any_batch(seed, epoch, start):
    def batches():
        return TextBatches(torch.arange(100) % 7, context=5, batch_size=3, seed=seed, device="cpu")

    start = min(start, len(batches()))
    list(batches().epoch(epoch + 1))  # what ran before does not matter
    rest = list(batches().epoch(epoch, start))
    whole = list(batches().epoch(epoch))[start:]
    assert len(rest) == len(whole)
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(rest, whole, strict=True))


def test_epochs_and_seeds_differ_in_order_and_offset():
    def begins(seed, epoch):
        batches = TextBatches(torch.arange(1000), context=10, batch_size=4, seed=seed, device="cpu")
        return [int(inputs[0, 0]) for inputs, _ in batches.epoch(epoch)]

    assert begins(0, 0) == begins(0, 0)
    assert begins(0, 0) != begins(0, 1) != begins(1, 1)
    assert len({begins(0, epoch)[0] % 10 for epoch in range(30)}) > 5  # offsets
    assert len({tuple(begin // 10 for begin in begins(0, epoch)) for epoch in range(5)}) == 5  # orders


@pytest.mark.parametrize(
    ("tokens", "options", "sentence"),
    [
        (torch.zeros(9), {}, "must be integers of shape"),
        (torch.zeros(3, 3, dtype=torch.long), {}, "must be integers of shape"),
        (torch.zeros(9, dtype=torch.bool), {}, "must be integers of shape"),
        (torch.zeros(9, dtype=torch.long), {"context": 0}, "context must be at least 1, not 0"),
        (torch.zeros(9, dtype=torch.long), {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (torch.zeros(4, dtype=torch.long), {}, "4 tokens give 0 windows"),
        (
            torch.zeros(9, dtype=torch.long),
            {"batch_size": 9},
            "choose a smaller batch size or context, or a longer text",
        ),
    ],
)
def test_windows_that_cannot_be_are_refused(tokens, options, sentence):
    with pytest.raises(DataError, match=sentence):
        TextBatches(tokens, **{"context": 4, "batch_size": 1, **options}, seed=0, device="cpu")
    with pytest.raises(DataError, match="cannot start at batch 3"):
        TextBatches(torch.arange(9), context=4, batch_size=1, seed=0, device="cpu").epoch(0, 3)


# ---------------------------------------------------------------- parts


def small(train="abcdefgh" * 8, test="abab", **options):
    vocabulary = character_vocabulary(train)
    parts = [encode_characters(part, vocabulary) for part in (train, test)]
    return TextData("small", *parts, vocabulary, 4, "character", source="made up", **options)


def test_parts_are_beginnings_and_tuning_sees_the_end():
    data = small()
    taken = data.take(20, 3)
    assert (taken.decode(taken.train_tokens), taken.decode(taken.test_tokens)) == (("abcdefgh" * 3)[:20], "aba")
    assert taken.vocabulary == data.vocabulary
    held = data.hold_out(0.25, seed=5)
    assert torch.equal(torch.cat([held.train_tokens, held.test_tokens]), data.train_tokens)
    assert len(held.test_tokens) == 16
    assert data.take(None) is data
    assert len({data.checksum, taken.checksum, held.checksum}) == 3


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 0.001, 0.95])
def test_held_out_parts_that_would_be_empty_are_refused(fraction):
    with pytest.raises(DataError, match="too short for windows of 4"):
        small().hold_out(fraction, seed=0)


def test_wrong_subsets_tokens_and_augmentations_are_refused():
    with pytest.raises(DataError, match="choose a number between 1 and 64"):
        small().take(65)
    with pytest.raises(DataError, match="a window of context=4 takes 5"):
        small().take(4)
    with pytest.raises(DataError, match=r"must be in 0..1, but they range from 1 to 8"):
        TextData("x", small().train_tokens, small().test_tokens, ("a", "b"), 4, "character", source="")
    with pytest.raises(DataError, match="Text has no augmentations"):
        small().train_batches(batch_size=1, seed=0, device="cpu", augment=("flip",))


def test_numbers_of_language_models():
    assert small().test_metrics(math.log(8.0)) == pytest.approx({"perplexity": 8.0, "bits_per_character": 3.0})
    words = small(characters_per_token=4.0)
    assert words.test_metrics(math.log(8.0))["bits_per_character"] == pytest.approx(0.75)
    assert small().test_metrics(1e4)["perplexity"] == math.inf
    assert math.isnan(small().test_metrics(math.nan)["perplexity"])
    facts = small().describe()
    assert (facts["train"], facts["test"], facts["samples"], facts["classes"]) == (64, 4, small().samples, 9)
    assert small().num_data == 63


def test_the_check_sum_sees_context_vocabulary_and_the_division():
    one = small()
    shifted = TextData(
        "small", one.train_tokens[:-1], one.train_tokens[-1:].repeat(2), one.vocabulary, 4, "character", source=""
    )
    other = TextData("small", one.train_tokens, one.test_tokens, one.vocabulary, 5, "character", source="")
    renamed = TextData(
        "small", one.train_tokens, one.test_tokens, (*one.vocabulary[:-1], "z"), 4, "character", source=""
    )
    assert len({data.checksum for data in (one, shifted, other, renamed)}) == 4
    assert one.checksum == small().checksum


def test_the_program_is_looked_for_last(tmp_path, monkeypatch):
    def never(program):
        raise AssertionError(program)

    monkeypatch.setattr(load_module, "run_bible", never)
    put(tmp_path / "cache" / "weightspace" / "data" / "bible-kjv", {"kjv.txt": bible_text()})
    text_file(tmp_path / "bin", "#!/bin/sh\n", "bible").chmod(0o755)
    assert "kjv.txt" in load_text("bible-kjv").source
