"""Rules on any torch optimizer, through its step hooks.

Before the optimizer's step every routed `p.grad` is replaced by a buffer that holds the transformed gradient; after
the step `p.grad` is again the tensor that `backward()` left. Nothing else of optimizer, model or script changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from weightspace.errors import AttachError, NonFiniteGradientError, RuleError
from weightspace.kernels import RoutingTable, Rule, Workspace, describe, make_batches, route
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.selection import Selection
from weightspace.kernels.stacking import Batching
from weightspace.metrics import Metric
from weightspace.optim._transform import BatchTransform
from weightspace.optim.verify import PropertyCheck, measure_properties, raise_if_broken

_ATTRIBUTE = "_weightspace_rules"
_STATE_VERSION = 1


class Rules:
    """Rules in force on one optimizer. Made by `attach`; see there."""

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        rules: tuple[Rule, ...],
        *,
        measure_every: int | None,
        check_finite: bool,
        inplace: bool,
        batching: Batching,
    ) -> None:
        self.optimizer = optimizer
        self.rules = rules
        self._model = model
        self._measure_every = measure_every
        self._check_finite = check_finite
        self._inplace = inplace
        self._batching: Batching = batching
        self._work = Workspace()
        self._originals: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor]] = []
        self._measured: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._steps = torch.zeros((), dtype=torch.int64)
        self._is_open = self._is_removed = False
        self._build(strict=True)
        self._handles = [
            # A compiled optimizer runs the hooks as they are and compiles its own arithmetic.
            optimizer.register_step_pre_hook(cast("Any", torch.compiler.disable(self._before_step))),
            optimizer.register_step_post_hook(cast("Any", torch.compiler.disable(self._after_step))),
        ]
        # Before the user's own post-hooks: they may read or zero p.grad, which must be the loss gradient again.
        cast("Any", optimizer)._optimizer_step_post_hooks.move_to_end(  # noqa: SLF001  # torch has no way to register first
            self._handles[1].id, last=False
        )
        # A weak reference: the optimizer must not keep rules alive that the user dropped with `remove()`.
        setattr(optimizer, _ATTRIBUTE, weakref.ref(self))

    # ------------------------------------------------------------------ what the user sees

    def table(self) -> RoutingTable:
        """Every parameter with its rules and views, or the reason why none. Prints itself."""
        self._refresh()
        modes = {i.name: f"{len(b.infos)} × {b.mode}" for b in self._batches for i in b.infos}
        return RoutingTable(self.rules, self._routes, modes)

    @property
    def steps(self) -> int:
        """Optimizer steps taken under these rules, resumed ones included."""
        return int(self._steps)

    @property
    def measurements(self) -> dict[str, dict[str, float]]:
        """Per-parameter figures of the latest measured step (see `measure_every`); reading them synchronizes.

        `rho`: share of the gradient's energy in its mean along the first metric's axis, in [0, 1].
        `shrinkage`: norm of the transformed over the norm of the loss gradient.
        """
        return {n: {"rho": float(rho), "shrinkage": float(s)} for n, (rho, s) in self._measured.items()}

    def verify(self) -> list[PropertyCheck]:
        """Measures every declared property on the routed shapes and raises if one does not hold.

        For a metric: its defining equation, applied to the answer for a random gradient, must give that gradient back.

        Returns:
            One check for each rule and distinct weight layout, with the error measured and the bound it must meet.

        Raises:
            VerificationError: Names rule, parameter, error and bound.
        """
        if self._is_removed:
            raise AttachError("These rules were removed, so there is nothing to verify; attach them again.")
        self._refresh()
        checks = measure_properties(self.rules, self._batches, self._work)
        raise_if_broken(checks)
        return checks

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings and containers of these: nothing that needs unpickling."""
        self._refresh()
        return {
            "version": _STATE_VERSION,
            "rules": [repr(r) for r in self.rules],
            "routes": {r.info.name: list(r.rules) for r in self._routes if r.rules},
            "steps": self._steps.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave, after checking that it belongs to the same rules on the same parameters.

        Raises:
            AttachError: The state was saved by other rules, for other parameters or by a newer version.
        """
        missing = {"version", "rules", "routes", "steps"} - set(state)
        if missing:
            raise AttachError(f"This is no state of weightspace rules: it lacks {', '.join(sorted(missing))}.")
        if int(state["version"]) > _STATE_VERSION:
            raise AttachError(
                f"The state has version {int(state['version'])}, this weightspace reads {_STATE_VERSION}: "
                "update weightspace."
            )
        mine = self.state_dict()
        for key, noun in (("rules", "rules"), ("routes", "parameters")):
            if state[key] != mine[key]:
                raise AttachError(
                    f"The state was saved with other {noun}: saved {state[key]}, attached {mine[key]}; "
                    "attach the same rules first."
                )
        self._steps = torch.as_tensor(state["steps"], dtype=torch.int64).detach().clone().cpu()

    def remove(self) -> None:
        """Takes the rules off: gradients are the user's again, the optimizer is plain, the buffers are freed."""
        self.restore_gradients()
        for handle in self._handles:
            handle.remove()
        self._batches, self._transforms, self._routes = [], [], ()
        self._measured.clear()
        self._work.clear()
        self._is_removed = True
        if getattr(self.optimizer, _ATTRIBUTE, lambda: None)() is self:
            delattr(self.optimizer, _ATTRIBUTE)

    def restore_gradients(self) -> None:
        """Puts the loss gradients back into `p.grad`.

        Happens by itself after every step. Only a step that raised leaves the stand-ins in place; the next step (or
        this call) restores them.
        """
        for parameter, gradient, buffer in self._originals:
            if parameter.grad is buffer:
                parameter.grad = gradient
        self._originals.clear()

    def __repr__(self) -> str:
        routed = sum(bool(r.rules) for r in self._routes)
        return f"<Rules {', '.join(map(str, self.rules))} on {routed} of {len(self._routes)} parameters>"

    # ------------------------------------------------------------------ the step

    def _refresh(self) -> None:
        """Routes anew if the optimizer's parameters changed since the last look."""
        if not self._is_removed and [_facts(p) for p in _parameters(self.optimizer)] != self._known:
            self._build(strict=False)

    def _build(self, *, strict: bool) -> None:
        """Routes parameters and allocates buffers; again when parameters are added, frozen, unfrozen, cast or moved."""
        self._work.clear()
        self._measured.clear()
        optimized = _parameters(self.optimizer)
        self._known = [_facts(p) for p in optimized]
        self._routes = route(self.rules, describe(self._model), optimized, strict=strict)
        for r in self._routes:
            if r.rules:
                _refuse_distributed(r.info)
        self._batches = make_batches(
            [(r.info, r.views, r.rules) for r in self._routes if r.rules],
            batching=self._batching,
            inplace=self._inplace,
        )
        self._transforms = [
            BatchTransform(b, cast("tuple[Metric, ...]", self.rules), self._work) for b in self._batches
        ]

    @torch.no_grad()
    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._is_open = True
        self.restore_gradients()
        self._refresh()
        # args[0] is the optimizer itself.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._swap()
            return None
        wrapped = self._wrap(closure)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    @torch.no_grad()
    def _after_step(self, _: Optimizer, __: tuple[Any, ...], ___: dict[str, Any]) -> None:
        self.restore_gradients()
        if self._is_open:  # a subclass that calls its parent's step fires the hooks twice
            self._steps += 1
            self._is_open = False

    def _wrap(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """A closure computes its gradients inside the step: they are transformed as soon as it returns."""

        def wrapped() -> Any:
            self.restore_gradients()
            loss = closure()
            self.restore_gradients()  # a step within a step wraps the closure twice
            with torch.no_grad():
                self._swap()
            return loss

        return wrapped

    def _swap(self) -> None:
        is_measured = self._measure_every is not None and int(self._steps) % self._measure_every == 0
        must_check = self._must_check()
        if must_check and self._inplace:
            # In place there is no second copy: look before touching anything, so that the gradients survive.
            grads = [i.parameter.grad for i in self._routed()]
            self._raise_unless_finite([g.float().sum().reshape(1) for g in grads if g is not None])
        witnesses: list[torch.Tensor] | None = [] if must_check and not self._inplace else None
        swapped: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor]] = []
        for transform in self._transforms:
            swapped += transform.run(witnesses, self._measured if is_measured else None)
        self._raise_unless_finite(witnesses or [])
        self._originals = swapped  # first: if an assignment fails, those before it can be taken back
        for parameter, _, buffer in swapped:
            parameter.grad = buffer

    def _routed(self) -> list[ParameterInfo]:
        return [info for batch in self._batches for info in batch.infos]

    def _raise_unless_finite(self, witnesses: list[torch.Tensor]) -> None:
        if not _all_finite(witnesses):
            _raise_non_finite(self._routed())

    def _must_check(self) -> bool:
        # A fused optimizer under GradScaler gets `found_inf` and skips the step by itself; CUDA graphs cannot wait.
        if not self._check_finite or getattr(self.optimizer, "found_inf", None) is not None:
            return False
        return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def attach(
    optimizer: Optimizer,
    model: nn.Module,
    *rules: Rule,
    measure_every: int | None = None,
    check_finite: bool = True,
    inplace: bool = False,
    batching: Batching = "auto",
) -> Rules:
    """Puts rules in force on a torch optimizer; the rest of the training script stays as it is.

    The order within a step is canonical, whatever order the rules come in: metrics first. Several metrics on one
    weight act one after the other, in the order given.

    Args:
        optimizer: Any `torch.optim.Optimizer` that steps along `p.grad`, closures included; LBFGS is refused.
        model: The model whose parameters it optimizes, inside `DistributedDataParallel` or `torch.compile` or not.
        rules: `weightspace.metrics.ChannelL2()` and its like. Each must select at least one parameter.
        measure_every: Measure `rho` and `shrinkage` of every routed weight on each k-th step, from the first on.
        check_finite: Raise on NaN or infinite gradients before any weight changes; one synchronization a step.
        inplace: Overwrite `p.grad` instead of lending buffers: saves their memory, `p.grad` ends transformed.
        batching: `"single"` runs weight by weight, `"stacked"` equal weights in one call, `"auto"` as measured.

    Returns:
        `Rules`, with `table()`, `verify()`, `state_dict()`, `remove()`.

    Raises:
        SelectionError: A rule selects nothing it can act on.
        AttachError: The optimizer already carries rules, cannot carry any, or weights are sharded.
        RuleError: No rule was given, or something that is no rule.

    Example:
        >>> import weightspace as ws
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> rules = ws.attach(optimizer, model, ws.metrics.ChannelL2(smoothing=2.0))
        >>> _ = nn.init.zeros_(model[0].weight)
        >>> model[0].weight.grad = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
        >>> optimizer.step()
        >>> model[0].weight.flatten().tolist(), model[0].weight.grad.flatten().tolist()
        ([-1.5, -2.5], [1.0, 3.0])
    """
    _refuse_rules(rules)
    if measure_every is not None and (not isinstance(measure_every, int) or measure_every < 1):
        raise RuleError(
            f"attach() got measure_every={measure_every!r}; it counts steps and must be at least 1, or None."
        )
    if batching not in ("auto", "single", "stacked"):
        raise RuleError(f"attach() got batching={batching!r}; choose 'auto', 'single' or 'stacked'.")
    _refuse_optimizer(optimizer, model)
    ordered = tuple(sorted(rules, key=lambda r: r.stage))
    return Rules(
        optimizer,
        model,
        ordered,
        measure_every=measure_every,
        check_finite=check_finite,
        inplace=inplace,
        batching=batching,
    )


