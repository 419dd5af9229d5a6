"""`infer`: what a user calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ParameterError, ParameterLengthError, near
from ..estimator import estimator_of
from ..model import Conditioned
from ..parameters import Theta, Value
from .calls import Calls, Inputs
from .candidates import Candidates, lay_out
from .energy import Energy, Named, resolve
from .refine import refine
from .result import CERTAIN, Inferred, Method, Pool, close_to, spread_of

__all__ = ["infer"]

STEPS = 3
"""Steps through the network where candidates are scattered."""

POLISH = 12
"""Steps on the head's density alone, which cost no run of the network, there."""


def infer(
    model: Conditioned,
    x: Any,
    *,
    method: Method | None = None,
    objective: Named | Energy | Callable[[Any], Tensor] = "entropy",
    pool: Pool = "image",
    known: Mapping[str, Value] | None = None,
    candidates: int | Mapping[str, int] | Mapping[str, Value] | None = None,
    starts: int = 3,
    steps: int | None = None,
    temperature: float = 0.1,
    drift: float | Mapping[str, float] | None = None,
    prior: Tensor | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    batch_size: int = 256,
) -> Inferred:
    r"""Estimate θ from the inputs alone, and run the network at the estimate.

    Every candidate θ gets the evidence

    $$\ell(\theta; x) = \log q(\theta \mid x) - E(f(x; W(\theta))) / \tau$$

    with $q$ what the model's head says ([`fit`][weightmorph.fit] trains one: `predict_parameter=True`), relative to
    the uniform density, and $E$ how unsure the network itself is at that θ. The posterior is the softmax of the
    evidence over the candidates.

    | method | evidence | network runs a sample |
    |---|---|---:|
    | `"head"` | $\log q$ | 1 |
    | `"search"` | $-E/\tau$ at all candidates, 36 for one parameter | 37 and `steps` with gradients |
    | `"both"` | both, $E$ at the `starts` best peaks of $q$ (elsewhere that of the nearest) | 4 and `steps` |

    and the head's own run through the base's early layers. `pool` says who shares a θ: nobody (`"image"`), all of `x`
    (`"batch"`: the evidence adds up), or neighbours in time (`"stream"`: `x` in order, θ walks at random by `drift`
    from one to the next, and each estimate rests on what came up to then).

    What looks alike at several θ has several peaks, of which the estimate is one: look at `abstain`. See
    `docs/unknown_parameter.md` for costs and failures, measured.

    Args:
        model: the conditioned model.
        x: inputs `(B, …)`: a tensor, a tuple of positional inputs, or a dict of keyword inputs.
        method: as above; unless given, `"both"` with a head and `"search"` without.
        objective: $E$: `"entropy"`; `"agreement"`, the entropy of the mean answer of θ and its neighbours; or a
            function of the network's output that gives one number per sample, lower where θ is right. The two named
            ones need logits.
        pool: as above.
        known: values of parameters that are known, as in a call; the others are inferred.
        candidates: values of each parameter; or a number per parameter; or the settings, one list per parameter.
            Unless given, 36 of one, 12 each of two, 256 points of a Halton sequence for more, and finer where no
            network is run.
        starts: peaks of the head's density at which `"both"` asks the network.
        steps: at the end, so many steps down the gradient of the energy with respect to θ, through the transform.
            Unless given, 0 on a grid, between whose points a parabola finds the top for nothing and just as well
            (measured), and 3 where candidates are scattered. A stream takes none.
        temperature: $\tau$ in nats: how much surer the network has to be to make a θ e times as likely.
        drift: standard deviation of θ's change from one frame to the next, in the parameter's unit (of a `Categorical`,
            the probability of a change): one number or one per parameter; for `"stream"`. Unless given, a 36th of the
            range.
        prior: for `"stream"`, the posterior `(K,)` of the frame before the first: `found.posterior[-1]` of the call
            before.
        tolerance: how far from the estimate counts as near for `confidence`, in the parameter's unit: one number or one
            per parameter. Unless given, a twelfth of the range: 30° of a circle.
        batch_size: samples in one run of the network.

    Returns:
        estimates, spread, a flag to abstain, and the outputs. Nothing in it carries a gradient.

    Raises:
        InputError: for inputs, an objective or options that cannot be used.
        ParameterError: if `known`, `candidates`, `drift` or `tolerance` do not fit the parameters, or a head is asked
            for and there is none.

    References:
        Wang, Saukh, He, Thiele, arXiv:2305.13536: the θ of lowest batch entropy, found by basin hopping.

    Example:
        >>> import weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.Warp(), example=torch.rand(1, 1, 9, 9))
        >>> found = infer(model, torch.rand(5, 1, 9, 9), pool="batch")
        >>> found["angle"].shape, found.outputs.shape, found.posterior.shape
        (torch.Size([]), torch.Size([5, 3]), torch.Size([36]))
    """
    if not isinstance(model, Conditioned):
        raise InputError(f"infer: expected a conditioned model, made by condition(net, …), got {type(model).__name__}")
    inputs, energy = Inputs(x), resolve(objective)
    chosen = _checked(model, method, pool, starts, steps, temperature, batch_size, prior)
    given = _known(model, known or {}, inputs.size)
    unknown = [name for name in model.space if name not in given]
    tried = lay_out(model.space, unknown, candidates, fine=chosen == "head")
    calls = Calls(model, inputs, given, energy, batch_size)
    with torch.no_grad(), _evaluating(model):
        weights = None if chosen == "search" else _asked(calls)
        evidence = _evidence(calls, tried, chosen, weights, pool, starts, temperature)
        if pool == "batch":
            evidence = evidence.sum(0, keepdim=True)
        if pool == "stream":
            posterior = _filtered(tried, evidence, _each(tried, "drift", drift), prior)
            evidence = posterior.clamp_min(1e-30).log()
        else:
            posterior = evidence.softmax(1)
        theta = tried.between(evidence, posterior.argmax(1))
        if pool == "batch":
            theta = {name: value[0] for name, value in theta.items()}
        theta = _refined(calls, tried, theta, weights, chosen, pool, steps, temperature)
        outputs = calls.outputs(theta)
        score = _score(calls, tried, chosen, weights, outputs, theta)
    listed = {name: torch.atleast_1d(value) for name, value in theta.items()}
    spread = spread_of(tried, posterior, listed)
    confidence = close_to(tried, posterior, listed, _each(tried, "tolerance", tolerance, {}))
    if pool == "batch":
        posterior, confidence, score = posterior[0], confidence[0], score.mean()
        spread = {name: value[0] for name, value in spread.items()}
    device = inputs.device
    return Inferred(
        theta={name: value.to(device) for name, value in theta.items()},
        spread={name: value.to(device) for name, value in spread.items()},
        confidence=confidence.to(device),
        abstain=(confidence < CERTAIN).to(device),
        score=score.to(device),
        outputs=outputs,
        posterior=posterior.to(device),
        candidates={name: value.to(device) for name, value in tried.theta.items()},
        method=chosen,
        pool=pool,
        runs=calls.runs / inputs.size,
    )


