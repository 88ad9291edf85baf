"""Who acts on what at the next step: routes, batches and buffers, kept true while parameters and model change."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from weightspace.errors import AttachError
from weightspace.kernels import Batch, Route, Rule, Workspace, describe, make_batches, route
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.views import View
from weightspace.manifolds import Manifold
from weightspace.metrics import Metric
from weightspace.optim._checks import Options, refuse_flat_shards
from weightspace.optim._manifolds import Manifolds, check_constraints
from weightspace.optim._parts import Parts
from weightspace.optim._penalties import Penalties
from weightspace.optim._shared_work import SharedWork
from weightspace.optim._transform import BatchTransform
from weightspace.optim.groups import refuse_two_constraints
from weightspace.penalties import Penalty, WeightPenalty

# Layers that are frozen and unfrozen in turn come back to a routing that is known; a training has few of them.
_ROUTINGS_KEPT = 4


class Plan:
    """The routing of some rules on one model, and the memory they work in.

    Attributes:
        rules: In the order in which they act.
        model: As it was given.
        routes: One for each parameter of the model.
        acting: The parameters on which at least one rule acts, as this process computes on them.
        unlent: Those that need no stand-in: nothing acts on them before the step.
        devices: Where the optimizer's parameters are.
        batches: Equal weights together, with their buffers.
        transforms: One for each batch, ready to run.
        work: Temporary buffers.
        penalties: What penalties add, None if there are no penalties.
        manifolds: The constraints, None if there are none.
        parts: What this process computes on of sharded weights.
        lent: Names of the weights that need stand-ins, alike on all processes.
        steps: Steps taken; written by the rules.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, rules: tuple[Rule, ...], options: Options, steps: int = 0
    ) -> None:
        self.rules = rules
        self.model = model
        self.routes: tuple[Route, ...] = ()
        self._here: tuple[Route, ...] = ()
        self.acting: list[ParameterInfo] = []
        self.unlent: list[ParameterInfo] = []
        self.devices: list[torch.device] = []
        self.batches: list[Batch] = []
        self.transforms: list[BatchTransform] = []
        self.work = Workspace()
        shared_work = SharedWork(model, options.share_work)
        self.penalties = Penalties(self.work, shared_work) if any(isinstance(r, Penalty) for r in rules) else None
        self.manifolds = Manifolds() if any(isinstance(r, Manifold) for r in rules) else None
        self.parts = Parts()
        self.lent: list[str] = []
        self.steps = torch.tensor(steps, dtype=torch.int64)
        self._options = options
        self._blocks: dict[object, torch.Tensor] = {}
        self._routings: dict[object, tuple[Route, ...]] = {}
        self._carried: dict[int, Route] = {}
        self._known: list[tuple[object, ...]] = []
        self._build(_parameters(optimizer), strict=True)
        self._constrain(optimizer)

    def update(self, optimizer: Optimizer) -> None:
        """Routes anew if the optimizer's parameters or their places in the model changed since the last look.

        Cost: half a microsecond a parameter if nothing changed.

        Raises:
            AttachError: A rule acted on a parameter that is still trained but cannot carry the rule any more.
        """
        parameters = _parameters(optimizer)
        if [_facts(p) for p in parameters] != self._known or not all(info.is_in_place for info in self.acting):
            self._build(parameters, strict=False)
            self._constrain(optimizer)

    def _constrain(self, optimizer: Optimizer) -> None:
        if self.manifolds is None:
            return
        check_constraints(optimizer, self.routes, self.rules)
        self.parts.pull_weights()
        with self.parts.together.agreeing():
            self.manifolds.build(self.rules, self._here, int(self.steps))
        self.parts.push_weights()
        self.manifolds.tell_moved(self.parts.together)

    def clear(self) -> None:
        """Forgets everything and frees the memory."""
        self.routes, self.acting, self.unlent, self.batches, self.transforms = (), [], [], [], []
        self._here, self.lent = (), []
        for kept in (self._blocks, self._routings, self._carried):
            kept.clear()
        self.work.clear()
        self.parts.clear()
        if self.penalties is not None:
            self.penalties.clear()
        if self.manifolds is not None:
            self.manifolds.clear()

    def _build(self, parameters: list[nn.Parameter], *, strict: bool) -> None:
        known = [_facts(p) for p in parameters]
        self.routes = self._route(parameters, tuple(known), strict=strict)
        self._here = self.parts.build(self.rules, self.routes)
        if self.parts.parts and self._options.inplace:
            raise AttachError(
                f"attach() got inplace=True, but {self.parts.parts[0].info.name} is sharded (fully_shard), so its "
                "gradient is not whole on any process; attach without inplace."
            )
        self.acting = [r.info for r in self._here if r.rules]
        needing = [r for r in self._here if r.rules and self._needs_stand_in(r)]
        self.lent = [r.info.name for r in needing]
        self.unlent = [info for info in self.acting if info.name not in set(self.lent)]
        # A process that holds nothing of a weight has nothing to transform.
        lent = [(r.info, *self._before_the_step(r)) for r in needing if r.views]
        self.devices = list({p.device for p in parameters})
        self.batches = make_batches(
            lent,
            batching=self._options.batching,
            inplace=self._options.inplace,
            blocks=self._blocks,
            alone={info.name for info, _, rules in lent if not any(isinstance(self.rules[i], Metric) for i in rules)},
        )
        self.work.keep({(b.dtype, b.device) for b in self._blocks.values()})
        self.transforms = [BatchTransform(b, self.rules, self.work) for b in self.batches]
        if self.penalties is not None:
            self.penalties.build(self.rules, self._here, self.parts)
        self._known = known

    def _needs_stand_in(self, entry: Route) -> bool:
        """Whether anything acts on the gradient, or between it and the step."""
        return any(not _acts_after(self.rules[i]) for i in entry.rules)

    def _before_the_step(self, entry: Route) -> tuple[tuple[View, ...], tuple[int, ...]]:
        """The views and rules that act on the gradient's buffer."""
        kept = [
            (v, i)
            for v, i in zip(entry.views, entry.rules, strict=True)
            if isinstance(v, View) and not _acts_after(self.rules[i])
        ]
        return tuple(v for v, _ in kept), tuple(i for _, i in kept)

    def _route(self, parameters: list[nn.Parameter], key: object, *, strict: bool) -> tuple[Route, ...]:
        known = self._routings.get(key)
        if known is not None and all(r.info.is_in_place for r in known if r.rules):
            return known
        infos = describe(self.model)
        held = {id(p) for p in parameters}
        refuse_flat_shards(infos, held)
        routes = route(self.rules, infos, parameters, strict=strict)
        refuse_two_constraints(self.rules, routes)
        for r in routes:
            if r.info.parameter.requires_grad and id(r.info.parameter) in held:
                self._refuse_lost(r)
        self._carried.update({id(r.info.parameter): r for r in routes if r.rules})
        if len(self._routings) >= _ROUTINGS_KEPT:
            self._routings.clear()
        self._routings[key] = routes
        return routes

    def _refuse_lost(self, now: Route) -> None:
        """A rule that was declared must not cease without a word, as when a weight is parametrized after attach."""
        before = self._carried.get(id(now.info.parameter))
        if before is None:
            return
        for index in before.rules:
            if index not in now.rules:
                raise AttachError(
                    f"{self.rules[index]} acted on {before.info.name} and cannot any more: {now.reasons[index]}; "
                    "call rules.remove(), then attach rules that fit the changed model."
                )


def _acts_after(rule: Rule) -> bool:
    return isinstance(rule, WeightPenalty) and rule.is_proximal


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _facts(parameter: nn.Parameter) -> tuple[object, ...]:
    """What routing and buffers depend on."""
    return (
        id(parameter),
        parameter.requires_grad,
        parameter.dtype,
        getattr(parameter, "grad_dtype", None),
        parameter.device,
        parameter.shape,
        parameter.stride(),
    )