def _refuse_rules(rules: tuple[Rule, ...]) -> None:
    if not rules:
        raise RuleError("attach() got no rule; pass at least one, such as ws.metrics.ChannelL2().")
    for rule in rules:
        if not isinstance(rule, Metric):
            raise RuleError(f"attach() got {rule!r}, which is no rule; pass instances such as ChannelL2().")
        if rule.on is not None and not isinstance(rule.on, Selection):
            raise RuleError(f"{type(rule).__name__} got on={rule.on!r}; pass a selection such as ws.on.convs.")
    if len(set(rules)) < len(rules):
        raise RuleError(f"attach() got the same rule twice: {', '.join(map(str, rules))}; give each rule once.")


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _facts(parameter: nn.Parameter) -> tuple[object, ...]:
    """What routing and buffers depend on."""
    return (
        id(parameter),
        parameter.requires_grad,
        parameter.dtype,
        parameter.device,
        parameter.shape,
        parameter.stride(),
    )


def _refuse_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    if not isinstance(optimizer, Optimizer):
        raise AttachError(f"attach() needs a torch.optim.Optimizer first and the model second; got {type(optimizer)}.")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise AttachError(
            "LBFGS estimates curvature and searches along lines from the loss's own gradient; a metric makes both "
            "inconsistent. Use a first-order optimizer such as SGD or AdamW."
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise AttachError("The optimizer has differentiable=True; a rule would cut its graph: set it to False.")
    if not isinstance(model, nn.Module):
        raise AttachError(f"attach() needs the model, a torch.nn.Module, second; got {type(model)}.")
    current = getattr(optimizer, _ATTRIBUTE, lambda: None)()
    if current is not None:
        raise AttachError(
            f"This optimizer already carries {current!r}; call its remove() first, or give all rules to one attach()."
        )


def _refuse_distributed(info: ParameterInfo) -> None:
    # Checked by attribute: importing torch.distributed.tensor costs half a second.
    if hasattr(info.parameter, "device_mesh"):
        raise AttachError(
            f"{info.name} is a sharded DTensor (fully_shard); rules act on whole weights: "
            "train it with DistributedDataParallel."
        )


def _all_finite(slices: list[torch.Tensor]) -> bool:
    """One reduction and one synchronization for each device and dtype, however many weights there are."""
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for piece in slices:
        groups.setdefault((piece.device, piece.dtype), []).append(piece)
    return all(bool(torch.cat(group).isfinite().all()) for group in groups.values())


def _raise_non_finite(infos: list[ParameterInfo]) -> None:
    for info in infos:
        grad = info.parameter.grad
        if grad is None or bool(grad.isfinite().all()):
            continue
        nan, inf = int(grad.isnan().sum()), int(grad.isinf().sum())
        raise NonFiniteGradientError(
            f"The gradient of {info.name} holds {nan} NaN and {inf} infinite of {grad.numel()} values; no weight was "
            "changed. Lower the learning rate, clip gradients, or use a GradScaler with 16-bit precision."
        )
    raise NonFiniteGradientError(
        "A transformed gradient overflowed although every gradient is finite; no weight was changed."
    )
