"""The annealing step as a CUDA graph, on a stand-in that records operations and repeats them."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from problems import linear_problem
from torch.utils._python_dispatch import TorchDispatchMode

from rdcurve.sampler import ais
from rdcurve.sampler.ais import Annealing, Groups, Tuning, advance, start_from_prior
from rdcurve.sampler.captured import captured
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import identity
from rdcurve.sampler.prior import scale_mixture, standard_normal, uniform
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.step_size import Adaptive, Frozen

ASKS_THE_HOST = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class Graph(TorchDispatchMode):
    """Like a CUDA graph: operations on fixed memory, repeated with the Python numbers that they were recorded with."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in ASKS_THE_HOST:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        result = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch._C._AutoDispatchBelowAutograd():
            for operation, args, kwargs, result in self.operations:
                again = operation(*args, **kwargs)
                pairs = zip(*((r if isinstance(r, tuple | list) else (r,)) for r in (result, again)), strict=True)
                for old, new in pairs:
                    if old.data_ptr() != new.data_ptr():  # a view is already what it should be
                        old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """Graphs on the CPU; the list of those recorded."""
    recorded = []

    @contextmanager
    def record(graph):
        with graph:
            yield
        recorded.append(graph)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "CUDAGraph": Graph, "graph": record, "Stream": lambda: stream, "current_stream": lambda: stream,
        "stream": nullcontext,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return recorded


def run(prior, groups=Groups(4), n_leapfrog=2, cuts=(9,), dtype=torch.float64, adapt=False, **options):
    """Some steps of AIS on a linear decoder, in one piece or more."""
    problem = linear_problem(5, n_images=3, dtype=dtype)
    target, images, betas = problem.target, torch.arange(3), sigmoid(10, 50.0)
    target = ais.Target(prior(3, dtype=dtype), target.decoder, target.distortion, target.x)
    table = torch.rand(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 5
    sizes = Adaptive(10, 3) if adapt else Frozen(table)
    chains = start_from_prior(target, 1, images, 8)
    annealing = Annealing(target, Kernel(n_leapfrog, 0.2, 0.5), 2, images, groups)
    for until in cuts:
        chains = advance(annealing, betas, chains, sizes, identity(3, dtype), until=until, **options)
    return chains


def same(a, b):
    pairs = [(a.log_weight, b.log_weight), (a.acceptance, b.acceptance), (a.state.momentum, b.state.momentum)]
    return all(torch.equal(x, y) for x, y in [*pairs, *zip(a.state.point, b.state.point, strict=True)])


@pytest.fixture
def as_on_cuda(graphs, monkeypatch):
    """`advance` as it goes on a GPU: betas and numbers of steps as tensors, a graph after two steps."""
    monkeypatch.setattr(ais, "_on_host", lambda value: False)
    monkeypatch.setattr(ais, "_WORTH_A_GRAPH", 2)
    return graphs


PRIORS = {
    "standard normal": standard_normal,
    "mixture": lambda n, dtype: scale_mixture(n, 0.3, 10.0, dtype=dtype),
    "uniform": lambda n, dtype: uniform(n, -2.0, 2.0, dtype=dtype),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_captured_step_gives_the_same_bits(prior, dtype, request):
    alone = run(prior, dtype=dtype)
    graphs = request.getfixturevalue("as_on_cuda")
    assert same(run(prior, dtype=dtype), alone)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "options",
    [{"groups": Groups(1)}, {"n_leapfrog": 5}, {"cuts": (3, 4, 9)}, {"adapt": True}, {"reverse": True}],
    ids=["no groups", "long", "cut", "adapting", "reverse"],
)
def test_every_way_of_running_gives_the_same_bits(options, request):
    alone = run(standard_normal, **options)
    graphs = request.getfixturevalue("as_on_cuda")
    assert same(run(standard_normal, **options), alone)
    assert len(graphs) == 1  # recorded once, however the run is cut


@pytest.mark.parametrize(
    ("options", "calls", "recorded"),
    [
        ({}, [1, 2, 5, 8, 9], 2),
        ({"groups": Groups(1)}, [1, 2, 5, 8, 9], 2),
        ({"reverse": True}, [1, 2, 5, 8, 9], 2),
        ({"cuts": (4, 7, 9)}, [1, 2, 3, 4, 7, 8, 9], 2),
        ({"adapt": True}, list(range(1, 10)), 1),
    ],
    ids=["plain", "no groups", "reverse", "cut", "adapting"],
)
def test_several_steps_as_one_graph_give_the_same_bits(options, calls, recorded, request):
    """Where steps are alike and enough of them are left; told of after the last."""
    alone = run(standard_normal, **options)
    graphs = request.getfixturevalue("as_on_cuda")
    seen = []
    together = run(standard_normal, at_once=3, after_step=lambda chains: seen.append(chains.step), **options)
    assert same(together, alone)
    assert together.n_moves == alone.n_moves == 9
    assert seen == calls
    assert len(graphs) == recorded


def test_a_formal_run_records_two_graphs(request):
    """Of a step and of several, however few lie between two recorded betas."""
    problem, betas = linear_problem(5, n_images=3), sigmoid(40, 50.0)
    tuning = Tuning(betas, torch.full((40, 3), 0.1, dtype=torch.float64), identity(3, torch.float64))

    def curve():
        return formal_run(
            problem.target, tuning, list(range(3, 40, 4)), Kernel(2, 0.2, 0.5), n_chains=8, seed=2, groups=Groups(4)
        )

    alone = curve()
    graphs = request.getfixturevalue("as_on_cuda")
    as_graph = curve()
    assert len(graphs) == 2
    for name in ("rate", "distortion", "log_z"):
        assert np.array_equal(getattr(as_graph, name), getattr(alone, name))


def test_chains_kept_from_an_earlier_step_stay_as_they_were(as_on_cuda):
    kept = []
    run(standard_normal, after_step=lambda chains: kept.append((chains, chains.state.point.z.clone())))
    assert len(kept) == 9
    assert all(torch.equal(chains.state.point.z, z) for chains, z in kept)


def test_what_asks_the_host_is_launched_kernel_by_kernel(graphs):
    def function(x):
        return x + 1 if x.sum().item() > 0 else x

    with pytest.warns(RuntimeWarning, match="no CUDA graph.*not permitted"):
        assert captured(function, torch.ones(3)) is function


def test_a_graph_with_other_bits_is_not_used(graphs):
    calls = []

    def function(x):
        calls.append(x)
        return (x * len(calls),)

    with pytest.warns(RuntimeWarning, match="no CUDA graph.*other bits"):
        assert captured(function, torch.ones(3)) is function


def test_nested_results_keep_their_types(graphs):
    def function(pair, number):
        return Groups(pair[0] * number, pair[1] + number)

    replay = captured(function, (torch.ones(2), torch.zeros(2)), torch.tensor(3.0))
    with pytest.raises(ValueError, match=r"recorded with \(2,\) is given \(1,\)"):
        replay((torch.ones(1), torch.zeros(2)), torch.tensor(2.0))
    result = replay((torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0])), torch.tensor(2.0))
    assert isinstance(result, Groups)
    assert result.size.tolist() == [2.0, 4.0]
    assert result.resample_below.tolist() == [7.0, 8.0]
