"""`infer`: estimate θ from inputs, and run the network at the estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, ParameterError, ParameterLengthError, near
from ..estimator import estimator_of
from ..model import Conditioned
from ..modes import eval_mode
from ..parameters import Theta, Value
from .calls import Calls, Inputs
from .candidates import Candidates, lay_out
from .density import HeadDensity
from .energy import Energy, Named, resolve
from .result import CERTAIN, Inferred, Method, Pool, close_to, spread_of

__all__ = ["infer"]

DRIFT = 1 / 36
"""Standard deviation of θ's change from one frame of a stream to the next, as a share of the range."""


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
    temperature: float = 0.1,
    drift: float | Mapping[str, float] | None = None,
    prior: Tensor | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    batch_size: int = 256,
) -> Inferred:
    r"""Estimate θ from the inputs alone, and run the network at the estimate.

    Every candidate θ gets the evidence

    $$\ell(\theta; x) = \log q(\theta \mid x) - E(f(x; W(\theta))) / \tau$$

    $q$ is the density that the model's head gives, relative to the uniform one ([`fit`][weightmorph.fit] trains a head:
    `predict_parameter=True`). $E$ is the objective: how unsure the network itself is at that θ. The posterior is the
    softmax of the evidence over the candidates. The estimate is the best candidate; on a grid, a parabola through its
    neighbours finds the maximum between candidates.

    | method | evidence | network runs per sample |
    |---|---|---:|
    | `"head"` | $\log q$ | 1 |
    | `"search"` | $-E/\tau$ at all candidates, 36 for one parameter | 37 |
    | `"both"` | both terms; $E$ at the `starts` best peaks of $q$, each candidate taking that of the nearest peak | 4 |

    In addition, the head runs the base's early layers once. `pool` says which samples share θ: none (`"image"`), all of
    `x` (`"batch"`, where the evidence adds up), or neighbours in time (`"stream"`, where `x` is in order, θ walks at
    random by `drift` from one frame to the next, and each estimate uses the frames up to its own).

    An object that looks the same at several θ gives several peaks, and the estimate is one of them; `abstain` says so.
    `docs/unknown_parameter.md` lists measured costs and failures.

    Args:
        model: the conditioned model.
        x: inputs `(B, …)`: a tensor, a tuple of positional inputs, or a dict of keyword inputs.
        method: see the table; unless given, `"both"` with a head and `"search"` without.
        objective: $E$: `"entropy"`; `"agreement"`, the entropy of the mean answer of θ and its neighbours; or a
            function of the network's output that gives one number per sample, lower where θ is right. The two named
            objectives need logits.
        pool: `"image"`, `"batch"` or `"stream"`, as above.
        known: values of known parameters, as in a call; the others are inferred.
        candidates: number of values of each parameter; or a number per parameter; or the settings, one list per
            parameter. Unless given, 36 values of one parameter, 12 each of two, 256 points of a Sobol sequence for
            more, and a finer grid where no network runs.
        starts: peaks of the head's density at which `"both"` runs the network.
        temperature: $\tau$ in nats: the decrease of $E$ that makes a θ e times as likely.
        drift: for `"stream"`: standard deviation of θ's change from one frame to the next, in the parameter's unit (for
            a `Categorical`, the probability of a change); one number or one per parameter. Unless given, 1/36 of the
            range.
        prior: for `"stream"`: the posterior `(K,)` of the frame before the first, `found.posterior[-1]` of the previous
            call.
        tolerance: the distance from the estimate that counts as near for `confidence`, in the parameter's unit; one
            number or one per parameter. Unless given, 1/12 of the range: 30° of a circle.
        batch_size: samples in one run of the network.

    Returns:
        estimates, their standard deviation, a flag to abstain, and the outputs. No tensor carries a gradient.

    Raises:
        InputError: for inputs, an objective or options that cannot be used.
        ParameterError: if `known`, `candidates`, `drift` or `tolerance` do not fit the parameters, or if the method
            needs a head and the model has none.

    References:
        Wang, Saukh, He, Thiele, "Representing input transformations by low-dimensional parameter subspaces",
        2023, arXiv:2305.13536, who search for the θ of lowest batch entropy by basin hopping.

    Example:
        >>> import weightmorph as wm
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.Warp(), example=torch.rand(1, 1, 9, 9))
        >>> found = infer(model, torch.rand(5, 1, 9, 9), pool="batch")
        >>> found["angle"].shape, found.outputs.shape, found.posterior.shape
        (torch.Size([]), torch.Size([5, 3]), torch.Size([36]))
    """
    if not isinstance(model, Conditioned):
        raise InputError(f"infer: expected a conditioned model, made by condition(net, …), got {type(model).__name__}")
    inputs, energy = Inputs(x), resolve(objective)
    chosen = _checked(model, method, pool, starts, temperature, batch_size, prior)
    values = _known(model, known or {}, inputs.size)
    tried = lay_out(model.space, [n for n in model.space if n not in values], candidates, fine=chosen == "head")
    reach = _per_parameter(tried, "tolerance", tolerance)
    walk = _walk(tried, drift) if pool == "stream" else {}
    calls = Calls(model, inputs, values, energy, batch_size)
    head = None if chosen == "search" else estimator_of(model)
    with torch.no_grad(), eval_mode(model):
        density = None if head is None else HeadDensity(head, calls)
        evidence = _evidence(calls, tried, chosen, density, pool, starts, temperature)
        if pool == "stream":
            posterior = _filtered(tried, evidence, walk, prior)
            evidence = posterior.clamp_min(1e-30).log()
        else:
            posterior = evidence.softmax(1)
        estimates = tried.between(evidence, posterior.argmax(1))
        if density is not None and chosen == "head" and pool != "stream" and not tried.shape:
            # The head's parameters are independent, so its maximum needs no grid over all of them.
            estimates = density.most_likely(list(tried.axes), pooled=pool == "batch")
        theta = _first(estimates) if pool == "batch" else estimates
        outputs = calls.outputs(theta)
        if density is not None and chosen == "head":
            score = -density.at(theta)
        else:
            score = energy.score(energy.answer(outputs).unsqueeze(1)).cpu()
    spread = spread_of(tried, posterior, estimates)
    confidence = close_to(tried, posterior, estimates, reach)
    if pool == "batch":
        spread, posterior, confidence, score = _first(spread), posterior[0], confidence[0], score.mean()
    result = Inferred(
        theta, spread, confidence, confidence < CERTAIN, score, outputs, posterior, tried.theta, chosen, pool,
        runs=calls.runs / inputs.size,
    )  # fmt: skip
    return result.to(inputs.device)


