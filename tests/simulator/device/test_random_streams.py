"""The device's random numbers: apart from the host's, saved and put back by ``rng_state``."""

import pytest
import torch

import ipu_proxynorm.simulator as poptorch
from ipu_proxynorm.simulator.device.random_streams import RandomStreams

REPLICAS = 2


class Model(torch.nn.Module):
    """Half precision with a mean squared loss; dropout if asked for."""

    def __init__(self, p):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(8, 8).half()
        self.p = p

    def forward(self, x):
        y = torch.nn.functional.dropout(self.linear(x), self.p, training=self.training)
        return y, poptorch.identity_loss((y.float() ** 2).mean(), reduction="mean")


def options(stochastic):
    chosen = poptorch.Options().replicationFactor(REPLICAS).randomSeed(3)
    chosen.outputMode(poptorch.OutputMode.All)
    chosen.Precision.enableStochasticRounding(stochastic)
    return chosen


def trained(p, stochastic):
    model = Model(p)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.3)
    executor = poptorch.trainingModel(model, options(stochastic), optimizer)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).half()
    executor.compile(x)
    return executor, x


@pytest.mark.parametrize(
    ("p", "stochastic"),
    [(0.0, True), (0.5, False), (0.5, True)],
    ids=["rounding", "dropout", "both"],
)
def test_a_state_put_back_repeats_outputs_and_weights(p, stochastic):
    executor, x = trained(p, stochastic)
    executor(x)
    executor.copyWeightsToHost()
    weights = {name: tensor.clone() for name, tensor in executor.state_dict().items()}
    state = executor.rng_state
    results = []
    for _ in range(2):
        executor.load_state_dict(weights)
        executor.copyWeightsToDevice()
        executor.rng_state = state
        outputs = [executor(x)[0].clone() for _ in range(2)]
        executor.copyWeightsToHost()
        results.append([*outputs, *(t.clone() for t in executor.state_dict().values())])
    for one, other in zip(*results):
        assert torch.equal(one, other)
    assert not torch.equal(results[0][0], results[0][1])


def test_without_the_state_the_rounding_of_weights_differs():
    executor, x = trained(0.0, True)
    executor.copyWeightsToHost()
    weights = {name: tensor.clone() for name, tensor in executor.state_dict().items()}
    results = []
    for _ in range(2):
        executor.load_state_dict(weights)
        executor.copyWeightsToDevice()
        executor(x)
        executor.copyWeightsToHost()
        results.append(executor.state_dict()["linear.weight"].clone())
    assert not torch.equal(*results)


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_host_stream_stays_where_it_is(stochastic):
    executor, x = trained(0.5, stochastic)
    before = torch.get_rng_state()
    executor(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_shared_stream_is_the_same_on_every_process_and_the_replicas_differ():
    one, other = RandomStreams(7, 2, first=0), RandomStreams(7, 2, first=2)
    drawn = []
    for streams in (one, other):
        with streams.use_shared():
            drawn.append(torch.rand(5))
    assert torch.equal(*drawn)
    for streams in (one, other):
        for replica in range(2):
            with streams.use(replica):
                drawn.append(torch.rand(5))
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 5


def test_a_state_is_as_long_for_every_replica_and_goes_back_and_forth():
    streams = RandomStreams(7, 3)
    with streams.use(1):
        torch.rand(1000)
    with streams.use_shared():
        torch.rand(10)
    state = streams.state()
    assert len(state) % 3 == 0
    other = RandomStreams(8, 3)
    other.set_state(state)
    assert other.state() == state
    other.set_state([])
    assert other.state() == RandomStreams(8, 3).state()


def test_a_model_compiled_anew_goes_on_from_the_state_read_last():
    x = torch.ones(64)

    def dropout():
        return poptorch.inferenceModel(torch.nn.Dropout(0.5), poptorch.Options().randomSeed(5))

    executor = dropout()
    first = executor(x)
    assert len(executor.rng_state) > 1
    second = executor(x)
    executor.destroy()
    assert torch.equal(executor(x), second)  # _poplar_executor.py:431, 1130

    unread = dropout()
    unread(x)
    unread.destroy()
    assert torch.equal(unread(x), first)
