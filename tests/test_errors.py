"""Errors are part of the product: each says layer, expected, got, and what to do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from zoo import Bend

import weightmorph as wm
from weightmorph import errors


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.fc(self.conv1(x).mean((2, 3)) * scale)


X = torch.randn(4, 1, 6, 6)
ANGLE = {"angle": wm.Angle("deg")}


def model(transform: nn.Module | None = None, **kwargs: object) -> wm.Conditioned:
    return wm.condition(Net(), ANGLE, transform or wm.LowRank(1) + wm.Scale(), **kwargs)  # type: ignore[arg-type]


def test_every_error_is_a_weightmorph_error() -> None:
    """One except clause catches all; each is also what a Python user would expect."""
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning):
            assert issubclass(kind, errors.WeightmorphError)
            assert name in (errors.__doc__ or ""), f"{name} is missing from the tree in the module's docstring"


def test_theta_missing() -> None:
    with pytest.raises(errors.MissingParameterError, match=r"no value for 'angle'.*model\(x, angle=…\).*angle=0"):
        model()(X)


def test_theta_unknown() -> None:
    with pytest.raises(
        errors.UnknownParameterError, match=r"'agnle'.*conditioned on angle, and the base takes .*did you mean 'angle'"
    ):
        model()(X, agnle=3.0)
    with pytest.raises(TypeError):
        model().bake(angle=3.0, blur=1.0)


def test_the_bases_own_keywords_pass() -> None:
    m = model()
    torch.testing.assert_close(m(X, angle=0.0, scale=2.0), m.frozen()(X, scale=2.0))


def test_theta_of_the_wrong_length() -> None:
    with pytest.raises(errors.ParameterLengthError, match=r"angle: expected .* 4 samples, got 3 values"):
        model()(X, angle=[1.0, 2.0, 3.0])
    with pytest.raises(errors.ParameterLengthError, match="got 1 values"):
        model()(X, angle=torch.tensor([1.0]))
    with pytest.raises(errors.ParameterLengthError, match="bake: expected one value per parameter, got 2"):
        model().bake(angle=[1.0, 2.0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), [0.0, 1.0, float("nan"), 2.0]])
def test_theta_not_finite(bad: object) -> None:
    with pytest.raises(errors.ParameterValueError, match="'angle': expected finite values"):
        model()(X, angle=bad)


def test_theta_out_of_range_warns_and_goes_on() -> None:
    m = wm.condition(Net(), {"blur": wm.Interval(0.0, 4.0, unit="px")}, wm.Scale())
    with pytest.warns(errors.OutOfRangeWarning, match=r"'blur': expected values in \[0, 4\] px, got 5.0"):
        assert m(X, blur=5.0).shape == (4, 3)


def test_no_tensor_matches_a_pattern() -> None:
    with pytest.raises(errors.SelectionError, match=r"'conv2\.weight' matches no tensor; did you mean 'conv1\.weight'"):
        model(select="conv2.weight")
    with pytest.raises(errors.SelectionError, match="did you mean 'fc'"):
        model(select=["conv1", "fcc"])
    with pytest.raises(errors.SelectionError, match="no parameters"):
        wm.condition(nn.Sequential(nn.ReLU()), ANGLE, wm.Scale())


def test_a_family_that_wants_nothing() -> None:
    with pytest.raises(errors.SelectionError, match="applies to none of the selected tensors"):
        model(wm.Warp(), select="fc")


class Wrong(nn.Module):
    def __init__(self, out: object) -> None:
        super().__init__()
        self.out, self.linear = out, nn.Linear(1, 1)

    def forward(self, weight: Tensor, code: Tensor) -> object:
        return self.out(self.linear(weight[..., :1]).sum() + weight)  # type: ignore[operator]


def test_a_transforms_output_of_the_wrong_shape() -> None:
    with pytest.raises(errors.TransformError, match=r"'conv1': Wrong must map weight \(4, 1, 3, 3\).*got \(4, 1, 9\)"):
        model(Wrong(lambda w: w.flatten(2)), select="conv1.weight")(X, angle=3.0)
    with pytest.raises(errors.TransformError, match=r"'conv1': Wrong must give new taps of shape \(4, 9\), got \(4,\)"):
        model(wm.PerFilter(Wrong(lambda w: w.sum(1))))(X, angle=3.0)
    with pytest.raises(errors.TransformError, match=r"'conv1': Wrong .*per_sample='vmap'"):
        model(Wrong(lambda w: w), select="conv1.weight")(X, angle=[1.0, 2.0, 3.0, 4.0])
    with pytest.raises(errors.TransformError, match=r"'conv1': Linear failed on taps .*select="):
        model(wm.PerFilter(nn.Linear(5, 5)))(X, angle=3.0)


def test_a_transforms_output_not_finite() -> None:
    with pytest.raises(errors.TransformError, match=r"'conv1': Custom\(Wrong\) gave a weight that is not finite"):
        model(Wrong(lambda w: w / 0.0), select="conv1.weight")(X, angle=3.0)
    broken = model()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(errors.TransformError, match="not finite"):
        broken(X, angle=3.0)


def test_a_rank_that_does_not_fit() -> None:
    with pytest.raises(errors.RankError, match=r"'conv1': LowRank\(8\).*\(4, 1, 3, 3\).*a rank from 1 to 4"):
        model(wm.LowRank(8), select="conv1.weight")
    with pytest.raises(errors.RankError, match="expected a rank of 1 or more"):
        wm.LowRank(0)
    with pytest.raises(errors.RankError, match="rank from 1 to 6"):
        wm.LowRank(7).build((6, 3, 3, 3), code_dim=4)
    # By default the family takes the room there is.
    assert model(wm.LowRank(8)).transform.of(model(wm.LowRank(8)).slots["fc.weight"])[0].left.shape == (1, 3, 3)


@pytest.mark.parametrize("cut", ["data", "no_grad", "detach", "parameter"])
def test_a_transform_that_got_no_gradient(cut: str) -> None:
    """The mistake of the forum question, in its usual forms."""

    class Lost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(9, 9)

        def forward(self, taps: Tensor, code: Tensor) -> Tensor:
            if cut == "no_grad":
                with torch.no_grad():
                    return self.linear(taps)
            out = self.linear(taps)
            return {"data": out.data, "detach": out.detach()}.get(cut, nn.Parameter(out.detach(), requires_grad=False))

    m = model(wm.PerFilter(Lost()))
    with pytest.raises(errors.NoGradientError, match=r"'conv1': PerFilter\(Lost\).*\.data, torch\.no_grad\(\)"):
        m(X, angle=3.0)
    with torch.no_grad():
        assert m(X, angle=3.0).shape == (4, 3)
    for parameter in m.parameters():
        parameter.requires_grad_(False)
    assert m(X, angle=3.0).shape == (4, 3), "a transform that is frozen on purpose is no mistake"


def test_a_zero_initialised_heads_upstream_is_no_error() -> None:
    m = model(wm.LowRank(1))
    m(X, angle=3.0).sum().backward()
    assert all(p.grad is not None for p in m.parameters())


def test_tied_tensors() -> None:
    class Tied(nn.Module):
        def __init__(self, role: str) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 1)
            self.b = nn.Conv2d(4, 4, 1) if role == "same" else nn.ConvTranspose2d(4, 4, 1)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    with pytest.raises(errors.SelectionError, match=r"different roles: a\.weight \(as conv\), b\.weight \(as conv_tr"):
        wm.condition(Tied("other"), ANGLE, wm.Scale(), select="a.weight")
    with pytest.warns(errors.ConditioningWarning, match="left out: one tensor is used in different roles"):
        m = wm.condition(Tied("other"), ANGLE, wm.Scale())
    assert "a.weight" not in m.slots and "a.bias" in m.slots
    tied = wm.condition(Tied("same"), ANGLE, wm.LowRank(2))
    assert list(tied.slots) == ["a.weight"], "a tensor under two names is one slot"
    with torch.no_grad():
        for p in tied.parameters():
            p.add_(0.1)
    baked = tied.bake(angle=40.0)
    assert baked.a.weight is baked.b.weight
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(tied(x, angle=40.0), baked(x))
    torch.testing.assert_close(tied(x, angle=[40.0, 40.0]), baked(x))


def test_recurrent_layers_are_refused_by_name_and_left_out_by_default() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    x = torch.randn(2, 5, 3)
    model = wm.condition(Recurrent(), ANGLE, wm.Scale(), example=x)
    assert list(model.slots) == ["head.weight", "head.bias"]
    with torch.no_grad():  # with gradients a linear layer may take another kernel
        assert torch.equal(model(x, angle=0.0), model.frozen()(x))
    with pytest.raises(errors.SelectionError, match=r"'rnn': a LSTM reads its weights from a flat list"):
        wm.condition(Recurrent(), ANGLE, wm.Scale(), select="rnn.weight_ih_l0")


def test_parametrised_layers() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), nn.Conv2d(2, 2, 1))
    with pytest.warns(errors.ConditioningWarning, match=r"left out: 0\.weight is already parametrised"):
        m = wm.condition(net, ANGLE, wm.Scale())
    assert list(m.slots) == ["1.weight", "1.bias"]
    torch.testing.assert_close(m(X, angle=0.0), net.eval()(X))
    with pytest.raises(errors.SelectionError, match="'0': weight is already parametrised; remove it with"):
        wm.condition(net, ANGLE, wm.Scale(), select="0.weight")


class Folding(nn.Module):
    """Merges frames into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.conv(x.reshape(-1, 1, *x.shape[2:])).mean((2, 3))
        return self.head(frames.reshape(x.shape[0], -1, 2).mean(1))


