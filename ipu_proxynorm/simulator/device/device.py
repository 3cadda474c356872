"""The simulated device: weights, buffers and random streams of every replica, and a host call."""

from __future__ import annotations

import contextlib
import time
from typing import Any, ContextManager, Dict, List, Mapping, Optional, Sequence, Tuple

import torch

from .. import enums
from .._impl import createPoptorchError
from ..machine.processes import sumOverProcesses
from ..machine.replica_groups import ReplicaGroups
from ..optimizer.device_optimizer import DeviceOptimizer
from ..options import Options
from ..trace import compute_device, dtypes
from ..trace.program import Program
from .anchors import GRADIENT, LOSS_SCALE, UPDATED, Anchors
from .batching import BatchLayout, OutputCollector, Position
from .latency import Transfer
from .lockstep import run_together
from .random_streams import RandomStreams
from .synthetic import inputsInstead, isEnabled

Gradients = Dict[str, torch.Tensor]


class Device:
    """One model, loaded.

    Args:
        program: what the model was compiled to.
        options: its options.
        groups: which parameters differ between replicas, by name.
        seed: of the random streams.

    """

    def __init__(
        self, program: Program, options: Options, groups: Dict[str, ReplicaGroups], seed: int
    ) -> None:
        self.program = program
        self.parameters: Dict[str, torch.Tensor] = {}
        first_replica = options.Distributed.processId * options.replication_factor
        self._torch_device = program.device
        self.streams = RandomStreams(
            seed, options.replication_factor, first_replica, program.device
        )
        self.optimizer: Optional[DeviceOptimizer] = None
        self.transfers: Dict[Position, Transfer] = {}
        self.anchors: Dict[str, torch.Tensor] = {}
        self._options = options
        self._layout = BatchLayout.of(options)
        self._groups = groups
        self._buffers: List[Dict[str, torch.Tensor]] = []
        self._scaling = torch.ones((), device=program.device)
        self._scaling_value = 1.0
        self._anchors = Anchors(options.anchored_tensors, program, self._layout)
        self._exchanges = program.exchanges

    # ---- weights ----------------------------------------------------------------------------

    def load(
        self, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]
    ) -> None:
        """Take the host's values; every replica starts with the same buffers."""
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in parameters.items():
                if name in self.parameters:
                    self.parameters[name].copy_(tensor)  # the optimiser holds this very tensor
                else:
                    self.parameters[name] = self._copied(tensor)
            while len(self._buffers) < self._layout.replicas:
                self._buffers.append({})
            for replica in self._buffers:
                for name, tensor in buffers.items():
                    replica[name] = self._copied(tensor)

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        return dtypes.demoted(tensor.detach().clone()).to(self._torch_device)

    def store(
        self, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]
    ) -> None:
        """Write the device's values into the host's tensors; buffers are those of replica 0."""
        with torch.inference_mode():  # the only mode in which any kind of tensor may be written to
            for name, tensor in parameters.items():
                tensor.copy_(self.parameters[name])
            for name, tensor in buffers.items():
                tensor.copy_(self._buffers[0][name])

    def _state_of(self, replica: int) -> List[torch.Tensor]:
        """Return parameters and buffers as one replica has them, in the program's order."""
        state = []
        for name in self.program.parameter_names:
            tensor = self.parameters[name]
            groups = self._groups.get(name)
            state.append(tensor if groups is None else tensor[groups.of(replica)])
        return state + [self._buffers[replica][name] for name in self.program.buffer_names]

    # ---- running ----------------------------------------------------------------------------

    def run(self, host_inputs: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Run one host call and return the outputs, as the options say.

        Args:
            host_inputs: combined batches. One that the model changes in place is changed.

        """
        mode = enums.OutputMode(self._options.output_mode)
        period = self._options.output_return_period
        self._anchors = Anchors(self._options.anchored_tensors, self.program, self._layout)
        collectors = [
            OutputCollector(self._layout, mode, period)
            for on_device in self.program.output_on_device
            if on_device
        ]
        self.transfers = {}
        with torch.inference_mode(False), torch.no_grad(), self._precision():
            inputs = [
                tensor.detach().to(self._torch_device, dtype)
                for tensor, dtype in zip(host_inputs, self.program.input_dtypes)
            ]
            synthetic = isEnabled(self._options._Popart.options)
            if synthetic:
                inputs = inputsInstead(self._options._Popart.options, inputs)
            for replica in range(self._layout.replicas):
                first = Position(0, 0, replica)
                micro_batch = [self._layout.micro_batch(tensor, first) for tensor in inputs]
                self.program.check_arguments([*self._state_of(replica), *micro_batch])
            for iteration in range(self._layout.device_iterations):
                gradients = self._device_iteration(iteration, inputs, collectors)
                if self.optimizer is not None:
                    scale = torch.tensor(self.optimizer.loss_scaling)
                    with self._shared_stream():
                        self.optimizer.step(gradients)
                    if self.program.gradient_counts is not None:
                        processes = self._options.Distributed.numProcesses
                        self.optimizer.observe(self.program.gradient_counts.take(processes))
                    self._anchors.add_updated(iteration, UPDATED, self.parameters)
                    self._anchors.add_updated(iteration, LOSS_SCALE, {"": scale})
            for position in self.program.written_inputs:
                host, device = host_inputs[position].detach(), inputs[position]
                copied = host.dtype != device.dtype or host.device != device.device
                if copied and not synthetic:
                    host.copy_(device)
            if synthetic:  # nothing went to or from the host
                self.transfers = {}
            self.anchors = {name: value.cpu() for name, value in self._anchors.results().items()}
            return [collector.result().cpu() for collector in collectors]

    def _device_iteration(
        self, iteration: int, inputs: List[torch.Tensor], collectors: List[OutputCollector]
    ) -> Gradients:
        """Run every replica's micro-batches of one weight update and return the gradients."""
        reduction = _Reduction(self._options, self.program.gradient_names, self._groups)
        if self._exchanges:
            self._together(iteration, inputs, collectors, reduction)
            return reduction.result()
        for replica in range(self._layout.replicas):
            accumulate = _Accumulation(self._options, self.program.gradient_names, self.optimizer)
            with self._random_stream(replica):
                state = self._state_of(replica)
                prepared = self.program.prepare(state)
                for step in range(self._layout.accumulation_steps):
                    position = Position(iteration, step, replica)
                    accumulate(self._micro_batch(position, prepared, state, inputs, collectors))
            reduction.add(replica, accumulate.result())
        return reduction.result()

    def _together(
        self,
        iteration: int,
        inputs: List[torch.Tensor],
        collectors: List[OutputCollector],
        reduction: _Reduction,
    ) -> None:
        """Run a device iteration of replicas that exchange values: one step on all, then the next.

        Their gradients go into the reduction.
        """
        replicas = range(self._layout.replicas)
        names, distributed = self.program.gradient_names, self._options.Distributed
        accumulations = [_Accumulation(self._options, names, self.optimizer) for _ in replicas]
        states = [self._state_of(replica) for replica in replicas]
        for step in range(self._layout.accumulation_steps):
            positions = [Position(iteration, step, replica) for replica in replicas]
            started = time.perf_counter()
            runs: List[Any] = []  # the program is a generator
            for state, position in zip(states, positions):
                micro_batch = [self._layout.micro_batch(tensor, position) for tensor in inputs]
                runs.append(self.program.run(*state, *micro_batch, self._loss_scaling()))
            loaded = time.perf_counter()
            results = run_together(
                runs, self._random_stream, distributed.processId, distributed.numProcesses
            )
            times = (started, loaded, time.perf_counter())
            for position, accumulate, values in zip(positions, accumulations, results):
                accumulate(self._hand_on(position, values, collectors, times))
        for replica, accumulate in zip(replicas, accumulations):
            reduction.add(replica, accumulate.result())

    def _micro_batch(
        self,
        position: Position,
        prepared: List[torch.Tensor],
        state: List[torch.Tensor],
        inputs: List[torch.Tensor],
        collectors: List[OutputCollector],
    ) -> List[torch.Tensor]:
        """Run one micro-batch, hand its outputs on and return its gradients."""
        started = time.perf_counter()
        micro_batch = [self._layout.micro_batch(tensor, position) for tensor in inputs]
        loaded = time.perf_counter()
        arguments = [*state, *micro_batch, self._loss_scaling()]
        results = self.program.executable.run(prepared, arguments)
        times = (started, loaded, time.perf_counter())
        return self._hand_on(position, results, collectors, times)

    def _hand_on(
        self,
        position: Position,
        results: List[torch.Tensor],
        collectors: List[OutputCollector],
        times: Tuple[float, float, float],
    ) -> List[torch.Tensor]:
        """Hand a micro-batch's outputs on and return its gradients.

        Args:
            position: which micro-batch this was.
            results: of the program.
            collectors: of the outputs.
            times: when it was begun, loaded and computed.

        """
        for collector, value in zip(collectors, results):
            if collector.wants(position):
                collector.add(position, value)
        returned = any(collector.returns(position) for collector in collectors)
        self.transfers[position] = Transfer(*times, time.perf_counter(), returned)
        gradients = results[len(collectors) :]
        if self._options.anchored_tensors:
            named = dict(zip(self.program.gradient_names, gradients))
            self._anchors.add(position, GRADIENT, named)
        return gradients

    def _loss_scaling(self) -> torch.Tensor:
        value = 1.0 if self.optimizer is None else self.optimizer.loss_scaling
        if self._scaling_value != value:
            self._scaling = torch.tensor(value, device=self._torch_device)
            self._scaling_value = value
        return self._scaling

    def _precision(self) -> ContextManager[Any]:
        on_host = self._torch_device == compute_device.HOST
        return contextlib.nullcontext() if on_host else compute_device.float32_products()

    def _random_stream(self, replica: int) -> ContextManager[Any]:
        return self.streams.use(replica) if self.program.random else contextlib.nullcontext()

    def _shared_stream(self) -> ContextManager[Any]:
        stochastic = self._options._Popart.options.get("enableStochasticRounding", False)
        return self.streams.use_shared() if stochastic else contextlib.nullcontext()


class _Accumulation:
    """Adds up the gradients of one replica's micro-batches."""

    def __init__(
        self, options: Options, names: List[str], optimizer: Optional[DeviceOptimizer]
    ) -> None:
        training = options.Training
        mean = training.accumulation_and_replication_reduction_type == enums.ReductionType.Mean
        strategy = training.meanAccumulationAndReplicationReductionStrategy
        self._running = mean and strategy == enums.MeanReductionStrategy.Running
        self._factor = 1.0 / training.gradient_accumulation if mean and not self._running else 1.0
        self._names = names
        self._optimizer = optimizer
        self._total: List[torch.Tensor] = []
        self._count = 0

    def __call__(self, gradients: List[torch.Tensor]) -> None:
        if not gradients:
            return
        self._count += 1
        if not self._total:
            self._total = [self._in_accumulator(*item) for item in zip(self._names, gradients)]
        elif self._running:  # the mean of what has come so far
            torch._foreach_mul_(self._total, (self._count - 1) / self._count)
            torch._foreach_add_(self._total, gradients, alpha=1 / self._count)
        else:
            torch._foreach_add_(self._total, gradients)

    def _in_accumulator(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        if self._optimizer is None:
            return gradient
        return gradient.to(self._optimizer.accumulatorType(name))

    def result(self) -> List[torch.Tensor]:
        if self._total and self._factor != 1.0:
            torch._foreach_mul_(self._total, self._factor)
        return self._total


class _Reduction:
    """Adds or averages gradients over the replicas, of all processes, that share a parameter."""

    def __init__(
        self, options: Options, names: List[str], groups: Dict[str, ReplicaGroups]
    ) -> None:
        training = options.Training
        self._mean = (
            training.accumulation_and_replication_reduction_type == enums.ReductionType.Mean
        )
        self._processes = options.Distributed.numProcesses
        self._replicas = options.replication_factor * self._processes
        self._names = names
        self._groups = groups
        if groups and self._processes > 1:
            raise createPoptorchError(
                f"Parameters of their own for each replica ({', '.join(groups)}) are simulated "
                "within one process only: give all replicas to it with replicationFactor."
            )
        self._totals: Dict[Tuple[str, int], torch.Tensor] = {}

    def add(self, replica: int, gradients: List[torch.Tensor]) -> None:
        """Take one replica's gradients; they may be changed in place."""
        for name, gradient in zip(self._names, gradients):
            groups = self._groups.get(name)
            key = (name, 0 if groups is None else groups.of(replica))
            if key in self._totals:
                self._totals[key].add_(gradient)
            else:
                self._totals[key] = gradient

    def result(self) -> Gradients:
        """Return the gradients by name; of a per-replica parameter with the groups in front."""
        sumOverProcesses(list(self._totals.values()), self._processes)
        reduced: Gradients = {}
        for name in self._names:
            groups = self._groups.get(name)
            if groups is None:
                total = self._totals.get((name, 0))
                if total is None:
                    continue
            else:
                total = torch.stack([self._totals[name, g] for g in range(groups.number)])
            # The mean is over all replicas, also where only some of them share the parameter.
            averaged = self._mean and self._replicas > 1
            reduced[name] = total.div_(self._replicas) if averaged else total
        return reduced
