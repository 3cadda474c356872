from __future__ import annotations

import sys
import textwrap

import pytest
import torch

from ipu_proxynorm.simulator import enums, popdist
from ipu_proxynorm.simulator.machine.processes import sumOverProcesses
from ipu_proxynorm.simulator.popdist import poptorch as popdist_poptorch
from ipu_proxynorm.simulator.poptorch_core import Error

pytestmark = pytest.mark.simulator

LAUNCH = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in (*LAUNCH, "POPDIST_NUM_LOCAL_REPLICAS", "POPDIST_NUM_IPUS_PER_REPLICA"):
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch, **more):
    for name, value in {**LAUNCH, **more}.items():
        monkeypatch.setenv(name, value)


def test_alone_there_is_one_instance_with_one_replica():
    assert not popdist.isPopdistEnvSet()
    assert (popdist.getInstanceIndex(), popdist.getNumInstances()) == (0, 1)
    assert (popdist.getNumLocalReplicas(), popdist.getNumTotalReplicas()) == (1, 1)
    assert popdist.getReplicaIndexOffset() == 0
    assert popdist.checkNumIpusPerReplica(7)
    popdist.init()
    assert not popdist.isBackendInitialized()
    popdist.synchronize()
    assert popdist.execute_on_instances({0}, lambda x, y: x + y, 1, y=2) == 3
    assert popdist.execute_on_instances({1}, lambda: 1) is None


def test_a_launched_instance_knows_its_place(monkeypatch):
    launch(monkeypatch, POPDIST_NUM_LOCAL_REPLICAS="3", POPDIST_NUM_IPUS_PER_REPLICA="2")
    assert popdist.isPopdistEnvSet()
    assert (popdist.getInstanceIndex(), popdist.getNumInstances()) == (2, 4)
    assert (popdist.getLocalInstanceIndex(), popdist.getDeviceId()) == (0, 0)
    assert (popdist.getNumLocalReplicas(), popdist.getNumTotalReplicas()) == (3, 12)
    assert popdist.getReplicaIndexOffset() == 6
    assert popdist.getNumIpusPerReplica() == 2
    assert popdist.checkNumIpusPerReplica(2)
    assert not popdist.checkNumIpusPerReplica(4)


def test_bad_environment_is_named(monkeypatch):
    monkeypatch.setenv("POPDIST_NUM_LOCAL_REPLICAS", "many")
    with pytest.raises(Error, match="POPDIST_NUM_LOCAL_REPLICAS is 'many' but must be an integer"):
        popdist.getNumLocalReplicas()


def test_options_take_everything_from_the_launcher(monkeypatch):
    launch(monkeypatch, POPDIST_NUM_LOCAL_REPLICAS="3", POPDIST_NUM_IPUS_PER_REPLICA="2")
    options = popdist_poptorch.Options(ipus_per_replica=2)
    assert options.replication_factor == 3
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (2, 4)
    values = options.outputMode(enums.OutputMode.All).toDict()
    assert values["num_distributed_processes"] == 4
    options._freeze()
    options.toDict()
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        options.deviceIterations(2)
    assert options.clone().deviceIterations(2).Distributed.numProcesses == 4
    with pytest.raises(RuntimeError, match=r"uses 4 IPUs per replica but .* is 2"):
        popdist_poptorch.Options(ipus_per_replica=4)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("useIpuId", lambda o: o.useIpuId(1)),
        ("replicationFactor", lambda o: o.replicationFactor(1)),
        ("Distributed.disable", lambda o: o.Distributed.disable()),
        ("Distributed.setEnvVarNames", lambda o: o.Distributed.setEnvVarNames("A", "B")),
        ("Distributed.configureProcessId", lambda o: o.Distributed.configureProcessId(0, 2)),
    ],
)
def test_what_the_launcher_decides_cannot_be_set(name, call):
    with pytest.raises(RuntimeError, match=f"Cannot call `{name}` with popdist.poptorch.Options"):
        call(popdist_poptorch.Options(ipus_per_replica=2))


