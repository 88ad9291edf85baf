"""Sparse files: every bit comes back, the size is what theory says, and what is no whole file is refused in a sentence."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

from weightspace.compress import _container, load_sparse, save_sparse, sparse_size
from weightspace.compress._coding import DTYPES, as_words
from weightspace.compress._eight_bits import dequantize, quantize
from weightspace.compress._places import (
    Level,
    Places,
    block_sizes,
    decode_places,
    encode_places,
    pack,
    unpack,
)
from weightspace.errors import CompressError, RunError, WeightspaceError


def bits_equal(a, b):
    """Equal dtype, shape and bits: NaN payloads and the sign of zero count."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(as_words(a.contiguous()), as_words(b.contiguous()))


def holes(*shape, share, dtype=torch.float32, seed=0):
    """Random numbers with a share of (plus) zeros at random places."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    return values.masked_fill(torch.rand(shape, generator=generator) < share, 0.0).to(dtype)


def round_trip(state, path, **options):
    save_sparse(state, path, **options)
    return load_sparse(path)


def entropy(p):
    """Bits that the place of a non-zero costs for each number, if a share p of them, at random places, is not zero."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


# ---------------------------------------------------------------- places


def slow_code(kept, rice):
    """The code of one level as the format describes it, bit by bit."""
    remainders, unary, gap = [], [], 0
    for is_kept in kept:
        if not is_kept:
            gap += 1
            continue
        remainders += [(gap >> bit) & 1 for bit in range(rice)]
        unary += [0] * (gap >> rice) + [1]
        gap = 0
    return b"".join(slow_bytes(bits) for bits in (remainders, unary))


def slow_bytes(bits):
    padded = bits + [0] * (-len(bits) % 8)
    return bytes(sum(bit << k for k, bit in enumerate(padded[i : i + 8])) for i in range(0, len(padded), 8))


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.sampled_from([(), (2, 3), (4, 12)]))
@settings(max_examples=150, deadline=None)
def test_places_come_back_and_their_code_is_the_documented_one(kept, blocks):
    mask = torch.tensor(kept)
    places = encode_places(mask, blocks)
    assert torch.equal(decode_places(places, len(kept)), mask.nonzero()[:, 0])
    if places.block == 1:
        assert bytes(places.code.tolist()) == slow_code(kept, places.levels[0].rice)
    else:
        rows = mask.view(-1, places.block)
        outer, inner = places.levels
        filled = rows.any(1)
        expected = slow_code(filled.tolist(), outer.rice) + slow_code(rows[filled].view(-1).tolist(), inner.rice)
        assert bytes(places.code.tolist()) == expected


@given(st.lists(st.booleans(), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_other_parameter_makes_a_shorter_code(kept):
    code = encode_places(torch.tensor(kept)).code
    assert all(len(code) <= len(slow_code(kept, rice)) + 1 for rice in range(10))  # each half fills its last byte


@given(st.lists(st.booleans(), max_size=70))
def test_packed_bits_come_back(bits):
    packed = pack(torch.tensor(bits, dtype=torch.bool))
    assert bytes(packed.tolist()) == slow_bytes([int(b) for b in bits])
    assert unpack(packed)[: len(bits)].bool().tolist() == bits


@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_random_places_cost_little_more_than_their_entropy(zeros):
    n = 400_000
    kept = torch.rand(n) >= zeros
    p = kept.double().mean().item()
    ratio = 8 * len(encode_places(kept).code) / (n * entropy(p))
    assert 0.98 < ratio < (1.04 if zeros < 0.9 else 1.025)


def test_half_the_places_are_a_bitmap():
    kept = torch.arange(1000) % 2 == 0
    (level,) = encode_places(kept).levels
    assert (level.rice, level.size) == (0, 125)


def test_places_in_whole_blocks_cost_the_blocks_alone():
    kept = torch.zeros(64, 32, 3, 3, dtype=torch.bool)
    kept.view(2048, 9)[torch.randperm(2048)[:400]] = True
    alone, blocks = encode_places(kept.view(-1)), encode_places(kept.view(-1), block_sizes(kept.shape))
    assert blocks.block == 9
    # 2048 kernels by their entropy, a bit for each number of the 400 that are there.
    assert len(blocks.code) < 2048 * entropy(400 / 2048) / 8 * 1.05 + 450
    assert len(blocks.code) < 0.7 * len(alone.code)


@pytest.mark.parametrize(
    ("places", "n", "words"),
    [
        (Places(1, (Level(1, 0, 1),), torch.tensor([128], dtype=torch.uint8)), 7, "beyond"),
        (Places(1, (Level(2, 0, 1),), torch.tensor([1], dtype=torch.uint8)), 8, "count 1 non-zeros, not 2"),
        (Places(1, (Level(9, 0, 1),), torch.tensor([255], dtype=torch.uint8)), 8, "cannot be"),
        (Places(1, (Level(1, 0, 2),), torch.tensor([1], dtype=torch.uint8)), 8, "another length"),
        (Places(3, (Level(1, 0, 1),), torch.tensor([1], dtype=torch.uint8)), 9, "do not fit"),
        (Places(0, (Level(1, 0, 1),), torch.tensor([1], dtype=torch.uint8)), 8, "do not fit"),
        (Places(1, (Level(1, 60, 9),), torch.zeros(9, dtype=torch.uint8)), 8, "cannot be"),
        (Places(1, (Level(1, 3, 2),), torch.tensor([7, 2], dtype=torch.uint8)), 8, "beyond"),
        (Places(1, (Level(1, 3, 1),), torch.tensor([7], dtype=torch.uint8)), 8, "count 0 non-zeros, not 1"),
    ],
)
def test_damaged_places_are_refused(places, n, words):
    with pytest.raises(ValueError, match=words):
        decode_places(places, n)


# ---------------------------------------------------------------- every bit


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype, share, tmp_path):
    words = torch.randint(-(2**40), 2**40, (40, 50), dtype=torch.int64).masked_fill_(torch.rand(40, 50) < share, 0)
    # Random bits: NaN with payloads, subnormals and minus zero among the 8-bit and 16-bit numbers.
    tensor = words != 0 if dtype == torch.bool else words.to(as_words(torch.empty(1, dtype=dtype)).dtype).view(dtype)
    state = {"a.weight": tensor}
    assert bits_equal(round_trip(state, tmp_path / "f")["a.weight"], tensor)


@given(
    st.lists(st.integers(0, 7), max_size=4),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float16, torch.int8, torch.bool]),
    st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_every_shape_comes_back(tmp_path_factory, shape, share, dtype, seed):
    tensor = holes(*shape, share=share, dtype=dtype, seed=seed)
    path = tmp_path_factory.getbasetemp() / "shape"
    assert bits_equal(round_trip({"x": tensor}, path)["x"], tensor)


@pytest.mark.parametrize("shape", [(64, 1000), (64, 32, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_minus_zero_and_nan_payloads_survive(shape, dtype, tmp_path):
    weight = holes(*shape, share=0.9, dtype=dtype)
    flat = weight.view(-1)
    flat[torch.rand(len(flat)) < 0.3] *= -0.0
    flat[5] = math.nan
    as_words(weight).view(-1)[7] = as_words(torch.tensor([math.nan], dtype=dtype))[0] + 1  # another payload
    flat[9], flat[11] = math.inf, -0.0
    assert bits_equal(round_trip({"w": weight}, tmp_path / "f")["w"], weight)


def test_masks_that_multiply_cost_a_bit_and_not_a_number(tmp_path):
    weight = torch.randn(1000, 1000)
    plus = weight.masked_fill(torch.rand(1000, 1000) < 0.9, 0.0)
    minus = torch.where(plus == 0, weight * 0.0, plus)
    assert 0.4 < (minus.signbit() & (minus == 0)).double().mean() < 0.5
    small, larger = sparse_size({"w": plus}), sparse_size({"w": minus})
    assert larger - small <= 1_000_000 / 8 * 0.91
    assert bits_equal(round_trip({"w": minus}, tmp_path / "f")["w"], minus)
    assert sparse_size({"w": minus}, bits=8) == sparse_size({"w": plus}, bits=8)


def test_a_single_minus_zero_is_stored_as_a_number(tmp_path):
    weight = holes(100, 100, share=0.9)
    weight[3, 4] = -0.0
    read = round_trip({"w": weight}, tmp_path / "f")["w"]
    assert bits_equal(read, weight)


def test_views_and_channels_last_come_back_contiguous(tmp_path):
    base = holes(64, 64, 3, 3, share=0.9)
    state = {
        "transposed": base[:, :, 0, 0].t(),
        "channels_last": base.to(memory_format=torch.channels_last),
        "rows": base[::2],
        "slice": base[3:7],
        "expanded": torch.ones(1, 1).expand(10, 10),
        "parameter": nn.Parameter(base[:2]),
    }
    read = round_trip(state, tmp_path / "f")
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert torch.equal(read[name], tensor), name
        assert read[name].is_contiguous()
        assert not read[name].requires_grad


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        self.norm = nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 100, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.norm(self.embedding(x)))


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    model = Tied()
    model.embedding.weight.data.masked_fill_(torch.rand(100, 64) < 0.8, 0.0)
    model(torch.arange(100))  # moves the buffers of the norm
    summary = save_sparse(model, tmp_path / "f")
    assert summary.dense_bytes == 4 * (100 * 64 + 4 * 64) + 8
    assert {t.name: t.way for t in summary.tensors}["head.weight"] == "= embedding.weight"
    read = load_sparse(tmp_path / "f")
    assert list(read) == list(model.state_dict())
    assert read["head.weight"] is read["embedding.weight"]
    twin = Tied()
    twin.load_state_dict(read)
    model.eval(), twin.eval()
    assert torch.equal(model(torch.arange(9)), twin(torch.arange(9)))


def test_two_parts_of_one_storage_are_two_tensors(tmp_path):
    base = torch.randn(10, 10)
    state = {"all": base, "first": base[:5], "same shape": base[5:], "empty": base[:0], "empty too": base[:0]}
    read = round_trip(state, tmp_path / "f")
    assert all(bits_equal(read[name], tensor) for name, tensor in state.items())


def test_wrapped_models_are_stored_under_their_own_names(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert list(round_trip(wrapped, tmp_path / "f")) == list(model.state_dict())


def test_an_empty_state_is_a_file_too(tmp_path):
    assert round_trip(nn.ReLU(), tmp_path / "f") == {}
    assert "0.00 times smaller" in str(save_sparse({}, tmp_path / "f"))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("bits", [None, 8])
def test_the_file_is_as_small_as_theory_lets_it_be(zeros, bits, tmp_path):
    weight = holes(1000, 500, share=zeros)
    p = float((weight != 0).double().mean())
    bound = weight.numel() * (p * (bits or 32) + entropy(p)) / 8
    size = save_sparse({"w": weight}, tmp_path / "f", bits=bits).bytes
    header_and_scales = 400 + (2 * 1000 if bits else 0)
    assert size <= 1.01 * bound + header_and_scales


def test_the_size_is_that_of_the_file_and_dense_is_never_much_larger(tmp_path):
    state = {
        "dense": torch.randn(100, 100),
        "sparse": holes(100, 100, share=0.9),
        "half": holes(100, 100, share=0.02),
        "scalar": torch.tensor(3),
        "steps": torch.tensor([], dtype=torch.int64),
    }
    for bits in (None, 8):
        summary = save_sparse(state, tmp_path / "f", bits=bits)
        assert (tmp_path / "f").stat().st_size == summary.bytes == sparse_size(state, bits=bits)
        assert summary.bytes - sum(t.bytes for t in summary.tensors) < 220 * len(state)  # the header
    ways = {t.name: t.way for t in save_sparse(state, tmp_path / "f").tensors}
    assert ways == {"dense": "dense", "sparse": "sparse", "half": "dense", "scalar": "dense", "steps": "dense"}
    plain = len(save({"w": state["dense"]}))
    assert sparse_size({"w": state["dense"]}) <= plain + 120


def test_any_reader_of_safetensors_opens_the_file(tmp_path):
    weight, bias = holes(100, 100, share=0.9), torch.randn(100)
    save_sparse({"w": weight, "b": bias}, tmp_path / "f.safetensors")
    plain = load_file(tmp_path / "f.safetensors")
    assert set(plain) == {"b", "w#values", "w#places"}
    assert torch.equal(plain["b"], bias)
    assert torch.equal(plain["w#values"], weight[weight != 0])
    with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
        header = file.metadata()
    assert (header["format"], header["version"]) == ("weightspace-sparse", "1")
    record = json.loads(header["tensors"])["w"]
    assert (record["as"], record["shape"], record["dtype"]) == ("sparse", [100, 100], "float32")


def test_the_summary_prints(tmp_path):
    text = str(save_sparse({"w": holes(100, 100, share=0.9), "tied": torch.ones(3)}, tmp_path / "f"))
    assert "100 × 100" in text
    assert "times smaller" in text


# ---------------------------------------------------------------- 8 bits


@given(
    st.integers(1, 6),
    st.integers(1, 30),
    st.floats(-30, 30),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_rounding_is_within_half_a_scale(rows, columns, exponent, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=generator) * 2.0**exponent).to(dtype)
    if not bool(weight.isfinite().all()):
        return
    small = quantize("w", weight)
    assert small is not None
    numbers, scales = small
    read = dequantize(numbers, scales[:, None], dtype)
    limits = torch.finfo(dtype)
    bound = scales.double() / 2 * (1 + 1e-12)
    rounding = limits.eps * weight.double().abs().amax(1) + limits.smallest_normal * limits.eps
    assert bool(((read.double() - weight.double()).abs().amax(1) <= bound + rounding).all())
    largest = weight.double().abs().amax(1)
    assert bool((scales.double() <= largest / 127 * 1.0005).all())


@pytest.mark.parametrize("share", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_round_matrices_and_nothing_else(share, dtype, tmp_path):
    state = {
        "conv": holes(32, 16, 3, 3, share=share, dtype=dtype),
        "bias": torch.randn(32, dtype=dtype),
        "steps": torch.arange(60).view(6, 10),
        "one": torch.tensor(0.3),
    }
    summary = save_sparse(state, tmp_path / "f", bits=8)
    read = load_sparse(tmp_path / "f")
    assert [t.way for t in summary.tensors] == ["sparse 8 bits" if share else "dense 8 bits", "dense", "dense", "dense"]
    for name in ("bias", "steps", "one"):
        assert bits_equal(read[name], state[name])
    conv, got = state["conv"].double().flatten(1), read["conv"].double().flatten(1)
    half = conv.abs().amax(1, keepdim=True) / 254 * 1.0005
    rounding = torch.finfo(dtype).eps * conv.abs()
    assert bool(((conv - got).abs() <= half + rounding).all())
    assert read["conv"].dtype == dtype
    assert bool((got[conv == 0] == 0).all())


def test_eight_bits_again_change_nothing_more(tmp_path):
    weight = holes(20, 200, share=0.8)
    once = round_trip({"w": weight}, tmp_path / "f", bits=8)["w"]
    twice = round_trip({"w": once}, tmp_path / "f", bits=8)["w"]
    assert torch.equal(once, twice)
    assert not torch.equal(once, weight)


@pytest.mark.parametrize(
    ("size", "dtype", "scale"),
    [(1.0, torch.float32, torch.float16), (1e-6, torch.float32, torch.float32), (1e-60, torch.float64, torch.float64)],
)
def test_scales_take_the_smallest_dtype_that_holds_them(size, dtype, scale):
    small = quantize("w", torch.full((2, 3), size, dtype=dtype))
    assert small is not None
    assert small[1].dtype == scale


def test_what_eight_bits_cannot_hold(tmp_path):
    weight = torch.full((30, 30), 5e-324, dtype=torch.float64)
    assert bits_equal(round_trip({"w": weight}, tmp_path / "f", bits=8)["w"], weight)
    weight[2, 2] = math.nan
    with pytest.raises(CompressError, match="conv.weight holds NaN or infinity, which 8 bits cannot hold; repair"):
        save_sparse({"conv.weight": weight}, tmp_path / "f", bits=8)
    save_sparse({"conv.weight": weight}, tmp_path / "f")


def test_small_rows_stay_exact_where_scales_cost_more(tmp_path):
    weight = torch.randn(500, 1).half()  # a scale for each number would be larger than the number
    assert bits_equal(round_trip({"w": weight}, tmp_path / "f", bits=8)["w"], weight)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (3, "got a int; pass a model or its state_dict"),
        ({"a": 3}, "'a' holds a int; a sparse file holds tensors by name"),
        ({1: torch.ones(2)}, "1 holds a Tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, "a is no plain dense tensor"),
        ({"a": torch.ones(2, device="meta")}, "a is no plain dense tensor .on the meta device"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "a is torch.complex128, which safetensors cannot store"),
        ({"a": holes(50, 50, share=0.9), "a#values": torch.ones(1)}, "a#values has the name of a part"),
        ({"a#places": torch.ones(1), "a": holes(50, 50, share=0.9)}, "a has the name of a part"),
    ],
)
def test_states_that_no_file_can_hold(state, words, tmp_path):
    with pytest.raises(CompressError, match=words):
        save_sparse(state, tmp_path / "f")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [4, 16, "8", True, 0])
def test_other_bits_are_refused(bits, tmp_path):
    with pytest.raises(CompressError, match=r"choose None, which is exact, or 8"):
        save_sparse({"a": torch.ones(2, 2)}, tmp_path / "f", bits=bits)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        save_sparse({"a": torch.ones(2)}, tmp_path / "file" / "f")
    assert (tmp_path / "file").read_text() == "x"


def test_files_that_are_no_sparse_files(tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(CompressError, match="cannot read .*no such file"):
        load_sparse(path)
    with pytest.raises(CompressError, match="cannot read"):
        load_sparse(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(CompressError, match="is empty"):
        load_sparse(path)
    for content in (b"PK\x03\x04 a zip file of torch.save", b"\x80\x04pickled things", os.urandom(8) + b"x" * 90):
        path.write_bytes(content)
        with pytest.raises(CompressError, match="is no safetensors file; give one that save_sparse"):
            load_sparse(path)
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(CompressError, match=r"is a safetensors file but no weightspace-sparse file; read it with"):
        load_sparse(path)


def test_newer_and_strange_versions(tmp_path):
    path = tmp_path / "f"
    for version, words in (("2", "has version 2 .* reads 1: update"), ("x", "its version is 'x'"), ("", "damaged")):
        save_file({}, path, metadata={"format": "weightspace-sparse", "version": version, "tensors": "{}"})
        with pytest.raises(CompressError, match=words):
            load_sparse(path)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "[" * 100_000])
def test_headers_that_list_no_tensors(text, tmp_path):
    header = {"format": "weightspace-sparse", "version": "1", **({} if text is None else {"tensors": text})}
    save_file({}, tmp_path / "f", metadata=header)
    with pytest.raises(CompressError, match="is damaged: its "):
        load_sparse(tmp_path / "f")


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "f"
    save_sparse({"w": holes(30, 30, share=0.8), "b": torch.ones(3)}, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CompressError, match=r"is empty|is truncated or damaged|is no safetensors file"):
            load_sparse(path)


def edited(path, edit):
    """Rewrites a file with its records and parts changed by `edit(records, parts)`."""
    records, parts, _ = _container.from_file(path)
    parts = {name: part.clone() for name, part in parts.items()}
    edit(records, parts)
    path.write_bytes(_container.to_bytes(records, parts, {}))


def set_in(*keys, value):
    def edit(records, _):
        entry = records
        for key in keys[:-1]:
            entry = entry[key]
        entry[keys[-1]] = value

    return edit


def change(name, new):
    def edit(_, parts):
        parts[name] = new(parts[name])

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        set_in("w", "as", value="magic"),
        set_in("w", "as", value=None),
        set_in("w", value=3),
        set_in("w", value=None),
        set_in("w", "shape", value=[10, 10]),
        set_in("w", "shape", value=[-40, -60]),
        set_in("w", "shape", value=[40.0, 60]),
        set_in("w", "shape", value="4060"),
        set_in("w", "shape", value=[2**40, 2**40]),
        set_in("w", "dtype", value="float16"),
        set_in("w", "dtype", value="object"),
        set_in("w", "bits", value=8),
        set_in("w", "bits", value=7),
        set_in("w", "block", value=7),
        set_in("w", "block", value=0),
        set_in("w", "levels", value=[]),
        set_in("w", "levels", value=[[1, 1, 1]]),
        set_in("w", "levels", value=[[1, 1]]),
        set_in("w", "minus", value=[1, 0, 10**6]),
        set_in("w", "minus", value=[1, 0, 1]),
        change("w#values", lambda t: t[:-1]),
        change("w#values", lambda t: t.double()),
        change("w#values", lambda t: t.view(1, -1)),
        change("w#places", lambda t: t[:-3]),
        change("w#places", lambda t: t.int()),
        change("w#places", lambda t: 255 - t),
        change("w#places", lambda t: t * 0),
        change("w#places", lambda t: torch.full_like(t, 255)),
        change("w#places", lambda t: torch.cat([t, t])),
        lambda _, parts: parts.pop("w#values"),
        lambda _, parts: parts.pop("w#places"),
        lambda _, parts: parts.pop("b"),
        set_in("again", "to", value="nowhere"),
        change("q#scales", lambda t: t[:-1]),
        change("q#scales", lambda t: t.int()),
        change("q#values", lambda t: t.float()),
        set_in("q", "dtype", value="int8"),
        set_in("q", "bits", value=None),
    ],
)
def test_damage_is_found_and_the_tensor_named(edit, tmp_path):
    path = tmp_path / "f"
    weight, b = holes(40, 60, share=0.8), torch.ones(7)
    save_sparse({"w": weight, "b": b, "again": b}, path)
    eight = tmp_path / "eight"
    save_sparse({"q": torch.randn(20, 20)}, eight, bits=8)
    more, parts, _ = _container.from_file(eight)
    edited(path, lambda records, own: (records.update(more), own.update(parts)))
    assert set(load_sparse(path)) == {"w", "b", "again", "q"}
    edited(path, edit)
    with pytest.raises(CompressError, match=r"is damaged at (w|b|again|q): .*; get a whole copy"):
        load_sparse(path)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bits_give_an_error_of_ours_or_a_state_of_the_same_kind(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped"
    save_sparse({"w": holes(12, 16, 3, 3, share=0.9), "q": torch.ones(3)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with contextlib.suppress(WeightspaceError):  # anything else fails the test
        assert all(isinstance(tensor, torch.Tensor) for tensor in load_sparse(path).values())


def test_a_header_that_claims_to_be_huge(tmp_path):
    (tmp_path / "f").write_bytes(struct.pack("<Q", 2**60) + b"{" + b" " * 100)
    with pytest.raises(CompressError, match="truncated or damaged"):
        load_sparse(tmp_path / "f")


def test_without_safetensors_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for act in (lambda: save_sparse({}, tmp_path / "f"), lambda: load_sparse(tmp_path / "f")):
        with pytest.raises(CompressError, match=r'pip install "weightspace\[compress\]"'):
            act()


def test_what_was_read_does_not_hang_on_the_file(tmp_path):
    path = tmp_path / "f"
    state = {"dense": torch.randn(50, 50), "w": holes(50, 50, share=0.9)}
    read = round_trip(state, path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


@pytest.mark.slow
def test_ten_million_weights_take_seconds(tmp_path):
    weight = holes(1000, 10_000, share=0.9)
    begin = time.perf_counter()
    save_sparse({"w": weight}, tmp_path / "f")
    middle = time.perf_counter()
    assert torch.equal(load_sparse(tmp_path / "f")["w"], weight)
    assert middle - begin < 5
    assert time.perf_counter() - middle < 5
