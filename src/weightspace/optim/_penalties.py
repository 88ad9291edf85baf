"""Adds the gradients of penalties to what the metrics left in the stand-ins, and keeps what penalties remember.

Within a step: schedules decide, operators are evaluated, gates compare, then what is open is added; what acts after the
optimizer's step waits for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.optim import Optimizer

from weightspace.gates import ComparingGate
from weightspace.kernels import Route, Rule
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.stacking import Workspace
from weightspace.optim._finite import all_finite, sum_of
from weightspace.optim._gates import Gated, Number, Offer, ask_comparing, ask_schedules
from weightspace.optim._inputs import InputSizes
from weightspace.optim._lookahead import Again, look_ahead
from weightspace.optim._operator_penalties import Addition, PenaltyTask, raise_gradient
from weightspace.optim._parts import Parts
from weightspace.optim._shared_work import SharedWork
from weightspace.optim._transform import Swap, read_numbers
from weightspace.optim._weight_penalties import Watch, WeightTask, first_look, settle
from weightspace.penalties import Memory, OperatorPenalty, Penalty, WeightPenalty

_LATEST = "latest"  # beside the names of what penalties remember


class Penalties:
    """All penalties of a plan.

    Attributes:
        tasks: Those on linear maps, in the order in which they act.
        weight_tasks: Those on the numbers of weights.
        sizes: What the layers read.
        shared_work: Who evaluates which of `tasks`.
        watch: Notices weights that vanished.
        needs_closure: Whether a gate needs a second backward pass.
    """

    def __init__(self, work: Workspace, shared_work: SharedWork) -> None:
        self._work = work
        self.shared_work = shared_work
        self.tasks: list[PenaltyTask] = []
        self.weight_tasks: list[WeightTask] = []
        self.sizes = InputSizes()
        self.watch = Watch()
        self.needs_closure = False
        self._known: dict[tuple[str, int], PenaltyTask | WeightTask] = {}
        self._due: list[WeightTask] = []
        self._parts = Parts()

    def build(self, rules: Sequence[Rule], routes: Iterable[Route], parts: Parts) -> None:
        """Takes over a routing; weights that were known keep what is remembered of them."""
        self._parts = parts
        routes = tuple(routes)
        tasks = [
            self._task(route.info, index, rule)
            for route in routes
            for index in route.rules
            if isinstance(rule := rules[index], Penalty)
        ]
        self.tasks = [task for task in tasks if isinstance(task, PenaltyTask)]
        self.weight_tasks = [task for task in tasks if isinstance(task, WeightTask)]
        self._know_reach()
        self.shared_work.build(self.tasks)
        self.needs_closure = any(task.penalty.gate.looks_at == "lookahead" for task in tasks)
        # Also of layers that are frozen or in no group yet: when they join, a forward pass has gone through already.
        self.sizes.watch(
            route.info
            for route in routes
            for rule in rules
            if isinstance(rule, OperatorPenalty) and rule.needs_size and rule.input_size is None
            if rule.selection(route.info) and rule.refusal(route.info) is None
        )

    def _task(self, info: ParameterInfo, index: int, penalty: Penalty) -> PenaltyTask | WeightTask:
        known = self._known.get((info.name, index))
        if known is not None and known.info is info:
            return known
        task: PenaltyTask | WeightTask
        if isinstance(penalty, WeightPenalty):
            task = WeightTask(info, index, penalty)
        else:
            task = PenaltyTask(info, index, penalty, memory=Memory(seed=zlib.crc32(info.name.encode())))
            if isinstance(known, PenaltyTask):
                task.memory, task.latest = known.memory, known.latest
        if isinstance(task, WeightTask) and isinstance(known, WeightTask):
            task.reach = known.reach.to(task.reach)
        if known is not None:
            task.load(known.state(self._parts), self._parts)
        self._known[info.name, index] = task
        return task

    def _know_reach(self) -> None:
        """Of weights that this process holds a part of, the largest number of all parts."""
        split = [task for task in self.weight_tasks if task.info.is_split]
        if split:
            found = self._parts.together.max(torch.stack([task.reach.double() for task in split]))
            for task, reach in zip(split, found.unbind(), strict=True):
                task.reach = reach.to(task.reach)

    @property
    def all_tasks(self) -> list[PenaltyTask | WeightTask]:
        """Both kinds, in the order of the rules."""
        return sorted([*self.tasks, *self.weight_tasks], key=lambda task: task.index)

    # ------------------------------------------------------------------ the step

    def evaluate(self, step: int, *, must_check: bool) -> list[Addition]:
        """What operator penalties may add at this step; what a schedule keeps closed is not evaluated.

        Args:
            step: Steps taken before this one.
            must_check: Raise for weights or penalty gradients that are not finite; two synchronizations a device.

        Raises:
            AttachError: A layer's input size is not known, no penalty can be had at that size, or processes that
                divide the work see different work.
            NonFiniteGradientError: A weight or a penalty's gradient is not finite.
        """
        self._due = [t for t in self.weight_tasks if _is_due(t, step)]
        for task in self._due:
            task.forget_step()
        due = [t for t in self.tasks if _is_due(t, step)]
        ask_schedules((*due, *self._due), step)
        # A comparing gate decides later: what it said last time says nothing about now.
        due = [t for t in due if isinstance(t.penalty.gate, ComparingGate) or t.is_open is not False]
        here = [task for task in due if task.is_here]
        gradients = self.shared_work.evaluate(here, self.sizes, step, must_check=must_check)
        found = dict(zip(map(id, here), gradients, strict=True))
        additions: list[Addition] = []
        for task in due:
            gradient = found.get(id(task))
            if gradient is None:  # another process holds the weight and decides with the others
                task.memory.step, task.latest = step, torch.zeros((), device=task.info.parameter.device)
                gradient = task.info.parameter.detach()
            additions.append(Addition(task, gradient))
        if must_check and additions and not all_finite(sum_of(a.gradient) for a in additions):
            raise_gradient(additions)
        return additions

    def look_ahead(
        self, additions: Sequence[Addition], again: Again | None, model: nn.Module, optimizer: Optimizer
    ) -> dict[int, torch.Tensor]:
        """The gradients of a second backward pass, by weight, where a gate that is asked at this step needs them."""
        jobs = [*additions, *self._due]
        moves = [(_task_of(job).info, job.move) for job in jobs if _task_of(job).penalty.gate.looks_at == "lookahead"]
        return look_ahead(again, model, optimizer, moves, self._parts) if moves and again is not None else {}

    def look(
        self, additions: Sequence[Addition], swaps: Iterable[Swap], grad_scale: torch.Tensor | None
    ) -> dict[int, Number]:
        """What can be done for weight penalties in one pass, before anything is decided; see `first_look`."""
        others = [id(a.task.info.parameter) for a in additions]
        return first_look(self._due, others, {id(s.parameter): s for s in swaps}, grad_scale, self._work)

    def act(
        self,
        additions: Sequence[Addition],
        swaps: Iterable[Swap],
        second: Mapping[int, torch.Tensor],
        step: int,
        grad_scale: torch.Tensor | None = None,
    ) -> None:
        """Asks the gates that compare gradients, then adds what is open to the stand-ins of this step.

        Args:
            additions: What operator penalties may add.
            swaps: Parameters with their stand-ins, which hold the transformed gradients.
            second: What `look_ahead` gave.
            step: Steps taken before this one.
            grad_scale: What the gradients still are multiplied with, under a GradScaler whose optimizer divides itself.
        """
        by_parameter = {id(swap.parameter): swap for swap in swaps}
        jobs = [*additions, *self._due]
        offers: list[Offer] = []
        for job in jobs:
            task = _task_of(job)
            if isinstance(task.penalty.gate, ComparingGate):
                swap, key = by_parameter.get(id(task.info.parameter)), id(task.info.parameter)
                gradient = cast("torch.Tensor", task.info.parameter.grad) if swap is None else swap.data
                products = partial(job.products, gradient, task.scale(grad_scale))
                seen = job.seen if isinstance(job, WeightTask) else None
                offers.append(Offer(task, gradient, products, second.get(key), seen))
        ask_comparing(offers, step, self._parts.together)
        for job in jobs:
            task = _task_of(job)
            if not task.info.parameter.numel():
                continue  # other processes hold the numbers
            if not (isinstance(job, WeightTask) and job.rule.is_proximal):
                job.add_to(by_parameter[id(task.info.parameter)], task.scale(grad_scale), self._work)
            elif isinstance(job, WeightTask) and job.start is not None:
                job.start.copy_(task.info.parameter)

    def settle(self, optimizer: Optimizer, steps: int) -> None:
        """What acts after the optimizer's step; then a look at whether weights vanished.

        Args:
            optimizer: It has just stepped.
            steps: Steps taken, this one included.
        """
        acting = [task for task in self._due if task.rule.is_proximal]
        # First those that look at what the optimizer did, before others move the weight on.
        settle(sorted(acting, key=lambda task: not task.rule.needs_start), optimizer)
        self._due = []
        if self.weight_tasks:
            self.watch.look(self.weight_tasks, optimizer, steps, self._parts.together)

    def forget_step(self) -> None:
        """Drops what was left by a step that raised."""
        self._due = []

    # ------------------------------------------------------------------ what is seen and kept

    def values(self) -> dict[str, dict[str, float]]:
        """By parameter: R by penalty, `duty` and `cosine` of its gate, `zeros`; one synchronization a device."""
        self._parts.pull_weights()
        figures: list[tuple[str, str, torch.Tensor]] = []
        is_share: list[bool] = []  # of a sum over all processes
        for task in self.all_tasks:
            name, label = task.info.name, type(task.penalty).__name__
            label = label if all((n, k) != (name, label) for n, k, _ in figures) else str(task.penalty)
            value = task.value()
            if value is not None:
                figures.append((name, label, value))
            is_share += [task.info.is_split] * (len(figures) - len(is_share))
            figures += [(name, _distinct(figures, name, key, label), number) for key, number in _of_gate(task)]
            is_share += [False] * (len(figures) - len(is_share))
            if isinstance(task, WeightTask) and all((n, k) != (name, "zeros") for n, k, _ in figures):
                figures.append((name, "zeros", task.zeros()))
                is_share.append(task.info.is_split)
        numbers = read_numbers([f[2] for f in figures])
        if any(is_share):
            total = self._parts.together.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()
            numbers = [t if share else own for t, own, share in zip(total, numbers, is_share, strict=True)]
        result: dict[str, dict[str, float]] = {}
        for (name, label, _), number in zip(figures, numbers, strict=True):
            result.setdefault(name, {})[label] = number
        return result

    def duty_cycles(self) -> dict[str, dict[str, float]]:
        """Share of the steps asked at which each gate was open, by parameter and penalty; one synchronization."""
        gated = [task for task in self.all_tasks if not task.is_ungated and task.asked]
        shares = read_numbers([_duty(task) for task in gated])
        result: dict[str, dict[str, float]] = {}
        for task, share in zip(gated, shares, strict=True):
            result.setdefault(task.info.name, {})[str(task.penalty)] = share
        return result

    def state(self) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
        """What penalties and gates remember, by parameter and index of the rule: tensors only."""
        state: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
        for task in self.all_tasks:
            vectors = _kept(task) if isinstance(task, PenaltyTask) else {"reach": task.reach}
            kept = {**{key: vector.clone() for key, vector in vectors.items()}, **task.state(self._parts)}
            state.setdefault(task.info.name, {})[str(task.index)] = kept
        return self._known_to_all(state)

    def _known_to_all(
        self, state: dict[str, dict[str, dict[str, torch.Tensor]]]
    ) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
        """Where only the owner of a weight remembers its vectors, the others learn them."""
        hidden = [task for task in self.tasks if task.info.is_split]
        if not hidden:
            return state
        own = {f"{t.info.name} {t.index}": {k: v.cpu() for k, v in _kept(t).items()} for t in hidden if t.is_here}
        found = {key: vectors for facts in self._parts.together.merged(own) for key, vectors in facts.items()}
        for task in hidden:
            vectors = found.get(f"{task.info.name} {task.index}", {})
            kept = state[task.info.name][str(task.index)]
            state[task.info.name][str(task.index)] = {**vectors, **{k: v for k, v in kept.items() if "gate." in k}}
        return state

    def load(self, state: Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]]) -> None:
        """Restores what `state` gave; a vector that does not fit any more is not used by its penalty."""
        for task in self.all_tasks:
            saved = state.get(task.info.name, {}).get(str(task.index), {})
            device = task.info.parameter.device
            task.load(saved, self._parts)
            own = {k: torch.as_tensor(v).detach().clone().to(device) for k, v in saved.items() if "gate." not in k}
            if isinstance(task, PenaltyTask):
                latest = own.pop(_LATEST, None)
                task.latest = latest if latest is None or task.is_here else torch.zeros_like(latest)
                task.memory.vectors = own
            elif "reach" in own:
                task.reach = own["reach"].to(task.reach)

    def copy_from(self, other: Penalties) -> None:
        """Takes over what the same rules remember on another model of the same parameters."""
        self.load(other.state())
        self.sizes.copy_from(other.sizes)
        self.watch.copy_from(other.watch)
        values = {(task.info.name, task.index): task.latest for task in other.tasks}
        for task in self.tasks:
            task.latest = values.get((task.info.name, task.index))

    def clear(self) -> None:
        """Forgets everything and takes the recorders off."""
        self.tasks, self.weight_tasks, self._due = [], [], []
        self._known.clear()
        self.sizes.clear()
        self.watch.clear()


def _kept(task: PenaltyTask) -> dict[str, torch.Tensor]:
    """What is remembered of a weight, and R at the latest evaluation: `every` may put the next one off."""
    return task.memory.vectors if task.latest is None else {**task.memory.vectors, _LATEST: task.latest}


def _is_due(task: Gated, step: int) -> bool:
    return step % task.penalty.every == 0 and task.info.parameter.grad is not None


def _task_of(job: Addition | WeightTask) -> PenaltyTask | WeightTask:
    return job.task if isinstance(job, Addition) else job


def _duty(task: Gated) -> torch.Tensor:
    return task.opened.to(torch.float32) / max(1, task.asked)


def _of_gate(task: Gated) -> list[tuple[str, torch.Tensor]]:
    if task.is_ungated:
        return []
    found = [("duty", _duty(task))]
    return found if task.cosine is None else [*found, ("cosine", task.cosine)]


def _distinct(figures: Iterable[tuple[str, str, torch.Tensor]], name: str, key: str, label: str) -> str:
    """`duty`, or `duty of L1` where another gate of the weight has taken that."""
    return key if all((n, k) != (name, key) for n, k, _ in figures) else f"{key} of {label}"
