"""The rows of `scn_table.py`: who follows the parameter how, and the training that all of them share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from scn_networks import NETWORKS, Family, HyperLight, Memory, Remembered, Setting, SubspaceConfigurable, numbers
from torch import Tensor, nn

import weightmorph as wm

# Training


@dataclass(frozen=True)
class Budget:
    """What every trained row of a table has alike: Adam, and a cosine to zero."""

    steps: int
    batch: int
    seed: int
    rate: float = 3e-3


@dataclass(frozen=True)
class Data:
    """Images `(N, 1, 32, 32)` as bytes, and labels."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def batches(data: Data, family: Family, budget: Budget, at: Setting | None) -> Iterator[tuple[Tensor, Tensor, Setting]]:
    """Transformed images, labels and θ; the same images, in the same order, with the same θ for every row of a seed."""
    generator = torch.Generator().manual_seed(budget.seed)
    x, y = data.train
    order = torch.empty(0, dtype=torch.long)
    for _ in range(budget.steps):
        if len(order) < budget.batch:
            order = torch.randperm(len(x), generator=generator)
        rows, order = order.split([budget.batch, len(order) - budget.batch])
        drawn = family.drawn[int(torch.randint(len(family.drawn), (), generator=generator))]
        setting = drawn if at is None else at
        yield family.transform(x[rows].float() / 255, **family.theta(setting)), y[rows], setting


Loss = Callable[[Tensor, Tensor, Setting], Tensor]


def train(
    data: Data, family: Family, budget: Budget, trained: Sequence[Tensor], loss: Loss, at: Setting | None = None
) -> float:
    """Train some tensors in place, at one setting or over all; gives the seconds of one core."""
    optimizer = torch.optim.Adam(trained, lr=budget.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.steps)
    start = time.process_time()
    for x, y, setting in batches(data, family, budget, at):
        value = loss(x, y, setting)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return time.process_time() - start


# Rows


Network = Callable[[Tensor], Tensor]


@dataclass
class Job:
    """One table: a network, a family and a seed, with what its rows share; `rate` stands in for each row's own."""

    network: str
    family: Family
    data: Data
    budget: Budget
    base: nn.Module
    memory: Memory = field(default_factory=dict)
    rate: float | None = None

    def fresh(self) -> nn.Module:
        """The network with the random weights that the base began with."""
        torch.manual_seed(self.budget.seed)
        return NETWORKS[self.network]()


class Row:
    """A way to cope with θ. `modules` are what is trained and stored; `at` gives the network for one setting."""

    undone = False
    everywhere = True
    rate = Budget.rate

    def __init__(self, job: Job) -> None:
        self.job = job
        self.modules: dict[str, nn.Module] = {}

    @property
    def budget(self) -> Budget:
        """The job's, with this row's learning rate."""
        return replace(self.job.budget, rate=self.job.rate or self.rate)

    def fit(self) -> float:
        """Train; the seconds it took."""
        return 0.0

    def at(self, setting: Setting) -> Network:
        """The network, its weights made once."""
        return self.job.base

    def call(self, x: Tensor, setting: Setting) -> Tensor:
        """A call under a θ that is new: weights are made, or the input is undone, within it."""
        return self.at(setting)(x)

    def trainable(self) -> int:
        """How many numbers are trained."""
        return sum(numbers([p for p in module.parameters() if p.requires_grad]) for module in self.modules.values())

    def stored(self) -> int:
        """Bytes of all that is needed to run, the base included where it is needed."""
        return _bytes(self.job.base.state_dict())


def _bytes(state: Mapping[str, Any]) -> int:
    return sum(t.numel() * t.element_size() for t in state.values() if isinstance(t, Tensor))


class Inverse(Row):
    """The transform undone on the input, then the frozen network."""

    undone = True

    def call(self, x: Tensor, setting: Setting) -> Tensor:
        undo = self.job.family.transform.inverse()
        assert undo is not None
        return cast(Tensor, self.job.base(undo(x, **self.job.family.theta(setting))))


