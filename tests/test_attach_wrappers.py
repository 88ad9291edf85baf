"""Rules on wrapped and distributed models: seen through, equal on every rank, or refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import weightspace as ws
from small_training import OPTIMIZERS, backward, batch, make_model, manual_steps, weights
from weightspace.errors import AttachError
from weightspace.kernels import describe, unwrap
from weightspace.metrics import ChannelL2, GradientCentralization, transform_gradient

METRIC = ChannelL2(smoothing=3.0)


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def assert_trained(model, optimizer, step, name="SGD"):
    for k in range(3):
        optimizer.zero_grad()
        step(k)
        optimizer.step()
    for got, want in zip(weights(model), manual_steps(METRIC, OPTIMIZERS[name]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------- one process


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_fabric_is_seen_through_and_carries_rules_once(precision):
    fabric_module = pytest.importorskip("lightning_fabric")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1, precision=precision)
    inner, bare = make_model(), OPTIMIZERS["SGD"]
    sgd = bare(inner.parameters())
    model, optimizer = fabric.setup(inner, sgd)
    rules = ws.attach(optimizer, model, METRIC)
    assert rules.optimizer is sgd
    assert [r.info.name for r in rules.table().routed] == ["0.weight", "2.weight", "4.weight"]
    for carrier in (optimizer, sgd):
        with pytest.raises(AttachError, match="already carries"):
            ws.attach(carrier, model, GradientCentralization())

    def step(k):
        x, y = batch(k)
        fabric.backward(nn.functional.cross_entropy(model(x), y))

    if precision == "32-true":
        assert_trained(inner, optimizer, step)
    else:
        step(0)
        before, grad = inner[2].weight.detach().clone(), inner[2].weight.grad.clone()
        optimizer.step()
        expected = before - 0.1 * (transform_gradient(METRIC, grad) + 1e-2 * before)
        torch.testing.assert_close(inner[2].weight, expected)
    rules.remove()
    ws.attach(sgd, inner, METRIC)
    with pytest.raises(AttachError, match="already carries"):
        ws.attach(optimizer, model, METRIC)


def test_rules_attached_before_fabric_wraps_stay_in_force():
    fabric_module = pytest.importorskip("lightning_fabric")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    inner = make_model()
    sgd = OPTIMIZERS["SGD"](inner.parameters())
    ws.attach(sgd, inner, METRIC)
    model, optimizer = fabric.setup(inner, sgd)
    with pytest.raises(AttachError, match="already carries"):
        ws.attach(optimizer, model, METRIC)
    assert_trained(inner, optimizer, lambda k: backward(model, k))


class FabricLike(nn.Module):
    """The attributes of Lightning Fabric's wrapper, without Lightning."""

    def __init__(self, model):
        super().__init__()
        self._forward_module = model
        self._original_module = unwrap(model)

    @property
    def module(self):
        return self._original_module


def test_wrappers_in_any_order_are_taken_off():
    model = make_model()
    names = [i.name for i in describe(model)]
    for wrapped in (
        FabricLike(model),
        FabricLike(torch.compile(model)),
        torch.compile(FabricLike(nn.DataParallel(model))),
    ):
        assert unwrap(wrapped) is model
        assert [i.name for i in describe(wrapped)] == names


@pytest.mark.usefixtures("one_rank")
def test_distributed_data_parallel_is_seen_through():
    model = make_model()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = OPTIMIZERS["AdamW"](wrapped.parameters())
    rules = ws.attach(optimizer, wrapped, METRIC)
    assert rules.table().routed[0].info.name == "0.weight"
    assert_trained(model, optimizer, lambda k: backward(wrapped, k), "AdamW")


# --------------------------------------------------------------------------- sharded weights


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_flat_shards_are_refused_by_name(use_orig_params):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(make_model(), device_id=torch.device("cpu"), use_orig_params=use_orig_params)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    name = r"0\.weight" if use_orig_params else "_flat_param"
    with pytest.raises(AttachError, match=rf"^{name} is a flat shard of FullyShardedDataParallel"):
        ws.attach(optimizer, model, ChannelL2())


@pytest.mark.usefixtures("one_rank")
def test_optimizers_that_step_within_backward_are_refused():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = make_model()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    optimizer._overlap_with_ddp = True
    with pytest.raises(AttachError, match="overlap_with_ddp=True steps within backward"):
        ws.attach(optimizer, model, ChannelL2())
