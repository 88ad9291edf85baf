"""Rules in force on one optimizer: what they did, what they do at each step, how they are saved and taken off.

Who holds whom decides when memory is freed: the optimizer holds its hooks, a hook holds its `Rules`, and the `Rules`
know the optimizer by a weak reference only. So rules stay in force without a name, and nothing waits for the garbage
collector.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import nn
from torch.optim import Optimizer

from weightspace.errors import AttachError
from weightspace.kernels import RoutingTable, Rule, unwrap
from weightspace.optim._before import BeforeStep, is_rehearsal
from weightspace.optim._checks import HOOK_MARK, Options, check_closure
from weightspace.optim._foreign_state import refusing_foreign_state
from weightspace.optim._lookahead import RandomState
from weightspace.optim._manifolds import Reproject, momentum_keys
from weightspace.optim._plan import Plan
from weightspace.optim._stand_ins import StandIns
from weightspace.optim._transform import read_measured
from weightspace.optim._verify_penalties import measure_penalties
from weightspace.optim.verify import PropertyCheck, measure_properties, raise_if_broken, worst_of
from weightspace.precision import full_precision

_STATE_VERSION = 1


class Rules:
    """Rules in force on one optimizer. Made by `attach`; see there."""

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, rules: tuple[Rule, ...], options: Options, steps: int = 0
    ) -> None:
        self.rules = rules
        self._optimizer = weakref.ref(optimizer)
        self._options = options
        self._plan = Plan(optimizer, model, rules, options, steps)
        self._stand_ins = StandIns()
        self._before = BeforeStep(self._plan, self._stand_ins, options)
        self._steps = self._plan.steps
        self._is_open = self._is_removed = False
        self._handles = [
            optimizer.register_step_pre_hook(self._as_hook(self._before_step)),
            optimizer.register_step_post_hook(self._as_hook(self._after_step)),
        ]
        # Before the user's own post-hooks: they may read or zero p.grad, which must be the loss gradient again.
        # torch has no way to register first.
        hooks = cast("Any", optimizer)._optimizer_step_post_hooks  # noqa: SLF001
        hooks.move_to_end(self._handles[1].id, last=False)
        if self._plan.manifolds is not None:
            reproject = Reproject(self._plan.manifolds, self._steps)
            self._handles.append(unwrap(model).register_load_state_dict_post_hook(reproject))

    def _as_hook(self, act: Callable[..., Any]) -> Any:
        # A compiled optimizer runs the hooks as they are and compiles its own arithmetic.
        hook = cast("Any", torch.compiler.disable(act))
        setattr(hook, HOOK_MARK, self)
        return hook

    # ------------------------------------------------------------------ what the user sees

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that carries the rules, inside wrappers such as Lightning Fabric's."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise AttachError("The optimizer of these rules is gone; attach the rules to the one in use.")
        return optimizer

    def table(self) -> RoutingTable:
        """Every parameter with its rules and views, or the reason why none. Prints itself."""
        self._refresh("there is no table")
        modes = {i.name: f"{len(b.infos)} × {b.mode}" for b in self._plan.batches for i in b.infos}
        modes.update(self._plan.parts.where())
        for name, distance in self.moved.items():
            modes[name] = f"{modes.get(name, '')}, moved by {100 * distance:.3g} %".removeprefix(", ")
        return RoutingTable(self.rules, self._plan.routes, modes)

    @property
    def steps(self) -> int:
        """Optimizer steps taken under these rules, resumed ones included."""
        return int(self._steps)

    @property
    def moved(self) -> dict[str, float]:
        """Weights that were off their manifolds and were moved onto them, at attach or later, after `load_state_dict`.

        How far, in the Frobenius norm, relative to the weight's norm before; by parameter name, of the latest time.
        """
        return {} if self._plan.manifolds is None else dict(self._plan.manifolds.moved)

    @property
    def fallbacks(self) -> dict[str, int]:
        """For every constrained weight, how many of its points ever needed an exact retraction, by name."""
        return {} if self._plan.manifolds is None else self._plan.manifolds.fallbacks(self._plan.parts.together)

    @property
    def duty_cycles(self) -> dict[str, dict[str, float]]:
        """How often the gates of penalties were open: shares in [0, 1] by parameter name and penalty.

        Of the steps at which a gate was asked, resumed ones included; penalties without a gate are not in it. Reading
        it synchronizes once for each device.
        """
        return {} if self._plan.penalties is None else self._plan.penalties.duty_cycles()

    @property
    def vanished(self) -> dict[str, int]:
        """Weights that a penalty has made zero altogether, with the number of steps after which that was seen first.

        `WeightPenalty` rules are watched, each 50 steps; a weight that comes back leaves the list. In gradient form,
        weights within two chatter lengths of zero count as zero (behind a gate only up to a tenth of the largest number
        at attach), and so do those below a millionth of that number.
        """
        return {} if self._plan.penalties is None else dict(self._plan.penalties.watch.vanished)

    @property
    def needs_closure(self) -> bool:
        """Whether a gate needs `optimizer.step(closure)`: `Coherent("lookahead")` does."""
        return self._plan.penalties is not None and self._plan.penalties.needs_closure

    @property
    def measurements(self) -> dict[str, dict[str, float]]:
        """Per-parameter figures of the latest measured step (see `measure_every`); reading them synchronizes.

        `rho`: share of the gradient's energy in its mean along the first metric's axis, in [0, 1].
        `shrinkage`: norm of the transformed over the norm of the loss gradient, before penalties are added.
        `R`: Frobenius norm of the Riemannian gradient of a constrained weight; near zero where nothing moves any more.
        A penalty's name: its value at its latest evaluation (now, of `L1` and its like), whether or not anything else
        is measured; `zeros`: share of a penalized weight's numbers that are zero; `duty`, `cosine`: of its gate.

        Cost: one copy and one synchronization for each device. Of sharded weights all processes must read them.
        """
        acting = {info.name for info in self._plan.acting}
        split = [info.name for info in self._plan.acting if info.is_split and info.name in self._plan.lent]
        figures = read_measured(
            {name: figures for name, figures in self._before.measured.items() if name in acting},
            split,
            self._plan.parts.together,
        )
        if self._plan.penalties is not None:
            for name, values in self._plan.penalties.values().items():
                figures[name] = {**figures.get(name, {}), **values}
        if self._plan.manifolds is not None:
            for name, norm in self._plan.manifolds.norms(self._plan.parts.together).items():
                figures[name] = {**figures.get(name, {}), "R": norm}
        return figures

    @full_precision()
    def verify(self) -> list[PropertyCheck]:
        """Measures every declared property on the routed shapes and raises if one does not hold.

        For a metric: its defining equation, applied to the answer for a random gradient, must give that gradient back;
        with `keep_norm` the answer must have the gradient's norm; a stack of weights must give what each gives alone.
        For a manifold: how far every constrained weight is from it now; see `weightspace.manifolds.Manifold.violation`.
        For a penalty: its gradient must be the derivative of its value, by central differences in float64, on layers of
        the routed kinds with fewer channels and smaller images.

        Returns:
            One check for each rule, distinct weight layout and property, with the error measured and its bound.

        Raises:
            VerificationError: Names rule, parameter, error and bound.

        Of sharded weights every process measures its parts; all of them must call it, and all get all checks.
        """
        self._refresh("there is nothing to verify")
        together = self._plan.parts.together
        self._plan.parts.pull_weights()
        with together.agreeing():
            checks = measure_properties(self.rules, self._plan.batches, self._plan.work)
            if self._plan.penalties is not None:
                checks += measure_penalties(self._plan.penalties)
            if self._plan.manifolds is not None:
                checks += self._plan.manifolds.measure(int(self._steps))
        if not together.is_alone:
            checks = worst_of(together.merged({"checks": checks}))
        raise_if_broken(checks)
        return checks

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings and containers of these: nothing that needs unpickling."""
        self._refresh("there is no state")
        state: dict[str, Any] = {
            "version": _STATE_VERSION,
            "rules": [repr(r) for r in self.rules],
            "routes": {r.info.name: list(r.rules) for r in self._plan.routes if r.rules},
            "steps": self._steps.clone(),
        }
        if self._plan.penalties is not None:
            state["penalties"] = self._plan.penalties.state()
            state["watch"] = self._plan.penalties.watch.state()
        if self._plan.manifolds is not None:
            state["fallbacks"] = self.fallbacks
        return state

    @refusing_foreign_state("rules")
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave, after checking that it belongs to the same rules on the same parameters.

        Raises:
            AttachError: The state was saved by other rules, for other parameters or by a newer version.
        """
        missing = {"version", "rules", "routes", "steps"} - set(state)
        if self._plan.penalties is not None and "penalties" not in state:
            missing.add("penalties")
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
        self._steps.copy_(torch.as_tensor(state["steps"], dtype=torch.int64))
        if self._plan.penalties is not None:
            self._plan.penalties.load(state["penalties"])
            self._plan.penalties.watch.load(state.get("watch", {}))  # earlier versions did not save it
        if self._plan.manifolds is not None:
            self._plan.manifolds.load_fallbacks(state.get("fallbacks", {}))

    def remove(self) -> None:
        """Takes the rules off: gradients are the user's again, the optimizer is plain, the buffers are freed.

        Raises:
            AttachError: A step raised and `p.grad` was written to since; call `restore_gradients()` first.
        """
        self._stand_ins.refuse_if_written(self._plan.acting)
        self._stand_ins.take_back()
        for handle in self._handles:
            handle.remove()
        self._plan.clear()
        self._before.measured.clear()
        self._is_removed = True

    def restore_gradients(self) -> None:
        """Puts the loss gradients back into `p.grad`.

        Happens by itself after every step. Only a step that raised leaves the stand-ins in place; the next step (or
        this call) restores them. What was added to a stand-in meanwhile is dropped.
        """
        self._stand_ins.take_back()

    def _refresh(self, without: str) -> None:
        if self._is_removed:
            raise AttachError(f"These rules were removed, so {without}; attach them again.")
        optimizer = self._optimizer()
        if optimizer is not None:  # without it nothing can have changed
            self._plan.update(optimizer)

    def __repr__(self) -> str:
        rules = ", ".join(map(str, self.rules))
        if self._is_removed:
            return f"<Rules {rules}, removed>"
        return f"<Rules {rules} on {len(self._plan.acting)} of {len(self._plan.routes)} parameters>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Rules:
        """The same rules on the copies of model and optimizer, which must be copied in the same call."""
        optimizer = memo.get(id(self.optimizer))
        if optimizer is None or self._is_removed:
            raise AttachError(
                "Rules are copied with the optimizer that they act on, in one call and after it: "
                "copy.deepcopy((model, optimizer, rules)); these were removed or came without it."
            )
        # From this step on: a manifold that changes with the steps would move the weights onto what it was at first.
        twin = Rules(optimizer, copy.deepcopy(self._plan.model, memo), self.rules, self._options, self.steps)
        twin._before.measured = dict(self._before.measured)
        if twin._plan.penalties is not None and self._plan.penalties is not None:
            twin._plan.penalties.copy_from(self._plan.penalties)
        if twin._plan.manifolds is not None:
            twin._plan.manifolds.load_fallbacks(self.fallbacks)
        return twin

    def __reduce__(self) -> NoReturn:
        raise AttachError(
            "Rules cannot be pickled or copied alone, since they are hooks on an optimizer; "
            "save rules.state_dict() and attach the same rules on the other side."
        )

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._stand_ins.refuse_if_written(self._plan.acting)
        if is_rehearsal(optimizer, kwargs, self._plan.parts.together):
            return None
        self._is_open = True
        self._stand_ins.take_back()
        if self._plan.penalties is not None:
            self._plan.penalties.forget_step()
        self._plan.update(optimizer)
        # args[0] is the optimizer itself.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            if self.needs_closure:
                raise AttachError(
                    "A gate with against='lookahead' computes every batch twice; call optimizer.step(closure) with a "
                    "closure that zeroes the gradients, computes loss and gradients and returns the loss."
                )
            self._before.swap(optimizer)
            return None
        check_closure(closure)
        wrapped = self._wrap(closure, optimizer)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, _: tuple[Any, ...], __: dict[str, Any]) -> None:
        self._stand_ins.take_back()
        parts, manifolds = self._plan.parts, self._plan.manifolds
        keys = momentum_keys(optimizer) if parts.parts and manifolds is not None else ()
        if self._is_open:
            parts.pull_stepped(optimizer, keys)
        if self._plan.penalties is not None and self._is_open:
            with full_precision():
                self._plan.penalties.settle(optimizer, int(self._steps) + 1)
        if manifolds is not None:
            with full_precision():
                manifolds.after(optimizer, int(self._steps), parts)
        if self._is_open:
            parts.push_stepped(optimizer, keys)
        if self._is_open:  # a subclass that calls its parent's step fires the hooks twice
            self._steps += 1
            self._is_open = False

    def _wrap(self, closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
        """A closure computes its gradients inside the step: they are transformed as soon as it returns."""

        def wrapped() -> Any:
            self._stand_ins.take_back()
            before = RandomState(self._plan.devices) if self.needs_closure else None
            loss = closure()
            self._stand_ins.take_back()  # a step within a step wraps the closure twice
            with torch.no_grad():
                self._before.swap(optimizer, None if before is None else (closure, before))
            return loss

        # A compiled step would trace it, the model's pass included, anew for each closure that it is given.
        return cast("Callable[[], Any]", torch.compiler.disable(wrapped))