def _checked(
    model: Conditioned,
    method: str | None,
    pool: str,
    starts: int,
    steps: int | None,
    temperature: float,
    batch_size: int,
    prior: Tensor | None,
) -> Method:
    """The method, all options being sound."""
    if pool not in ("image", "batch", "stream"):
        raise InputError(
            f"pool: expected 'image', 'batch' or 'stream', got {pool!r}{near(str(pool), ['image', 'batch'])}"
        )
    for name, value, least in (("starts", starts, 1), ("steps", steps or 0, 0), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}: expected a whole number, {least} or more, got {value!r}")
    if not temperature > 0:
        raise InputError(f"temperature: expected a number above 0, got {temperature!r}")
    if prior is not None and pool != "stream":
        raise InputError(f"prior: only a stream goes on from an earlier posterior; pool is {pool!r}")
    head = estimator_of(model)
    if method is None:
        return "search" if head is None else "both"
    if method not in ("head", "search", "both"):
        raise InputError(f"method: expected 'head', 'search' or 'both', got {method!r}")
    if method != "search" and head is None:
        raise ParameterError(
            f"method {method!r}: the model has no head that estimates θ. Train one with fit(…, "
            "predict_parameter=True), or use method='search', which needs none"
        )
    return method  # type: ignore[return-value]


def _known(model: Conditioned, known: Mapping[str, Value], size: int) -> Theta:
    """What the user knows, checked; at least one parameter must be left."""
    for name in known:
        if name not in model.space:
            raise ParameterError(f"known: the model has no parameter {name!r}{near(name, model.space)}")
    if len(known) == len(model.space):
        raise ParameterError("known: every parameter is given, nothing is left to infer; call the model itself")
    found: Theta = {}
    for name, given in known.items():
        value = model.space[name].tensor(name, given)
        model.space[name].check(name, value)
        if value.dim() and len(value) != size:
            raise ParameterLengthError(f"known: {name!r} has {len(value)} values for {size} samples")
        found[name] = value.float()
    return found


