"""Everything one training run holds: model, optimizer, schedule, rules and data on their device, and its position."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from weightspace.errors import RecipeError, RunError
from weightspace.training.data import BatchSource, Data, load_data, load_text
from weightspace.training.distribution import Processes, one_process
from weightspace.training.models import build_model
from weightspace.training.optimizers import attached_rules, make_optimizer
from weightspace.training.progress import Progress
from weightspace.training.recipe import Recipe
from weightspace.training.reproducible import random_states, seed_stream, set_random_states
from weightspace.training.schedule import rate_setter
from weightspace.training.whole_state import optimizer_state_as, sharded_as, whole

if TYPE_CHECKING:
    from weightspace.optim import Rules, SubmanifoldSGD


_ORDER_MATTERS = 2  # numbers; more of them round by the order in which they are added


@dataclass
class Session:
    """The parts of one run. `model` and `optimizer` are Fabric's wrappers, `module` and `inner` what they wrap."""

    recipe: Recipe
    processes: Processes
    module: nn.Module
    model: Any
    inner: torch.optim.Optimizer
    optimizer: Any
    set_rate: Callable[[int], None] | None
    rules: Rules | None
    train: BatchSource
    test: BatchSource
    data: Data
    progress: Progress

    @property
    def fabric(self) -> Fabric:
        """Lightning Fabric, which does devices, precision and distribution."""
        return self.processes.fabric

    @property
    def is_plain(self) -> bool:
        """Whether Fabric's wrappers change nothing: one process, float32. They cost 70 µs a step, so they are left out.

        The others are needed for sharing gradients, casting inputs, scaling losses and skipping steps.
        """
        return self.processes.is_alone and self.recipe.train.precision == "32-true"

    @property
    def forward(self) -> Callable[[Tensor], Tensor]:
        """What to call on a batch."""
        return self.module if self.is_plain else self.model

    @property
    def backward(self) -> Callable[[Tensor], object]:
        """What to call on a loss."""
        return Tensor.backward if self.is_plain else self.fabric.backward

    @property
    def step(self) -> Callable[..., object]:
        """What moves the weights, given a closure or not; rules hang on the inner optimizer and act either way."""
        return self.inner.step if self.is_plain else self.optimizer.step

    @property
    def needs_closure(self) -> bool:
        """Whether the optimizer must be given a closure: a gate looks at a second gradient of the batch."""
        return self.rules is not None and self.rules.needs_closure

    @property
    def has_measurements(self) -> bool:
        """Whether rules or the optimizer measure something of each layer."""
        return self.rules is not None or hasattr(self.inner, "measurements")

    def measurements(self) -> dict[str, dict[str, float]]:
        """What rules measured, and an optimizer on manifolds: by parameter. Reading it waits for the device."""
        found = {} if self.rules is None else self.rules.measurements
        if hasattr(self.inner, "measurements"):
            of_steps = cast("SubmanifoldSGD", self.inner).measurements()
            found = {name: {**found.get(name, {}), **of_steps.get(name, {})} for name in {**found, **of_steps}}
        return found

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.recipe.train.epochs * len(self.train)

    @property
    def parameters(self) -> int:
        """Trainable numbers of the model."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)

    @property
    def num_classes(self) -> int:
        """Classes of the data."""
        return self.data.num_classes

    @property
    def origin(self) -> dict[str, str]:
        """What must be equal (data) or should be (torch, device) where the run continues."""
        return {
            "data": self.data.checksum,
            "source": self.data.source,
            "torch": str(torch.__version__),
            "device": self.fabric.device.type,
            "processes": self.processes.text,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run continues, for a checkpoint: on the first process. Collective."""
        state: dict[str, Any] = {
            "model": dict(self.module.state_dict()),
            "optimizer": self.inner.state_dict(),
            "rules": self.rules.state_dict() if self.rules is not None else None,
        }
        if self.processes.is_sharded:
            state = whole(state, keep=self.processes.is_first)
        random = self.processes.gathered(random_states(self._only_device))
        return {
            **state,
            "precision": self.fabric.strategy.precision.state_dict(),
            "random": random[0] if random else {},
            "random_of_others": random[1:],
            "origin": self.origin,
            "progress": {
                **vars(self.progress),
                "step_seconds": torch.tensor(self.progress.step_seconds, dtype=torch.float64),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken. Another version of torch or kind of device is a warning.

        Raises:
            RunError: The state does not fit the model, optimizer or data.
        """
        try:
            self._check_origin(state["origin"])
            model, optimizer, rules = state["model"], state["optimizer"], state["rules"]
            if self.processes.is_sharded:
                model = sharded_as(model, self.module.state_dict())
                optimizer = optimizer_state_as(optimizer, self.inner)
                rules = sharded_as(rules, self.rules.state_dict() if self.rules is not None else None)
            self.module.load_state_dict(model)
            self.inner.load_state_dict(optimizer)
            if self.rules is not None:
                self.rules.load_state_dict(rules)
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            self._load_random_states([state["random"], *state.get("random_of_others", [])])
            saved = dict(state["progress"])
            saved["step_seconds"] = saved["step_seconds"].tolist()
            saved["loss_sum"] = saved["loss_sum"].to(self.fabric.device)
            self.progress = Progress(**saved)
        except RunError:  # other data
            raise
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"the checkpoint does not fit this model and optimizer ({reason}); start anew with --fresh"
            ) from error

    @property
    def _only_device(self) -> torch.device | None:
        """The device of this process, where others have theirs."""
        return None if self.processes.is_alone else self.fabric.device

    def _load_random_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on with the dropout of every process; processes that were not there begin streams of their own."""
        rank = self.processes.rank
        if len(states) == self.processes.ranks:
            set_random_states(states[rank], self._only_device)
            return
        set_random_states(states[0], self._only_device)
        if rank > 0:
            seed_stream(int(torch.randint(2**62, ())), f"training of process {rank}")

    def whole_module(self) -> nn.Module | None:
        """The model with all of its weights: on the first process, None elsewhere. Collective if sharded."""
        if not self.processes.is_sharded:
            return self.module if self.processes.is_first else None
        state = whole(self.module.state_dict(), keep=self.processes.is_first)
        if not self.processes.is_first:
            return None
        module = self.fabric.strategy.precision.convert_module(_model(self.recipe, self.data))
        module.load_state_dict(state)
        return module

    def _check_origin(self, then: Mapping[str, str]) -> None:
        now = self.origin
        if then["data"] != now["data"]:
            is_are, those = ("is", "that") if self.data.kind == "text" else ("are", "those")
            raise RunError(
                f"the {self.data.kind} of '{self.data.name}' found now ({now['source']}) {is_are} not {those} that "
                f"this run was started with ({then['source']}); restore {those}, or start anew with --fresh"
            )
        before = {"processes": "1", **then}  # not in checkpoints of earlier versions
        keys = ("torch", "device", "processes")
        changed = [f"{key} {before[key]}, now {now[key]}" for key in keys if before[key] != now[key]]
        if changed:
            warnings.warn(
                f"this run was started with {' and '.join(changed)}: it goes on, but not bit for bit",
                RuntimeWarning,
                stacklevel=3,
            )


def load_recipe_data(recipe: Recipe, *, download: bool = True) -> Data:
    """The images or text a recipe asks for, cut to its sizes (one subset for all seeds and arms).

    Args:
        recipe: The recipe.
        download: Whether to download images that are found nowhere.

    Raises:
        DataError: The data set is not there; says the ways to get it.
    """
    wanted = recipe.data
    if wanted.level is None or wanted.context is None:  # which only text has
        data: Data = load_data(wanted.name, root=wanted.root, download=download)
    else:
        data = load_text(wanted.name, root=wanted.root, level=wanted.level, context=wanted.context)
    return data.take(wanted.train_size, wanted.test_size)


def open_session(
    recipe: Recipe, data: Data, *, seed: int, accelerator: str = "auto", processes: Processes | None = None
) -> Session:
    """Build the parts of a run and put them on their device. Seeds torch's generators: the caller restores them.

    Args:
        recipe: What to train.
        data: The images or the text.
        seed: Decides initial weights, dropout and the order of the batches, each by a stream of its own.
        accelerator: Lightning Fabric's name: "auto", "cpu", "cuda" (or "gpu"), "mps".
        processes: Those that train together, in place of `accelerator`; all of them call this.

    Raises:
        RecipeError: Model, optimizer or accelerator cannot be built as asked, or a batch cannot be shared out.
        DataError: The data set has fewer images, or windows of text, than a batch.
        RunError: The processes have different data.
        SelectionError, RuleError, AttachError: A rule does not fit the model.
    """
    train = recipe.train
    processes = processes or one_process(accelerator, train.precision)
    _check_shared(recipe, data, processes)
    fabric = processes.fabric
    seed_stream(seed, "initialization")
    module = _model(recipe, data)
    if processes.ranks > 1 and fabric.device.type == "cuda":  # there is none for the CPU
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # Before the optimizer, which needs the weights as they are shared out, on their device.
    module = fabric.strategy.precision.convert_module(module.to(fabric.device))
    model = fabric.setup_module(module)
    inner = make_optimizer(recipe, module, num_data=data.num_data)
    optimizer = fabric.setup_optimizers(inner)
    rules = _attach(recipe, inner, model)
    if rules is not None and rules.needs_closure and train.precision == "16-mixed":
        raise RecipeError(
            "a gate that looks ahead gives the optimizer a closure, and the gradient scaling of train.precision: "
            "16-mixed takes none; use bf16-mixed, or another gate such as {gate: Coherent, against: history}"
        )
    batches = data.train_batches(
        batch_size=train.batch_size, seed=seed, device=fabric.device, augment=recipe.data.augment
    )
    test = data.test_batches(device=fabric.device)
    if processes.ranks > 1:
        batches.share(processes.rank, processes.ranks)
        test.share(processes.rank, processes.ranks)
    steps = train.epochs * len(batches)
    set_rate = rate_setter(inner, train.optimizer, train.schedule, steps_per_epoch=len(batches), steps=steps)
    progress = Progress(loss_sum=torch.zeros((), device=fabric.device))
    session = Session(
        *(recipe, processes, module, model, inner, optimizer, set_rate, rules, batches, test, data),
        progress=progress,
    )
    if processes.strategy == "ddp" and processes.ranks > _ORDER_MATTERS:
        _settle(session)
    seed_stream(seed, "training" if processes.is_first else f"training of process {processes.rank}")
    return session


def flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(..., classes)` and labels `(...)` as a list of predictions: `(n, classes)` and `(n,)`.

    What is flat already, as images are, passes through untouched.
    """
    return (logits, labels) if labels.dim() == 1 else (logits.flatten(0, -2), labels.flatten())


def _model(recipe: Recipe, data: Data) -> nn.Module:
    module = build_model(recipe.model.name, **data.model_arguments, **recipe.model.options)
    if recipe.train.channels_last:
        module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stub lacks it
    return module


def _settle(session: Session) -> None:
    """Take a backward pass that changes nothing: after its first one DDP lays gradients out anew.

    The layout decides in which order processes are summed, so a resumed run must have that of the run it goes on with.
    """
    buffers = {name: buffer.clone() for name, buffer in session.module.named_buffers()}
    images, labels = next(session.train.epoch(0))
    session.model.train()
    session.backward(F.cross_entropy(*flat(session.forward(images), labels)))
    session.inner.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in session.module.named_buffers():
            buffer.copy_(buffers[name])


def _check_shared(recipe: Recipe, data: Data, processes: Processes) -> None:
    """Refuse what the processes cannot do together. Collective."""
    processes.check_shares(recipe.train.batch_size)
    if processes.is_sharded and recipe.train.channels_last:
        raise RecipeError(
            "train.channels_last: true does not go with fsdp2, which shards weights in the order of their indices; "
            "leave it out, or use the strategy ddp"
        )
    if not processes.is_alone:
        processes.check_alike("data", f"check sum {data.checksum}")


def _attach(recipe: Recipe, optimizer: torch.optim.Optimizer, model: nn.Module) -> Rules | None:
    """The recipe's rules on the inner optimizer: Fabric's wrapper calls its `step` (after unscaling) with all hooks."""
    rules = attached_rules(recipe)
    if not rules:
        return None
    import weightspace

    return weightspace.attach(optimizer, model, *rules, measure_every=recipe.train.measure_every)
