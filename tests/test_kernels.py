"""What weights are, how they are viewed, selected, routed and batched."""

from __future__ import annotations

import copy
import itertools
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace as ws
from weightspace.errors import AttachError, SelectionError
from weightspace.kernels import VIEWS, Selection, describe, make_batches, route, unwrap, view_of
from weightspace.kernels.parameters import has_same_layout, is_dense_layout
from weightspace.kernels.selection import parse
from weightspace.kernels.stacking import Workspace
from weightspace.metrics import ChannelL2, GradientCentralization


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, bias=False)
        self.embed = nn.Embedding(5, 4)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.embed.weight
        self.fc = nn.Linear(6, 10)
        self.scale = nn.Parameter(torch.ones(()))


def infos():
    return {i.name: i for i in describe(Net())}


def test_describe_lists_every_parameter_once_with_its_role():
    by_name = infos()
    assert list(by_name) == [
        "scale", "conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "depthwise.weight", "depthwise.bias",
        "up.weight", "embed.weight", "fc.weight", "fc.bias",
    ]  # fmt: skip
    assert by_name["embed.weight"].aliases == ("tied.weight",)
    assert [n for n, i in by_name.items() if i.is_head] == ["fc.weight"]
    assert by_name["depthwise.weight"].groups == 8
    assert by_name["up.weight"].out_axis == 1
    assert by_name["scale"].shape == ()


def test_wrappers_are_seen_through():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(2, 2))
    plain = [i.name for i in describe(model)]
    assert [i.name for i in describe(nn.DataParallel(model))] == plain
    assert [i.name for i in describe(torch.compile(model))] == plain
    assert unwrap(torch.compile(nn.DataParallel(model))) is model


def test_lazy_parameters_are_refused_by_name():
    with pytest.raises(AttachError, match=r"0\.weight has no shape yet"):
        describe(nn.Sequential(nn.LazyConv2d(4, 3)))


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (ws.on.convs, {"conv1.weight", "depthwise.weight", "up.weight"}),
        (ws.on.dense_convs, {"conv1.weight", "up.weight"}),
        (ws.on.grouped_convs, {"depthwise.weight"}),
        (ws.on.linears, {"fc.weight"}),
        (ws.on.biases & ~ws.on.norms, {"conv1.bias", "depthwise.bias", "fc.bias"}),
        (ws.on.norms, {"bn1.weight", "bn1.bias"}),
        (ws.on.embeddings, {"embed.weight"}),
        (ws.on.head | ws.on.name("conv*"), {"conv1.weight", "conv1.bias", "fc.weight"}),
        (ws.on.name("tied.weight"), {"embed.weight"}),
        (ws.on.where(lambda i: i.shape == ()), {"scale"}),
        (~ws.on.everything, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, Selection) else "",
)
def test_selections(selection, expected):
    assert {n for n, i in infos().items() if selection(i)} == expected


words = st.sampled_from([ws.on.convs, ws.on.head, ws.on.linears, ws.on.name("layer?.*"), ws.on.everything])
trees = st.recursive(
    words,
    lambda s: st.one_of(
        s.map(lambda a: ~a), st.tuples(s, s).map(lambda t: t[0] & t[1]), st.tuples(s, s).map(lambda t: t[0] | t[1])
    ),
    max_leaves=6,
)


@given(trees)
@settings(max_examples=100, deadline=None)
def test_selections_read_back_as_they_print(selection):
    again = parse(str(selection))
    assert again == selection
    assert [again(i) for i in ALL_INFOS] == [selection(i) for i in ALL_INFOS]


ALL_INFOS = list(infos().values())


@pytest.mark.parametrize(
    "text", ["convz", "convs and head", "__import__('os')", "name(3)", "convs &", "name('a', 'b')", "1"]
)
def test_text_that_is_no_selection_is_refused(text):
    with pytest.raises(SelectionError, match="selection"):
        parse(text)


def test_python_and_is_refused():
    with pytest.raises(TypeError, match="combine with &"):
        _ = ws.on.convs and ws.on.head


# --------------------------------------------------------------------------- views


def elements_along(info, view_name):
    """For every element of the weight, the set of elements that share its line along the view, by brute force."""
    tensor = torch.arange(info.parameter.numel()).view(info.shape)
    along = {
        "out": {info.out_axis}, "matrix": {info.out_axis}, "in": {info.in_axis}, "spatial": set(info.spatial_axes),
        "filter": set(range(tensor.ndim)) - {info.out_axis}, "kernel": set(range(tensor.ndim)),
        "slice": set(info.spatial_axes[:1]),
    }[view_name]  # fmt: skip
    lines: dict[tuple[int, ...], list[int]] = {}
    for index in itertools.product(*map(range, tensor.shape)):
        key = tuple(i for d, i in enumerate(index) if d not in along)
        lines.setdefault(key, []).append(int(tensor[index]))
    return {tuple(sorted(line)) for line in lines.values()}


@given(
    c_out=st.integers(1, 4),
    c_in=st.integers(1, 4),
    taps=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    view_name=st.sampled_from(VIEWS),
    transposed=st.booleans(),
    last=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_views_share_memory_and_hold_the_right_lines(c_out, c_in, taps, view_name, transposed, last):
    kinds = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    ups = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    if transposed and taps:
        module = ups[len(taps)](c_in, c_out, taps, bias=False)
    else:
        module = kinds[len(taps)](c_in, c_out, *([taps] if taps else []), bias=False)
    if last and len(taps) == 2:
        module = module.to(memory_format=torch.channels_last)
    info = describe(module)[0]
    refusal = ""
    try:
        view = view_of(info, view_name)
    except SelectionError as error:
        refusal = str(error)
    if refusal:
        assert is_refused_rightly(info, view_name, refusal), refusal
        return
    tensor = torch.empty_like(info.parameter)
    tensor.copy_(torch.arange(tensor.numel()).view(info.shape))
    block = view(tensor)
    assert block.data_ptr() == tensor.data_ptr()
    assert block.shape == view.shape
    got = {tuple(sorted(int(x) for x in line)) for b in block for line in b.T}
    assert got == elements_along(info, view_name)


def is_refused_rightly(info, view_name, sentence):
    """The refusals there are, each only where no view could be given."""
    weight = info.parameter
    if "no spatial taps" in sentence:
        return view_name in ("spatial", "slice") and weight.ndim == 2
    if "no slice view" in sentence:
        return view_name == "slice" and (weight.ndim != 4 or 1 in weight.shape or not weight.is_contiguous())
    if "does not fit its strides" in sentence:
        # Somewhere the elements of a line are not evenly spaced in memory.
        memory = torch.empty_strided(weight.shape, weight.stride(), dtype=torch.long)
        offsets = torch.arange(weight.numel()).as_strided(weight.shape, weight.stride())
        place = memory.copy_(offsets).contiguous().flatten()
        lines = [sorted(int(place[e]) for e in line) for line in elements_along(info, view_name)]
        return any(len({b - a for a, b in itertools.pairwise(line)}) > 1 for line in lines)
    return False


def test_views_without_an_axis_are_refused_with_a_reason():
    by_name = infos()
    with pytest.raises(SelectionError, match="no spatial taps"):
        view_of(by_name["fc.weight"], "spatial")
    with pytest.raises(SelectionError, match="no matrix or kernel"):
        view_of(by_name["fc.bias"], "out")
    with pytest.raises(SelectionError, match="does not fit its strides"):
        view_of(by_name["up.weight"], "filter")
    with pytest.raises(SelectionError, match="the views are"):
        view_of(by_name["fc.weight"], "rows")
    with pytest.raises(SelectionError, match="not dense"):
        view_of(by_name["fc.weight"], "out", torch.zeros(10, 12)[:, ::2])


def test_dense_layouts():
    t = torch.zeros(4, 3, 2, 2)
    assert is_dense_layout(t)
    assert is_dense_layout(t.to(memory_format=torch.channels_last))
    assert not is_dense_layout(t[:, ::2])
    assert not is_dense_layout(t[:1].expand(4, 3, 2, 2))
    assert has_same_layout(torch.zeros(3, 1).as_strided((3, 1), (1, 7)), torch.zeros(3, 1))


# --------------------------------------------------------------------------- routing


def test_every_parameter_has_a_rule_or_a_reason():
    model = Net()
    model.conv1.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n != "up.weight"], lr=0.1)
    listed = describe(model)
    held = [p for g in optimizer.param_groups for p in g["params"]]
    with pytest.raises(SelectionError, match="conv1.weight: frozen.*up.weight: not in this optimizer"):
        route([ChannelL2()], listed, held)
    routes = {r.info.name: r for r in route([GradientCentralization()], listed, held)}
    for r in routes.values():
        assert r.rules or r.reasons
    assert routes["fc.weight"].rules == (0,)
    assert routes["bn1.weight"].reasons[0] == "norm weight"
    assert routes["scale"].reasons[0] == "scale"


def test_a_rule_that_selects_nothing_says_what_there_is():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    listed = describe(model)
    with pytest.raises(SelectionError, match=r"matches none of the 4 parameters \(0\.weight, 0\.bias"):
        route([ChannelL2()], listed, [i.parameter for i in listed])
    with pytest.raises(SelectionError, match="one element: nothing to act along"):
        route(
            [ChannelL2(on=ws.on.linears)],
            described := describe(nn.Sequential(nn.Linear(3, 1))),
            [i.parameter for i in described],
        )


def test_grouped_and_parametrized_kernels_are_refused_even_when_asked_for():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(3, 2))
    listed = describe(model)
    with pytest.raises(SelectionError, match="share inputs"):
        route([ChannelL2(on=ws.on.convs)], listed, [i.parameter for i in listed])
    normed = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(3, 2))
    torch.nn.utils.parametrizations.weight_norm(normed[0])
    listed = describe(normed)
    for rule in (ChannelL2(), ChannelL2(on=ws.on.name("0.*original1"))):
        with pytest.raises(SelectionError, match="inner tensor of a parametrization"):
            route([rule], listed, [i.parameter for i in listed])


def test_filters_of_one_element_are_not_centered_to_death():
    listed = describe(nn.Sequential(nn.Linear(1, 5), nn.Linear(5, 2)))
    routes = route([GradientCentralization()], listed, [i.parameter for i in listed])
    assert "would be zero" in routes[0].reasons[0]
    assert routes[2].rules == (0,)


def test_routing_table_prints_every_parameter():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    text = str(ws.attach(optimizer, model, ChannelL2(smoothing=2.0)).table())
    for name in infos():
        assert name in text
    assert "= tied.weight" in text
    assert "ChannelL2(smoothing=2.0)" in text
    assert "grouped kernel (8 groups)" in text


# --------------------------------------------------------------------------- batches


def test_equal_weights_share_a_block_and_keep_their_strides():
    model = nn.Sequential(*[nn.Conv2d(4, 4, 3, bias=False) for _ in range(3)], nn.Conv2d(4, 8, 1, bias=False))
    model[2].to(memory_format=torch.channels_last)
    routed = [(i, (view_of(i, "out"),), (0,)) for i in describe(model)]
    batches = make_batches(routed, batching="stacked")
    assert [len(b.infos) for b in batches] == [2, 1, 1]
    for batch in batches:
        for info, buffer in zip(batch.infos, batch.buffers, strict=True):
            assert buffer.stride() == info.parameter.stride()
            assert buffer.untyped_storage().data_ptr() == batch.block.untyped_storage().data_ptr()
    assert make_batches(routed, inplace=True)[0].buffers == []


def test_workspace_lends_the_same_memory_again():
    work = Workspace()
    a = work.lend("x", (4, 5), torch.zeros(1))
    b = work.lend("x", (10,), torch.zeros(1))
    assert a.data_ptr() == b.data_ptr()
    assert work.lend("y", (4, 5), torch.zeros(1)).data_ptr() != a.data_ptr()


# --------------------------------------------------------------------------- names and places


def test_a_module_that_is_registered_twice_shows_both_names():
    model = nn.Module()
    model.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False))
    model.decoder = model.encoder
    model.out = nn.Linear(4, 2)
    model.alias = model.out
    by_name = {i.name: i for i in describe(model)}
    assert list(by_name) == ["encoder.0.weight", "encoder.1.weight", "out.weight", "out.bias"]
    assert by_name["encoder.0.weight"].aliases == ("decoder.0.weight",)
    assert by_name["out.weight"].aliases == ("alias.weight",)
    assert by_name["out.weight"].is_head
    rules = ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, ChannelL2(on=ws.on.name("decoder.0")))
    assert "= decoder.0.weight" in str(rules.table())