class OneForAll(Row):
    """One network trained on transformed images."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.modules = {"net": job.fresh()}

    def fit(self) -> float:
        net = self.modules["net"].train()
        job, loss = self.job, lambda x, y, setting: F.cross_entropy(net(x), y)
        seconds = train(job.data, job.family, self.budget, list(net.parameters()), loss)
        net.eval()
        return seconds

    def at(self, setting: Setting) -> Network:
        return self.modules["net"]

    def stored(self) -> int:
        return _bytes(self.modules["net"].state_dict())


class OneForOne(Row):
    """A network for each of the five settings, trained there; at the clean one that is the base."""

    everywhere = False

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.modules = {str(s): job.fresh() for s in job.family.fixed if s != job.family.clean}

    def fit(self) -> float:
        seconds = 0.0
        for setting in self.job.family.fixed:
            if setting != self.job.family.clean:
                net = self.modules[str(setting)]
                seconds += fit_plain(net, self.job, setting, self.budget)
        return seconds

    def at(self, setting: Setting) -> Network:
        return self.job.base if setting == self.job.family.clean else self.modules[str(setting)]

    def trainable(self) -> int:
        return super().trainable() + numbers(list(self.job.base.parameters()))

    def stored(self) -> int:
        return super().stored() * len(self.job.family.fixed)


def fit_plain(net: nn.Module, job: Job, setting: Setting, budget: Budget) -> float:
    """Train a network at one setting."""
    net.train()
    trained = list(net.parameters())
    seconds = train(job.data, job.family, budget, trained, lambda x, y, _: F.cross_entropy(net(x), y), at=setting)
    net.eval()
    return seconds


class Rival(Row):
    """SCN or HyperLight: a module called with images and a code."""

    def __init__(self, job: Job, build: Callable[[Job, int], nn.Module]) -> None:
        super().__init__(job)
        torch.manual_seed(job.budget.seed)
        self.code = job.family.code
        self.modules = {"net": build(job, len(self.code(job.family.clean)))}

    def fit(self) -> float:
        job, net = self.job, self.modules["net"].train()
        drawn, generator = job.family.drawn, torch.Generator().manual_seed(job.budget.seed + 1)

        def loss(x: Tensor, y: Tensor, setting: Setting) -> Tensor:
            value = F.cross_entropy(net(x, self.code(setting)), y)
            if isinstance(net, SubspaceConfigurable):
                other = drawn[int(torch.randint(len(drawn), (), generator=generator))]
                value = value + job.family.penalty * net.overlap(self.code(setting), self.code(other))
            return value

        trained = [p for p in net.parameters() if p.requires_grad]
        seconds = train(job.data, job.family, self.budget, trained, loss)
        net.eval()
        return seconds

    def at(self, setting: Setting) -> Network:
        net, code = self.modules["net"], self.code(setting)
        return lambda x: cast(Tensor, net(x, code))

    def stored(self) -> int:
        net = self.modules["net"]
        if isinstance(net, SubspaceConfigurable):
            return _bytes(net.state())
        return _bytes({name: p for name, p in net.named_parameters() if name.startswith("hypernet.")})


def scn(sets: int) -> Callable[[Job], Row]:
    """SCN with D sets."""

    def build(job: Job, code: int) -> nn.Module:
        return SubspaceConfigurable(NETWORKS[job.network], code, sets)

    return lambda job: Rival(job, build)


def hyperlight(job: Job) -> Row:
    """HyperLight on the base."""
    return Rival(job, lambda job, code: HyperLight(job.base, code))


class Ours(Row):
    """The frozen base with conditioned weights."""

    def __init__(self, job: Job, recipe: Callable[[Job], wm.WeightTransform]) -> None:
        super().__init__(job)
        if job.network in ("lenet", "convnet"):
            self.rate = 1e-3  # chosen for LeNet-5 on images kept apart: results/scn_rates.csv
        torch.manual_seed(job.budget.seed)
        example = job.data.train[0][:2].float() / 255
        self.model = wm.condition(job.base, job.family.transform.parameters, recipe(job), example=example)
        self.modules = {"transform": self.model}

    def fit(self) -> float:
        if not (trained := list(self.model.parameters())):
            return 0.0
        job, theta = self.job, self.job.family.theta
        return train(
            job.data, job.family, self.budget, trained, lambda x, y, s: F.cross_entropy(self.model(x, **theta(s)), y)
        )

    def at(self, setting: Setting) -> Network:
        return self.model.at(**self.job.family.theta(setting))

    def call(self, x: Tensor, setting: Setting) -> Tensor:
        self.job.memory.clear()  # a remembered weight is not a new one
        return cast(Tensor, self.model(x, **self.job.family.theta(setting)))

    def stored(self) -> int:
        return super().stored() + _bytes(self.model.state_dict())


Recipe = Callable[[Job], wm.WeightTransform]


def ours(recipe: Recipe) -> Callable[[Job], Row]:
    """A frozen base under a weight transform."""
    return lambda job: Ours(job, recipe)


def prior(job: Job) -> wm.WeightTransform:
    """The analytic prior alone; a 1,024-tap one never changes for a base and is remembered."""
    if job.network == "mlp":
        return Remembered(wm.Warp(learn=False, max_taps=1024), job.memory)
    return wm.Warp(learn=False)


def moved(job: Job) -> wm.WeightTransform:
    """`Warp`, which learns where a kernel has few taps."""
    return prior(job) if job.network == "mlp" else wm.Warp()


def rows(job: Job, family: str, *, peer: bool) -> dict[str, Callable[[Job], Row]]:
    """The rows of a table, in its order."""
    full = job.network == "mlp" and family == "rotation"
    found: dict[str, Callable[[Job], Row]] = {
        "frozen": Row, "Inverse": Inverse, "One4All": OneForAll, "One4One": OneForOne,
    }  # fmt: skip
    found |= {f"SCN D={sets}": scn(sets) for sets in ((1, 2, 3, 5, 8, 16) if full else (3, 8))}
    if full and peer:
        found["HyperLight"] = hyperlight
    if job.family.geometric:
        found["Warp, untrained"] = ours(prior)
        if full or job.network != "mlp":
            found["Warp + Scale"] = ours(lambda job: moved(job) + wm.Scale())
        found["Warp + LowRank(4) + Scale"] = ours(lambda job: moved(job) + wm.LowRank(4) + wm.Scale())
    if full or not job.family.geometric:
        found["Scale"] = ours(lambda job: wm.Scale())
    if not job.family.geometric:
        found["LowRank(4) + Scale"] = ours(lambda job: wm.LowRank(4) + wm.Scale())
    if full:
        found["LowRank(8)"] = ours(lambda job: wm.LowRank(8))
        found["Subspace(3)"] = ours(lambda job: wm.Subspace(3))
    return found