def _first(values: Theta) -> Theta:
    """The only entry of values `(1,)`: name to `()`."""
    return {name: value[0] for name, value in values.items()}


def _walk(tried: Candidates, drift: float | Mapping[str, float] | None) -> dict[str, float]:
    """The standard deviation of each parameter from one frame to the next."""
    default = {name: DRIFT * tried.range_of(name) for name in tried.axes}
    return default | _per_parameter(tried, "drift", drift)


def _checked(
    model: Conditioned,
    method: str | None,
    pool: str,
    starts: int,
    temperature: float,
    batch_size: int,
    prior: Tensor | None,
) -> Method:
    """The method, after a check of all options."""
    if pool not in ("image", "batch", "stream"):
        raise InputError(
            f"pool: expected 'image', 'batch' or 'stream', got {pool!r}{near(str(pool), ['image', 'batch'])}"
        )
    for name, value in (("starts", starts), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: expected a whole number, 1 or more, got {value!r}")
    if not temperature > 0:
        raise InputError(f"temperature: expected a number above 0, got {temperature!r}")
    if prior is not None and pool != "stream":
        raise InputError(f"prior: only a stream continues from an earlier posterior; pool is {pool!r}")
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
    return method  # type: ignore[return-value]  # mypy does not narrow a str to a Literal


def _known(model: Conditioned, known: Mapping[str, Value], size: int) -> Theta:
    """The values of the known parameters, checked; at least one parameter must be unknown."""
    for name in known:
        if name not in model.space:
            raise ParameterError(f"known: the model has no parameter {name!r}{near(name, model.space)}")
    if len(known) == len(model.space):
        raise ParameterError("known: every parameter is given, nothing is left to infer; call the model itself")
    values: Theta = {}
    for name, given in known.items():
        value = model.space[name].tensor(name, given)
        model.space[name].check(name, value)
        if value.dim() and len(value) != size:
            raise ParameterLengthError(f"known: {name!r} has {len(value)} values for {size} samples")
        values[name] = value.float()
    return values


def _per_parameter(tried: Candidates, what: str, given: float | Mapping[str, float] | None) -> dict[str, float]:
    """A positive number for each parameter that the user gave one for."""
    if given is None:
        return {}
    numbers = dict(given) if isinstance(given, Mapping) else dict.fromkeys(tried.axes, given)
    for name, number in numbers.items():
        if name not in tried.axes:
            raise ParameterError(f"{what}: {name!r} is not inferred; expected {', '.join(tried.axes)}")
        if not number > 0:
            raise ParameterError(f"{what}: expected a number above 0 for {name!r}, got {number!r}")
    return {name: float(number) for name, number in numbers.items()}


def _evidence(
    calls: Calls,
    tried: Candidates,
    method: Method,
    density: HeadDensity | None,
    pool: Pool,
    starts: int,
    temperature: float,
) -> Tensor:
    r"""$\ell$ of every candidate for every sample, `(B, K)`; summed over the samples, `(1, K)`, if they share θ."""
    if density is None:
        evidence = -calls.every(tried) / temperature
    else:
        evidence = density.over(tried.theta)
        if method == "both":
            if pool == "batch":
                chosen = tried.peaks(evidence.sum(0, keepdim=True), starts).expand(calls.inputs.size, -1)
            else:
                chosen = tried.peaks(evidence, starts)
            # Each candidate takes the energy of its nearest peak, so between the peaks the head alone decides.
            nearest = tried.distances()[chosen].argmin(1)  # (B, K), into `chosen`
            evidence = evidence - calls.some(tried, chosen).gather(1, nearest) / temperature
    return evidence.sum(0, keepdim=True) if pool == "batch" else evidence


def _filtered(tried: Candidates, evidence: Tensor, drift: Mapping[str, float], prior: Tensor | None) -> Tensor:
    """The posterior of each frame given the frames up to it, `(B, K)`: a Bayes filter over the candidates."""
    size = len(tried)
    if prior is not None and (prior.shape != (size,) or not bool((prior >= 0).all()) or not float(prior.sum()) > 0):
        raise InputError(
            f"prior: expected {size} probabilities, as found.posterior[-1], got shape {tuple(prior.shape)}"
        )
    moves = tried.diffusion(drift)
    now = torch.full((size,), 1 / size) if prior is None else prior.cpu().float() / float(prior.sum()) @ moves
    posteriors = []
    for row in evidence:
        now = (now.clamp_min(1e-30).log() + row).softmax(0)
        posteriors.append(now)
        now = now @ moves
    return torch.stack(posteriors)
