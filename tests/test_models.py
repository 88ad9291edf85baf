"""Models: known parameter counts, known functions, initialization laws, names, and refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.errors import DataError, RecipeError
from weightspace.training.models import MODELS, build_model
from weightspace.training.models.checks import hint
from weightspace.training.models.resnet import BasicBlock, BlockStyle, ResNet, ZeroPaddingShortcut
from weightspace.training.models.scale import Scale

IMAGE_MODELS = [name for name, entry in MODELS.items() if entry.reads == "images"]  # test_transformer.py has the other
SMALL = {
    "mlp": {"hidden": 12},
    "vgg": {"widths": [4, 8], "hidden": [6]},
    "alexnet": {"widths": [4, 4, 6, 6, 4], "hidden": [6, 5]},
    "plain": {"depth": 5, "width": 4},
    "resnet20": {"width": 4},
    "resnet56": {"width": 2},
    "resnet18": {"width": 4},
    "resnet34": {"width": 2},
}


def build(name, *, channels=1, size=8, classes=10, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(
        name, in_channels=channels, image_size=size, num_classes=classes, **{**SMALL.get(name, {}), **options}
    )


def count(model):
    return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------- known answers


@pytest.mark.parametrize(
    ("name", "data", "options", "parameters"),
    [
        ("mlp", (1, 28, 10), {}, 795_010),
        ("mlp", (1, 28, 10), {"hidden": [300, 100]}, 266_610),  # LeNet-300-100
        ("mlp", (1, 28, 10), {"hidden": []}, 7_850),  # softmax regression
        ("plain", (1, 28, 10), {}, 53_690),  # 9*16 + 16, 23 times 9*16*16 + 16, 17*10
        ("plain", (1, 28, 10), {"init": "he", "strided": 0}, 53_690),
        ("alexnet", (3, 32, 10), {}, 368_234),
        ("resnet8", (3, 32, 10), {}, 75_290),
        ("resnet20", (3, 32, 10), {}, 269_722),
        ("resnet56", (3, 32, 10), {}, 853_018),
        ("resnet20", (3, 32, 10), {"stem_stride": 2}, 269_722),
        ("resnet20", (3, 32, 10), {"norm": "none"}, 269_722 - (16 * 7 + 32 * 6 + 64 * 6) + 19),  # a gain for each layer
        ("resnet20", (3, 32, 10), {"shortcut": "projection"}, 272_474),  # + 16*32 + 2*32 + 32*64 + 2*64
        ("resnet18", (3, 224, 1000), {"stem": "imagenet"}, 11_689_512),
        ("resnet34", (3, 224, 1000), {"stem": "imagenet"}, 21_797_672),
        ("resnet18", (3, 32, 10), {}, 11_173_962),
    ],
)
def test_known_parameter_counts(name, data, options, parameters):
    channels, size, classes = data
    with torch.device("meta"):  # counts need shapes only
        model = build_model(name, in_channels=channels, image_size=size, num_classes=classes, **options)
    assert count(model) == parameters


def test_names_are_torchvisions_so_its_weights_load():
    """The published ResNet-18 state dict: 122 entries, spot-checked by name and shape."""
    with torch.device("meta"):
        state = build_model("resnet18", in_channels=3, image_size=224, num_classes=1000, stem="imagenet").state_dict()
    assert len(state) == 122
    expected = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_mean": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.conv1.weight": (128, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.bias": (128,),
        "layer4.1.bn2.weight": (512,),
        "fc.weight": (1000, 512),
        "fc.bias": (1000,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected


def test_module_names_that_globs_rely_on():
    vgg = dict(build("vgg").named_modules())
    assert isinstance(vgg["features.0"], nn.Conv2d)
    assert isinstance(vgg["features.4"], nn.MaxPool2d)  # after (conv, relu) twice
    assert isinstance(vgg["classifier.1"], nn.Linear)
    assert isinstance(vgg["classifier.4"], nn.Linear)
    assert list(vgg) == list(dict(build("vgg", dropout=0.0).named_modules()))
    alexnet = dict(build("alexnet").named_modules())
    assert all(isinstance(alexnet[f"features.{index}"], nn.Conv2d) for index in (0, 3, 6, 8, 10))
    assert all(isinstance(alexnet[f"classifier.{index}"], nn.Linear) for index in (1, 4, 6))
    plain = dict(build("plain").named_modules())
    assert all(isinstance(plain[f"features.{2 * index}"], nn.Conv2d) for index in range(5))
    assert isinstance(plain["fc"], nn.Linear)
    assert isinstance(dict(build("mlp").named_modules())["hidden.0"], nn.Linear)
    assert isinstance(dict(build("resnet20").named_modules())["layer3.2.conv2"], nn.Conv2d)


def test_depth_in_the_name_is_the_number_of_weighted_layers():
    """He et al. count convolutions and the head, without projections: 6n + 2 and so on."""
    for name, depth in (("resnet20", 20), ("resnet56", 56), ("resnet18", 18), ("resnet34", 34)):
        layers = [
            module
            for path, module in build(name).named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in path
        ]
        assert len(layers) == depth


def test_vgg_count_by_formula():
    model = build("vgg", channels=3, size=32, widths=[5, 7], convs_per_stage=2, hidden=[11], pooling="flatten")
    convolutions = sum(9 * a * b + b for a, b in ((3, 5), (5, 5), (5, 7), (7, 7)))
    assert count(model) == convolutions + (7 * 16 * 16 + 1) * 11 + (11 + 1) * 10


@pytest.mark.parametrize("size", [1, 8, 28, 33])
def test_alexnet_equals_the_written_formula(size):
    model = build("alexnet", channels=3, size=size).eval()
    h = x = torch.randn(2, 3, size, size)
    state = model.state_dict()
    for index, kernel, stride, pooled in ((0, 5, 2, True), (3, 5, 1, True), (6, 3, 1, 0), (8, 3, 1, 0), (10, 3, 1, 1)):
        weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
        assert weight.shape[2:] == (kernel, kernel)
        h = F.conv2d(h, weight, bias, stride=stride, padding=kernel // 2).clamp(min=0)
        if pooled:
            h = F.max_pool2d(h, 3, stride=2, padding=1)
    assert h.shape[2:] == (math.ceil(size / 16), math.ceil(size / 16))
    h = h.flatten(1)
    for index in (1, 4):
        h = (h @ state[f"classifier.{index}.weight"].T + state[f"classifier.{index}.bias"]).clamp(min=0)
    torch.testing.assert_close(model(x), h @ state["classifier.6.weight"].T + state["classifier.6.bias"])


def test_alexnet_drops_units_before_both_hidden_layers_and_not_before_the_head():
    model = build("alexnet", dropout=0.3)
    assert [m.p for m in model.classifier if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    assert isinstance(model.classifier[0], nn.Dropout)
    assert isinstance(model.classifier[3], nn.Dropout)


def test_mlp_equals_the_written_formula():
    model = build("mlp", channels=3, size=4, hidden=[5, 6])
    x = torch.randn(2, 3, 4, 4)
    state = model.state_dict()
    h = x.reshape(2, -1)
    for layer in ("hidden.0", "hidden.2"):
        h = (h @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]).clamp(min=0)
    torch.testing.assert_close(model(x), h @ state["fc.weight"].T + state["fc.bias"])


def test_plain_equals_the_written_formula():
    model = build("plain", channels=3, size=8, depth=3, strided=1)
    h = x = torch.randn(2, 3, 8, 8)
    state = model.state_dict()
    for index, stride in ((0, 2), (2, 1), (4, 1)):
        bias = state[f"features.{index}.bias"]
        h = F.conv2d(h, state[f"features.{index}.weight"], bias, stride=stride, padding=1).clamp(min=0)
    assert h.shape == (2, 4, 4, 4)
    torch.testing.assert_close(model(x), h.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"])


def test_zero_padding_shortcut_against_a_loop():
    x = torch.randn(2, 3, 5, 6)
    out = ZeroPaddingShortcut(2, 2)(x)
    assert out.shape == (2, 5, 3, 3)
    for n in range(2):
        for c in range(5):
            for i in range(3):
                for j in range(3):
                    assert out[n, c, i, j] == (x[n, c, 2 * i, 2 * j] if c < 3 else 0)


@pytest.mark.parametrize("shortcut", ["zero-padding", "projection"])
def test_block_equals_the_formula_in_its_docstring(shortcut):
    block = BasicBlock(3, 6, stride=2, style=BlockStyle(shortcut)).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight)
    x = torch.randn(2, 3, 7, 7)

    def norm(bn, y):
        scale = (bn.weight / (bn.running_var + bn.eps).sqrt())[:, None, None]
        return (y - bn.running_mean[:, None, None]) * scale + bn.bias[:, None, None]

    hidden = norm(block.bn1, F.conv2d(x, block.conv1.weight, stride=2, padding=1)).clamp(min=0)
    residual = norm(block.bn2, F.conv2d(hidden, block.conv2.weight, padding=1))
    if shortcut == "projection":
        skip = norm(block.downsample[1], F.conv2d(x, block.downsample[0].weight, stride=2))
    else:
        skip = torch.cat([x[..., ::2, ::2], torch.zeros(2, 3, 4, 4)], dim=1)
    torch.testing.assert_close(block(x), (residual + skip).clamp(min=0))


def test_zero_init_residual_makes_every_block_its_shortcut():
    block = build("resnet20", zero_init_residual=True).layer1[0]
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x.clamp(min=0))
    assert not block.bn2.weight.any()
    assert (block.bn1.weight == 1).all()
    plain = build("resnet20").layer1[0]
    assert not torch.allclose(plain(x), x.clamp(min=0))


@pytest.mark.parametrize("shortcut", ["zero-padding", "projection"])
def test_block_without_batch_norm_equals_the_formula(shortcut):
    block = BasicBlock(3, 6, stride=2, style=BlockStyle(shortcut, "none", "slice"))
    for module in block.modules():
        if isinstance(module, Scale):
            nn.init.uniform_(module.gain)
            nn.init.uniform_(module.bias)
    x = torch.randn(2, 3, 7, 7)

    def scale(layer, y):
        return y * layer.gain / layer.divisor + layer.bias.view(1, -1, 1, 1)

    hidden = scale(block.bn1, F.conv2d(x, block.conv1.weight, stride=2, padding=1)).clamp(min=0)
    residual = scale(block.bn2, F.conv2d(hidden, block.conv2.weight, padding=1))
    if shortcut == "projection":
        skip = scale(block.downsample[1], F.conv2d(x, block.downsample[0].weight, stride=2))
    else:
        skip = torch.cat([x[..., ::2, ::2], torch.zeros(2, 3, 4, 4)], dim=1)
    torch.testing.assert_close(block(x), (residual + skip).clamp(min=0))


def test_without_batch_norm_kernels_start_where_manifolds_keep_them():
    """Filters of norm 1, slices of norm sqrt(3), in the mean square; gains that make both the same function."""
    filters, slices = (
        build("resnet20", channels=3, size=16, width=16, norm="none", unit=u) for u in ("filter", "slice")
    )
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(filters(x), slices(x), rtol=1e-3, atol=1e-4)
    kernel = filters.layer2[1].conv1.weight
    assert kernel.flatten(1).square().sum(1).mean().item() == pytest.approx(1.0, rel=0.05)
    slice_norms = slices.layer2[1].conv1.weight.square().sum((2, 3))
    assert slice_norms.mean().item() == pytest.approx(3.0, rel=0.05)
    assert filters.layer2[1].bn1.gain.item() == pytest.approx(math.sqrt(2))
    assert filters.layer2[1].bn2.gain.item() == pytest.approx(1 / 3)  # nine blocks
    assert slices.layer2[1].bn1.gain.item() == pytest.approx(math.sqrt(2))
    assert slices.layer2[1].bn1.divisor == pytest.approx(math.sqrt(32 * 3))
    nets = (filters, slices)
    assert all(not m.bias.any() for net in nets for m in net.modules() if isinstance(m, Scale))


def test_signal_and_gradient_stay_level_in_a_deep_resnet_without_batch_norm():
    model = build("resnet56", channels=3, size=16, width=16, norm="none", classes=10)
    x = torch.randn(16, 3, 16, 16)
    after = F.relu(model.bn1(model.conv1(x)))
    first, last = after.square().mean().item(), model.layer1(after).square().mean().item()
    assert 0.5 < first < 2
    assert last / first < 4  # e, for residuals of 1/sqrt(27) in nine blocks and more; without that factor 2^9
    F.cross_entropy(model(x), torch.arange(16) % 10).backward()
    norms = [m.weight.grad.norm().item() for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert max(norms) / min(norms) < 100


def test_zero_init_residual_without_batch_norm_makes_every_block_its_shortcut():
    block = build("resnet20", zero_init_residual=True, norm="none").layer1[0]
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x.clamp(min=0))
    assert block.bn1.gain.item() == pytest.approx(math.sqrt(2))


def test_dropout_acts_in_training_only():
    model = build("vgg", dropout=0.5)
    x = torch.rand(4, 1, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    quiet = build("vgg", dropout=0)
    assert torch.equal(quiet(x), quiet(x))


# ---------------------------------------------------------------- initialization


def test_he_normal_initialization():
    """Empirical standard deviations against the law; at 5000 or more entries they are within 5 %."""

    def close(weight, std):
        assert weight.std().item() == pytest.approx(std, rel=0.05)

    mlp = build("mlp", size=28, hidden=200, classes=50)
    close(mlp.hidden[0].weight, math.sqrt(2 / 784))
    close(mlp.fc.weight, math.sqrt(1 / 200))
    uniform = build("mlp", size=28, hidden=200, classes=50, init="torch")
    close(uniform.hidden[0].weight, math.sqrt(1 / (3 * 784)))
    assert uniform.hidden[0].weight.abs().max() <= 1 / 28
    vgg = build("vgg", channels=3, size=32, widths=[32, 64], hidden=[100])
    close(vgg.features[5].weight, math.sqrt(2 / (9 * 32)))
    close(vgg.classifier[1].weight, math.sqrt(2 / 64))
    resnet = build("resnet18", channels=3, size=32, width=32, classes=100)
    close(resnet.layer2[0].conv1.weight, math.sqrt(2 / (9 * 64)))  # fan_out: not 9 * 32
    close(resnet.fc.weight, math.sqrt(1 / 256))
    for model in (mlp, vgg, resnet):
        assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_plain_starts_as_torch_or_he_does():
    """Of 2,304 entries: U(-b, b) with b^2 = 1 / fan_in against N(0, 2 / fan_in)."""
    bound = 1 / math.sqrt(9 * 16)
    ours, his = build("plain", width=16).features[4], build("plain", width=16, init="he").features[4]
    assert 0.99 * bound < ours.weight.abs().max().item() <= bound
    assert ours.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert 0 < ours.bias.abs().max().item() <= bound
    assert his.weight.std().item() == pytest.approx(math.sqrt(2) * bound, rel=0.05)
    assert not his.bias.any()


def test_gradients_die_in_plain_as_torch_starts_it_and_live_as_he_does():
    """What the model is there to show: 1 / sqrt(6) a layer, so 24 layers leave less than a billionth."""
    smallest = {}
    for init in ("torch", "he"):
        model = build("plain", size=28, depth=24, width=16, init=init)
        F.cross_entropy(model(torch.randn(32, 1, 28, 28)), torch.arange(32) % 10).backward()
        norms = [layer.weight.grad.norm().item() for layer in model.features if isinstance(layer, nn.Conv2d)]
        smallest[init] = min(norms) / max(norms)
    assert smallest["torch"] < 1e-7
    assert smallest["he"] > 1e-3


def test_signal_neither_vanishes_nor_explodes_in_a_deep_plain_network():
    """The point of He's variance: 8 unnormalized layers keep the second moment within a factor of a few."""
    model = build("vgg", channels=3, size=16, widths=[64, 64], convs_per_stage=4, seed=1).eval()
    x = torch.randn(8, 3, 16, 16)
    assert 0.2 < (model.features(x).square().mean() / x.square().mean()).item() < 10


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_seed_decides_the_weights(name):
    one, same, other = (build(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------- shapes, formats, compilation


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
def test_every_parameter_gets_a_gradient(name, channels, size):
    model = build(name, channels=channels, size=size, classes=7)
    logits = model(torch.rand(2, channels, size, size))
    assert logits.shape == (2, 7)
    F.cross_entropy(logits, torch.tensor([0, 6])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 40),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=7),
    convs=st.integers(1, 2),
    hidden=st.one_of(st.integers(1, 5), st.lists(st.integers(1, 5), max_size=2)),
    pooling=st.sampled_from(["average", "flatten"]),
)
def test_vgg_builds_and_runs_exactly_where_the_map_can_be_halved(size, widths, convs, hidden, pooling):
    options = {"widths": widths, "convs_per_stage": convs, "hidden": hidden, "pooling": pooling}
    if size >> (len(widths) - 1) < 1:
        with pytest.raises(RecipeError, match=f"{len(widths)} stages on {size} x {size} images, which allow at most"):
            build("vgg", size=size, **options)
    else:
        assert build("vgg", size=size, **options)(torch.rand(1, 1, size, size)).shape == (1, 10)


def test_fully_convolutional_networks_take_other_sizes():
    assert build("resnet20")(torch.rand(2, 1, 12, 10)).shape == (2, 10)
    assert build("vgg")(torch.rand(2, 1, 12, 10)).shape == (2, 10)
    assert build("plain")(torch.rand(2, 1, 12, 3)).shape == (2, 10)


@pytest.mark.parametrize("options", [{"stem": "imagenet"}, {"shortcut": "zero-padding"}, {"norm": "none"}, {}])
def test_channels_last_gives_the_same_numbers_and_stays_channels_last(options):
    model = build("resnet18", channels=3, size=32, **options).double().eval()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    expected = model(x)
    formats = []

    def note(_module, _inputs, output):
        formats.append(output.is_contiguous(memory_format=torch.channels_last))

    for module in model.modules():
        if isinstance(module, BasicBlock | ZeroPaddingShortcut):
            module.register_forward_hook(note)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)
    assert formats
    assert all(formats)


@pytest.mark.parametrize("name", ["mlp", "plain", "vgg", "alexnet", "resnet20", "resnet18"])
def test_compiles_as_one_graph(name):
    model = build(name).eval()
    x = torch.rand(2, 1, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_deepcopy_and_state_dict_round_trip(name):
    model = build(name).eval()
    clone, other = copy.deepcopy(model), build(name, seed=9).eval()
    other.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(clone(x), model(x))
    assert torch.equal(other(x), model(x))


def test_a_small_vgg_learns_two_textures():
    """Stripes against checkers: the whole chain of layers carries a useful gradient."""
    torch.manual_seed(0)
    grid = torch.arange(8)
    stripes, checkers = (grid % 2).expand(8, 8), (grid[:, None] + grid) % 2
    labels = torch.arange(64) % 2
    x = torch.stack([stripes, checkers]).float()[labels][:, None] + 0.3 * torch.randn(64, 1, 8, 8)
    model = build("vgg", classes=2, dropout=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert (model.eval()(x).argmax(1) == labels).float().mean() == 1.0


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "resnet19",
            {},
            'Model "resnet19" is unknown: did you mean "resnet18"? Known: mlp, plain, vgg, alexnet, resnet8, resnet20',
        ),
        ("VGG", {}, 'did you mean "vgg"?'),
        ("vgg", {"width": [8]}, 'Model "vgg" has no option "width": did you mean "widths"?'),
        ("mlp", {"dropout": 0.1}, 'Model "mlp" has no option "dropout": known: hidden, init.'),
        ("resnet20", {"stem": "cifar"}, 'Model "resnet20" has no option "stem"'),
        ("resnet20", {"blocks": 4}, 'Model "resnet20" has no option "blocks"'),
        ("resnet18", {"stem": "imagnet"}, "has no stem='imagnet': did you mean \"imagenet\"?"),
        ("resnet20", {"shortcut": "A"}, "has no shortcut='A': known: zero-padding, projection."),
        ("resnet20", {"width": 0}, "needs width to be an integer of at least 1, got 0"),
        ("resnet20", {"width": 2.5}, "needs width to be an integer of at least 1, got 2.5"),
        ("resnet20", {"width": True}, "got True"),
        ("resnet20", {"zero_init_residual": "no"}, "needs zero_init_residual to be true or false, got 'no'"),
        ("resnet20", {"norm": "layer"}, "has no norm='layer': known: batch, none."),
        ("resnet18", {"norm": "none", "unit": "kernel"}, "has no unit='kernel': known: filter, slice."),
        ("resnet20", {"stem_stride": 3}, "needs stem_stride to be 1 or 2, got 3."),
        ("resnet20", {"unit": "slice"}, 'got unit="slice", which scales kernels without batch norm; set norm="none".'),
        ("vgg", {"widths": []}, "needs at least one entry in widths"),
        ("vgg", {"widths": "64"}, "needs widths to be an integer of at least 1, got '64'"),
        ("vgg", {"widths": [8, -1]}, "needs every entry of widths to be an integer of at least 1, got -1"),
        ("vgg", {"convs_per_stage": 0}, "needs convs_per_stage to be"),
        ("vgg", {"dropout": 1.0}, "needs dropout to be at least 0 and below 1, got 1.0"),
        ("vgg", {"dropout": float("nan")}, "got nan"),
        ("vgg", {"pooling": "max"}, "has no pooling='max'"),
        ("vgg", {"widths": [1] * 5}, "5 stages on 8 x 8 images, which allow at most 4"),
        ("alexnet", {"widths": [8, 8, 8, 8]}, 'Model "alexnet" needs five widths, one for each convolution, not 4'),
        ("alexnet", {"widths": 8}, 'needs five widths, one for each convolution, not 1; for other depths use "vgg"'),
        ("alexnet", {"hidden": [8, 8, 8]}, 'so "hidden" takes one width or two, not 3; leave some out.'),
        ("alexnet", {"hidden": []}, "needs at least one entry in hidden"),
        ("alexnet", {"dropout": 1}, "needs dropout to be at least 0 and below 1, got 1"),
        ("alexnet", {"dropout": "0.5"}, "needs dropout to be at least 0 and below 1, got '0.5'"),
        ("plain", {"depth": 0}, "needs depth to be an integer of at least 1, got 0"),
        ("plain", {"width": 1.5}, "needs width to be an integer of at least 1, got 1.5"),
        ("plain", {"init": "xavier"}, "has no init='xavier': known: torch, he."),
        ("plain", {"strided": 6}, "needs strided to be an integer from 0 to depth, here 5, got 6; give 0 or 2."),
        ("plain", {"strided": -1}, "got -1"),
        ("plain", {"strided": True}, "got True"),
        ("plain", {"strided": 4}, "4 strided convolutions on 8 x 8 images, and the last one would halve a 1 x 1 map"),
        ("plain", {"strided": 4}, "give images of at least 9 x 9 pixels or lower strided."),
        ("mlp", {"hidden": [10, 0]}, "needs every entry of hidden to be"),
        ("mlp", {"hidden": None}, "needs hidden to be an integer of at least 1, got None"),
        ("resnet18", {"stem": "imagenet"}, 'needs images of at least 17 x 17 pixels, got 8 x 8; use stem="cifar".'),
    ],
)
def test_wrong_names_and_options_are_refused_in_one_sentence(name, options, sentence):
    with pytest.raises(RecipeError) as caught:
        build(name, **options)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("what", ["channels", "size", "classes"])
def test_counts_from_the_data_are_checked(name, what):
    with pytest.raises(RecipeError, match="integer of at least 1, got 0"):
        build(name, **{what: 0})


def test_plain_builds_exactly_where_no_single_pixel_is_halved():
    for strided, smallest in ((1, 2), (2, 3), (3, 5), (4, 9)):
        sizes = []
        model = build("plain", size=smallest, strided=strided)
        model.features[2 * strided - 2].register_forward_pre_hook(
            lambda _m, inputs, sizes=sizes: sizes.append(inputs[0].shape[-1])
        )
        model(torch.rand(1, 1, smallest, smallest))
        assert sizes == [2]
        with pytest.raises(RecipeError, match=f"at least {smallest} x {smallest}"):
            build("plain", size=smallest - 1, strided=strided)


def test_a_strided_stem_halves_every_map():
    model = build("resnet20", channels=3, size=32, stem_stride=2)
    assert model.layer1(model.conv1(torch.rand(1, 3, 32, 32))).shape[-2:] == (16, 16)
    with pytest.raises(
        RecipeError, match="halves the map 3 times and needs images of at least 5 x 5 pixels, got 4 x 4"
    ):
        build("resnet20", size=4, stem_stride=2)


def test_smallest_image_is_where_the_last_halving_still_has_two_pixels():
    for name, smallest, options in (("resnet20", 3, {}), ("resnet18", 5, {}), ("resnet18", 17, {"stem": "imagenet"})):
        sizes = []
        model = build(name, size=smallest, **options).eval()
        last = [m for m in model.modules() if isinstance(m, BasicBlock) and m.downsample is not None][-1]
        last.register_forward_pre_hook(lambda _m, inputs, sizes=sizes: sizes.append(inputs[0].shape[-1]))
        model(torch.rand(1, 1, smallest, smallest))
        assert sizes == [2]
        with pytest.raises(RecipeError, match=f"at least {smallest} x {smallest}"):
            build(name, size=smallest - 1, **options)


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8), (2, 64)])
def test_wrong_batches_are_refused_before_any_layer_sees_them(name, shape):
    with pytest.raises(DataError, match=rf'Model "{name}" takes images of shape \(N, 1, .*got \({shape[0]}, '):
        build(name)(torch.rand(shape))