def test_distributed_options_without_a_launcher_are_refused():
    sumOverProcesses([torch.ones(1)], 1)
    with pytest.raises(Error, match=r"distributed over 2 processes .* start it with torchrun"):
        sumOverProcesses([torch.ones(1)], 2)


@pytest.fixture
def torchrun(tmp_path, monkeypatch):
    """Run a program in several processes; returns what each wrote to ``{rank}.pt``."""
    from torch.distributed.run import main

    def run(program, processes=2):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(program))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))
        # Not --standalone: on torch 2.0 that is port 29400 always, so two launches at once collide.
        launch = ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
        main([*launch, f"--nproc_per_node={processes}", str(path), str(tmp_path)])
        return [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]

    return run


def test_instances_sum_and_wait_for_each_other(torchrun):
    results = torchrun(
        """
        import sys
        import torch
        from ipu_proxynorm.simulator import popdist
        from ipu_proxynorm.simulator.machine.processes import sumOverProcesses

        popdist.init()
        rank = popdist.getInstanceIndex()
        half = torch.tensor([0.5, 1.0 + rank], dtype=torch.half)
        single = torch.full((2, 2), float(rank))
        sumOverProcesses([half, single], popdist.getNumInstances())
        alone = popdist.execute_on_instances({1}, lambda: popdist.synchronize() or rank)
        popdist.synchronize()
        torch.save({"half": half, "single": single, "alone": alone}, f"{sys.argv[1]}/{rank}.pt")
        popdist.finalizeBackend()
        """
    )
    for result in results:
        assert result["half"].tolist() == [1.0, 3.0]
        assert result["half"].dtype == torch.half
        assert result["single"].tolist() == [[1.0, 1.0]] * 2
    assert [result["alone"] for result in results] == [None, 1]


TRAINING = """
    import sys
    import torch
    import ipu_proxynorm.simulator as poptorch
    from ipu_proxynorm.simulator import popdist
    from ipu_proxynorm.simulator.popdist.poptorch import Options

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, x, y):
            out = self.linear(x)
            return out, torch.nn.functional.mse_loss(out, y)

    torch.manual_seed(1)
    x, y = torch.randn(32, 3), torch.randn(32, 2)
    options = Options(ipus_per_replica=1)
    options.randomSeed(7).deviceIterations(2)
    options.Training.gradientAccumulation(2)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.{reduction})
    loader = poptorch.DataLoader(options, torch.utils.data.TensorDataset(x, y), batch_size=2)
    model = Model()
    trainer = poptorch.trainingModel(
        model, options, poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    seen = []
    for images, labels in loader:
        trainer(images, labels)
        seen.append(images)
    rank = popdist.getInstanceIndex()
    weights = {{k: v.detach().clone() for k, v in model.state_dict().items()}}
    torch.save({{"weights": weights, "seen": torch.cat(seen)}}, f"{{sys.argv[1]}}/{{rank}}.pt")
"""


@pytest.mark.parametrize("reduction", ["Mean", "Sum"])
def test_two_instances_train_as_one_process_does_on_the_same_rows(torchrun, monkeypatch, reduction):
    monkeypatch.setenv("POPDIST_NUM_LOCAL_REPLICAS", "2")
    results = torchrun(TRAINING.format(reduction=reduction))
    assert torch.equal(
        results[0]["weights"]["linear.weight"], results[1]["weights"]["linear.weight"]
    )

    # 2 instances x 2 replicas x 2 accumulation steps of 2 rows, for each of 2 device iterations.
    torch.manual_seed(1)
    x, y = torch.randn(32, 3), torch.randn(32, 2)
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 2)
    assert torch.equal(torch.cat([result["seen"] for result in results]), x)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9)
    halves = [slice(0, 16), slice(16, 32)]
    for iteration in range(2):
        rows = [
            slice(half.start + 8 * iteration, half.start + 8 * iteration + 8) for half in halves
        ]
        loss = sum(torch.nn.functional.mse_loss(linear(x[r]), y[r]) for r in rows)
        # The mean over 8 micro-batches, or their sum.
        loss = loss / 2 if reduction == "Mean" else loss * 4
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, weight in linear.state_dict().items():
        torch.testing.assert_close(results[0]["weights"][f"linear.{name}"], weight)