def test_a_layer_that_changes_the_batch_dimension() -> None:
    """Found by the example at two batch sizes; without one, where the layer is called."""
    x = torch.randn(4, 3, 6, 6)
    theta = [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(errors.BatchSizeError, match=r"'conv'.*first axis is not the batch.*Give one θ"):
        wm.condition(Folding(), ANGLE, wm.Scale(), example=x)(x, angle=theta)
    with pytest.raises(errors.BatchSizeError, match=r"'conv'.*expected a batch of 4 first.*\(12, 1, 6, 6\)"):
        wm.condition(Folding(), ANGLE, wm.Scale())(x, angle=theta)
    assert wm.condition(Folding(), ANGLE, wm.Scale(), example=x)(x, angle=2.0).shape == (4, 2)


def test_a_square_of_tokens_without_an_example_warns() -> None:
    """(T, B, E) with T = B cannot be told from (B, T, E): an example settles it."""
    net = nn.Linear(3, 2)
    x = torch.randn(4, 4, 3)
    with pytest.warns(errors.ConditioningWarning, match="cannot tell .* example="):
        wm.condition(net, ANGLE, wm.Scale())(x, angle=[1.0, 2.0, 3.0, 4.0])
    wm.condition(net, ANGLE, wm.Scale(), example=x)(x, angle=[1.0, 2.0, 3.0, 4.0])


class Sorting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return x + float(torch.dot(self.table, self.table))


def test_a_function_that_cannot_take_a_per_sample_weight() -> None:
    m = wm.condition(Sorting(), ANGLE, Bend(), select="table")
    with torch.no_grad():
        assert m(torch.randn(3, 2), angle=5.0).shape == (3, 2)
    with pytest.raises(errors.ExecutionError, match="per sample"):
        m(torch.randn(3, 2), angle=[1.0, 2.0, 3.0])


def test_a_function_that_drops_the_batch() -> None:
    class Total(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bc,c->", x, self.gain)

    m = wm.condition(Total(), ANGLE, Bend(), select="gain")
    with pytest.raises(errors.ExecutionError, match=r"'gain', function 'einsum'.*does not keep the batch"):
        m(torch.randn(3, 2), angle=[1.0, 2.0, 3.0])


def test_a_base_that_returns_a_weight() -> None:
    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x), self.fc.weight

    with pytest.raises(errors.ExecutionError, match=r"returns .*fc\.weight.*model\.weights"):
        wm.condition(Gives(), ANGLE, wm.Scale())(torch.randn(2, 2), angle=[1.0, 2.0])


def test_a_per_sample_weight_too_large_for_memory() -> None:
    m = model(wm.Custom(Bend()), select="conv1.weight")
    m.memory_limit = 500
    with pytest.raises(errors.MemoryLimitError, match=r"'conv1'.*4 samples x 36 numbers.*use LowRank"):
        m(X, angle=[1.0, 2.0, 3.0, 4.0])
    frugal = model(wm.LowRank(2) + wm.Warp())
    expected = frugal(X, angle=[1.0, 2.0, 3.0, 4.0])
    frugal.memory_limit = 10
    torch.testing.assert_close(frugal(X, angle=[1.0, 2.0, 3.0, 4.0]), expected)


def test_a_base_that_reads_data() -> None:
    class Reads(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight.data)

    m = wm.condition(Reads(1, 2, 3), ANGLE, wm.Scale())
    with pytest.raises(errors.ExecutionError, match=r"reads \.data of a conditioned weight"):
        m(X, angle=3.0)


def test_parameters_that_clash_with_the_bases_keywords() -> None:
    with pytest.raises(errors.BaseError, match=r"'scale' is also an argument of Net\.forward"):
        wm.condition(Net(), {"scale": wm.Interval(0.0, 1.0)}, wm.Scale())


@pytest.mark.parametrize(
    ("name", "method"), [("fold", "bake"), ("rounds", "autotune"), ("self", "forward"), ("in", "")]
)
def test_parameters_that_cannot_be_keywords(name: str, method: str) -> None:
    words = rf"an argument of {method}\(\)" if method else "keyword of Python"
    with pytest.raises(errors.BaseError, match=rf"parameter '{name}' is .*{words}; give the parameter another name"):
        wm.condition(Net(), {name: wm.Interval(0.0, 1.0)}, wm.Scale())


@pytest.mark.parametrize("name", ["args", "kwargs", "theta", "name", "path"])
def test_other_parameter_names_are_free(name: str) -> None:
    """A method that collects its arguments under a name leaves that name to the parameters."""
    m = wm.condition(Net(), {name: wm.Interval(0.0, 1.0)}, wm.Scale())
    assert m(X, **{name: 0.5}).shape == m.bake(**{name: 0.5})(X).shape
    assert list(m.weights(**{name: 0.5})) == list(m.slots) and m.summary(X, **{name: [0.5] * len(X)})


def test_bases_of_the_wrong_kind() -> None:
    with pytest.raises(errors.BaseError, match=r"expected an nn.Module"):
        wm.condition(lambda x: x, ANGLE, wm.Scale())  # type: ignore[arg-type]
    with pytest.raises(errors.BaseError, match="conditioned already"):
        wm.condition(model(), ANGLE, wm.Scale())
    with pytest.raises(errors.BaseError, match=r"DataParallel.*\.module"):
        wm.condition(nn.DataParallel(Net()), ANGLE, wm.Scale())
    with pytest.raises(errors.BaseError, match=r"'0': weight is not initialised"):
        wm.condition(nn.Sequential(nn.LazyLinear(3)), ANGLE, wm.Scale())
    with pytest.raises(errors.TransformError, match="expected a weight transform"):
        wm.condition(Net(), ANGLE, "lowrank")  # type: ignore[arg-type]


def test_script_modules_are_refused() -> None:
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(errors.BaseError, match="ScriptModule runs outside Python"):
        wm.condition(scripted, ANGLE, wm.Scale())


def test_a_recipe_is_no_transform() -> None:
    with pytest.raises(errors.TransformError, match=r"is a recipe: call \.build"):
        wm.LowRank(2)(torch.zeros(2, 2), torch.zeros(1))
    with pytest.raises(errors.TransformError, match="give code_dim"):
        wm.LowRank(2).build((2, 2))
    for bad in (lambda: wm.Warp(grow=-1), lambda: wm.Subspace(0), lambda: wm.PerFilter("cubic")):  # type: ignore[arg-type]
        with pytest.raises(errors.TransformError):
            bad()


def test_a_layer_that_the_example_never_reads() -> None:
    class Spare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(4, 4)

    with pytest.warns(errors.ConditioningWarning, match=r"never conditioned: unused\.weight, unused\.bias"):
        m = wm.condition(Spare(), ANGLE, wm.Scale(), example=X)
    assert "unused.weight" not in m.slots


def test_require_names_the_extra() -> None:
    with pytest.raises(errors.MissingDependencyError, match=r"pip install 'weightmorph\[train\]'") as caught:
        errors.require("no_such_package_of_ours", "train", "fit")
    assert isinstance(caught.value, ImportError)


def test_a_failed_call_leaves_the_model_usable() -> None:
    m = model()
    before = copy.deepcopy(m.state_dict())
    with pytest.raises(errors.WeightmorphError):
        m(X, angle=[1.0])
    torch.testing.assert_close(m(X, angle=0.0), m.frozen()(X))
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


@pytest.mark.parametrize("route", ["factord", 3])
def test_a_route_that_does_not_exist(route: object) -> None:
    with pytest.raises(errors.ExecutionError, match="route: expected None or one of factored, grouped"):
        model().route = route  # type: ignore[assignment]


@pytest.mark.parametrize("limit", ["4GB", -1, True, 1.5])
def test_a_memory_limit_that_is_no_number_of_bytes(limit: object) -> None:
    with pytest.raises(errors.ExecutionError, match="memory_limit: expected a number of bytes"):
        model().memory_limit = limit  # type: ignore[assignment]