def test_compiled_submodules_keep_their_names_even_when_parametrized():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(3, 2))
    torch.nn.utils.parametrizations.weight_norm(model[0])
    expected = [(i.name, i.kind, i.role, i.is_parametrized) for i in describe(model)]
    model[0] = torch.compile(model[0])
    assert [(i.name, i.kind, i.role, i.is_parametrized) for i in describe(model)] == expected
    assert ("0.parametrizations.weight.original1", "conv", "weight", True) in expected


def test_a_parameter_knows_when_it_has_left_its_place():
    conv = nn.Conv2d(3, 4, 3)
    weight, bias = describe(conv)
    assert weight.owner is conv
    conv.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    assert not weight.is_in_place
    assert bias.is_in_place


# --------------------------------------------------------------------------- selections as values


def is_wide(info, least=2):
    return info.shape[0] >= least


def closing_over(value):
    return lambda info: info.shape == value


class Predicate:
    def __init__(self, least):
        self.least = least

    def __call__(self, info):
        return info.shape[0] >= self.least


def test_predicates_have_an_identity():
    where = ws.on.where
    assert str(where(is_wide)).endswith("test_kernels.is_wide)")
    assert str(where(partial(is_wide, least=3))).endswith("test_kernels.is_wide, least=3))")
    different = [
        where(lambda i: i.groups == 2),
        where(lambda i: i.groups == 3),
        where(lambda i: i.kind == "conv"),
        where(lambda i, n=1: i.groups == n),
        where(lambda i, n=2: i.groups == n),
        where(closing_over((2,))),
        where(closing_over((3,))),
        where(closing_over(is_wide)),
        where(is_wide),
        where(partial(is_wide, least=3)),
        where(partial(is_wide, least=4)),
        where(partial(lambda i: i.groups == 2)),
        where(Predicate(2)),
        where(Predicate(3)),
        where(Predicate(3).__call__),
        where(closing_over({"b", "a"})),
        where(closing_over({"a": [1]})),
    ]
    assert len(set(different)) == len(different)
    for a, b in ((closing_over((2,)), closing_over((2,))), (Predicate(2), Predicate(2))):
        assert where(a) == where(b)
        assert hash(where(a)) == hash(where(b))
    assert where(partial(is_wide, least=3)) == where(partial(is_wide, least=3))
    assert not any("0x" in str(s) for s in different)


def test_functions_that_close_over_themselves_have_an_identity():
    def recursive(info):
        return recursive(info)

    assert "recursive#" in str(ws.on.where(recursive))


@given(trees)
@settings(max_examples=50, deadline=None)
def test_selections_survive_pickling_and_copying(selection):
    for again in (pickle.loads(pickle.dumps(selection)), copy.deepcopy(selection)):
        assert again == selection
        assert [again(i) for i in ALL_INFOS] == [selection(i) for i in ALL_INFOS]


def test_predicates_pickle_as_pickle_says():
    selection = ws.on.convs & ~ws.on.where(partial(is_wide, least=3))
    assert pickle.loads(pickle.dumps(selection)) == selection
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        pickle.dumps(ws.on.convs & ws.on.where(lambda info: info.is_head))


def test_what_is_no_selection_does_not_combine():
    for combine in (lambda: ws.on.convs & "head", lambda: "head" | ws.on.convs, lambda: ws.on.convs | None):
        with pytest.raises(SelectionError, match=r"convs was combined by . with .*, which is no selection; write"):
            combine()
    for make in (lambda: ws.on.where("convs"), lambda: ws.on.name(3), lambda: ws.on.parse(5)):
        with pytest.raises(SelectionError, match=r"where\(\) got 'convs'|name\(\) got 3|got 5"):
            make()


def test_space_around_a_selection_does_not_count():
    assert ws.on.parse("  convs & ~head\n") == ws.on.convs & ~ws.on.head
    with pytest.raises(SelectionError, match="cannot be read"):
        ws.on.parse("convs\0")