def test_sizes_that_cannot_be_taken_are_refused():
    for model in (build("mlp"), build("alexnet"), build("vgg", pooling="flatten")):
        with pytest.raises(DataError, match=r"\(N, 1, 8, 8\), got \(2, 1, 9, 9\)"):
            model(torch.rand(2, 1, 9, 9))
    with pytest.raises(DataError, match=r"got \(2, 1, 1, 8\)"):
        build("vgg")(torch.rand(2, 1, 1, 8))
    with pytest.raises(DataError, match=r"got \(2, 1, 2, 8\)"):
        build("plain")(torch.rand(2, 1, 2, 8))


def test_resnet_class_refuses_other_stage_counts():
    with pytest.raises(RecipeError, match="three or four stages"):
        ResNet(
            name="mine", blocks=[1, 1], in_channels=1, image_size=8, num_classes=2, width=2, stem="cifar",
            shortcut="projection", zero_init_residual=False,
        )  # fmt: skip


def test_registry_is_frozen_and_complete():
    residual = ["resnet8", "resnet20", "resnet56", "resnet18", "resnet34"]
    assert list(MODELS) == ["mlp", "plain", "vgg", "alexnet", *residual, "transformer"]
    assert all(entry.name == name and entry.summary for name, entry in MODELS.items())
    with pytest.raises(TypeError):
        MODELS["mine"] = MODELS["mlp"]
    with pytest.raises(AttributeError):
        MODELS["mlp"].name = "other"


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_listed_options_with_their_defaults_are_accepted(name):
    with torch.device("meta"):
        model = build_model(name, in_channels=1, image_size=28, num_classes=10, **MODELS[name].options)
        plain = build_model(name, in_channels=1, image_size=28, num_classes=10)
    assert count(model) == count(plain)


def test_hint_with_nothing_known():
    assert hint("x", []) == "known: none."