def _each(
    tried: Candidates, what: str, given: float | Mapping[str, float] | None, default: Mapping[str, float] | None = None
) -> dict[str, float]:
    """One positive number per parameter."""
    if given is None:
        if default is not None:
            return dict(default)
        # A 36th of the range, in the unit.
        found = {}
        for name, axis in tried.axes.items():
            ends = tried.parameters[name].grid(2) if axis.period is None else None
            if axis.discrete:
                found[name] = 1 / 36
            elif ends is None:
                turn = float(tried.parameters[name].from_coordinate(torch.tensor(axis.span)))
                found[name] = (turn - tried.parameters[name].anchor_value) / 36
            else:
                found[name] = float(ends[1] - ends[0]) / 36
        return found
    numbers = dict(given) if isinstance(given, Mapping) else dict.fromkeys(tried.axes, given)
    for name in numbers:
        if name not in tried.axes:
            raise ParameterError(f"{what}: {name!r} is not inferred; expected {', '.join(tried.axes)}")
        if not numbers[name] > 0:
            raise ParameterError(f"{what}: expected a number above 0 for {name!r}, got {numbers[name]!r}")
    return {**_each(tried, what, None, default), **{name: float(value) for name, value in numbers.items()}}


def _asked(calls: Calls) -> dict[str, Tensor]:
    """What the head says: log weights of its kernels, `(B, K)` by parameter."""
    head, parts = estimator_of(calls.model), []
    assert head is not None, "checked before"
    for rows in calls.inputs.chunks(calls.limit):
        args, kwargs = calls.inputs.take(rows)
        parts.append(head(head.read(calls.model.frozen(), args, kwargs)))
    return {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}


def _evidence(
    calls: Calls,
    tried: Candidates,
    method: Method,
    weights: Mapping[str, Tensor] | None,
    pool: Pool,
    starts: int,
    temperature: float,
) -> Tensor:
    r"""$\ell$ of every candidate for every sample, `(B, K)`."""
    if weights is None:
        return -calls.every(tried) / temperature
    head = estimator_of(calls.model)
    assert head is not None
    log_q = head.log_density(weights, {name: value.unsqueeze(0) for name, value in tried.theta.items()})
    if method == "head":
        return log_q
    if pool == "batch":
        chosen = tried.peaks(log_q.sum(0, keepdim=True), starts).expand(calls.inputs.size, -1)
    else:
        chosen = tried.peaks(log_q, starts)
    energy = calls.some(tried, chosen)
    # A peak's energy stands for all that lies nearest to it: between two candidates that were not asked for, the head
    # alone decides.
    nearest = tried.distances()[chosen].argmin(1)  # (B, K), into `chosen`
    return log_q - energy.gather(1, nearest) / temperature


def _filtered(tried: Candidates, evidence: Tensor, drift: Mapping[str, float], prior: Tensor | None) -> Tensor:
    """The posterior at every frame of what came up to it: a Bayes filter over the candidates, `(B, K)`."""
    size = len(tried)
    if prior is not None and (prior.shape != (size,) or not bool((prior >= 0).all()) or not float(prior.sum()) > 0):
        raise InputError(
            f"prior: expected {size} probabilities, as found.posterior[-1], got shape {tuple(prior.shape)}"
        )
    moves = tried.diffusion(drift)
    now = torch.full((size,), 1 / size) if prior is None else prior.cpu().float() / float(prior.sum()) @ moves
    found = []
    for row in evidence:
        now = (now.clamp_min(1e-30).log() + row).softmax(0)
        found.append(now)
        now = now @ moves
    return torch.stack(found)


def _refined(
    calls: Calls,
    tried: Candidates,
    theta: Theta,
    weights: Mapping[str, Tensor] | None,
    method: Method,
    pool: Pool,
    steps: int | None,
    temperature: float,
) -> Theta:
    """Some steps downhill, where they are wanted."""
    if pool == "stream":  # what the filter says of a frame is no longer that frame's energy
        return theta
    number = steps if steps is not None else 0 if tried.shape else STEPS
    if method == "head":
        number = 0 if tried.shape else POLISH
    return refine(calls, tried, theta, _prior(calls, weights), temperature, number, network=method != "head")


def _prior(
    calls: Calls, weights: Mapping[str, Tensor] | None
) -> Callable[[Tensor | slice, Mapping[str, Tensor]], Tensor] | None:
    head = estimator_of(calls.model)
    if weights is None or head is None:
        return None

    def log_q(rows: Tensor | slice, theta: Mapping[str, Tensor]) -> Tensor:
        here = {name: weights[name][rows] for name in theta}
        return head.log_density(here, {name: value.reshape(-1, 1) for name, value in theta.items()}).squeeze(1)

    return log_q


def _score(
    calls: Calls,
    tried: Candidates,
    method: Method,
    weights: Mapping[str, Tensor] | None,
    outputs: Any,
    theta: Theta,
) -> Tensor:
    """The objective at the estimate: `(B,)`, on the CPU."""
    prior = _prior(calls, weights)
    if method == "head" and prior is not None:
        return -prior(slice(None), theta)
    answers = calls.energy.answer(outputs).unsqueeze(1)
    return calls.energy.score(answers).cpu()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every part of the transform in eval mode, and as it was afterwards."""
    flags = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag
