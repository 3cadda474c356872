"""The simulated device: weights, buffers and random streams of every replica, and a host call."""

from __future__ import annotations

import contextlib
import time
from typing import Any, ContextManager, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import torch

from .. import enums
from ..machine.replica_groups import ReplicaGroups
from ..optimizer.device_optimizer import DeviceOptimizer
from ..options import Options
from ..trace import compute_device
from ..trace.arithmetic import dtypes
from ..trace.autocast import without_autocast
from ..trace.program import Program
from .anchors import GRADIENT, LOSS_SCALE, UPDATED, Anchors
from .batching import BatchLayout, OutputCollector, Position
from .latency import Transfer
from .lockstep import run_together
from .memory import keep_freed_memory
from .random_streams import RandomStreams
from .reduction import Accumulation, Gradients, Reduction
from .synthetic import inputsInstead, isEnabled
from .together import MicroBatches, planned


class Device:
    """One model, loaded.

    Args:
        program: what the model was compiled to.
        options: its options.
        groups: which parameters differ between replicas, by name.
        seed: the seed of the random streams.

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
        self._micro_batches: Optional[MicroBatches] = None
        #: Why micro-batches are computed one after the other, "" if they are not; None before.
        self.apart: Optional[str] = None
        self._scaling = torch.ones((), device=program.device)
        self._scaling_value = 1.0
        self._anchors = Anchors(options.anchored_tensors, program, self._layout)
        self._exchanges = program.exchanges
        if program.device == compute_device.HOST:
            keep_freed_memory()

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
            OutputCollector(self._layout, mode, period, output.constant)
            for output in self.program.device_outputs
        ]
        self.transfers = {}
        with torch.inference_mode(False), torch.no_grad(), self._precision(), without_autocast():
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
            self.plan()
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

    def plan(self) -> None:
        """Settle, once, whether micro-batches are computed together, and how many at once."""
        if self.apart is not None:
            return
        types = []
        if self.optimizer is not None:
            types = [self.optimizer.accumulatorType(n) for n in self.program.gradient_names]
        self._micro_batches, self.apart = planned(
            self.program, self._options, self._layout, self._groups, types
        )

    @property
    def at_once(self) -> int:
        """Micro-batches that are computed together at most, known after `plan`."""
        return 1 if self._micro_batches is None else self._micro_batches.count

    def _device_iteration(
        self, iteration: int, inputs: List[torch.Tensor], collectors: List[OutputCollector]
    ) -> Gradients:
        """Run every replica's micro-batches of one weight update and return the gradients."""
        reduction = Reduction(self._options, self.program.gradient_names, self._groups)
        if self._exchanges:
            self._together(iteration, inputs, collectors, reduction)
            return reduction.result()
        if self._micro_batches is not None:
            if self.optimizer is not None:
                self._at_once([iteration], inputs, collectors, reduction)
            elif iteration == 0:  # nothing changes between the device iterations
                every = range(self._layout.device_iterations)
                self._at_once(every, inputs, collectors, reduction)
            return reduction.result()
        for replica in range(self._layout.replicas):
            accumulate = Accumulation(self._options, self.program.gradient_names, self.optimizer)
            with self._random_stream(replica):
                state = self._state_of(replica)
                prepared = self.program.prepare(state)
                for step in range(self._layout.accumulation_steps):
                    position = Position(iteration, step, replica)
                    accumulate(self._micro_batch(position, prepared, state, inputs, collectors))
            reduction.add(replica, accumulate.result())
        return reduction.result()

    def _at_once(
        self,
        iterations: Iterable[int],
        inputs: List[torch.Tensor],
        collectors: List[OutputCollector],
        reduction: Reduction,
    ) -> None:
        """Run device iterations whose micro-batches are computed together.

        Their gradients go into the reduction.
        """
        assert self._micro_batches is not None
        steps, replicas = self._layout.accumulation_steps, self._layout.replicas
        positions = [
            Position(iteration, step, replica)
            for iteration in iterations
            for step in range(steps)
            for replica in range(replicas)
        ]
        states = [self._state_of(replica) for replica in range(replicas)]
        prepared: Dict[int, List[torch.Tensor]] = {}
        names = self.program.gradient_names
        accumulate = Accumulation(self._options, names, self.optimizer, sums=True)
        for group in self._micro_batches.groups_of(positions):
            started = time.perf_counter()
            micro_batches = self._micro_batches.inputs_of(group, inputs)
            loaded = time.perf_counter()
            *outputs, gradients = self._micro_batches.run(
                group, micro_batches, states, self._loss_scaling(), self.streams.use, prepared
            )
            times = (started, loaded, time.perf_counter())
            for position, values in zip(group, outputs):
                # What is kept must not keep the others' values.
                self._hand_on(position, [value.clone() for value in values], collectors, times)
            accumulate(gradients)
        reduction.add(0, accumulate.result())

    def _together(
        self,
        iteration: int,
        inputs: List[torch.Tensor],
        collectors: List[OutputCollector],
        reduction: Reduction,
    ) -> None:
        """Run a device iteration of replicas that exchange values: one step on all, then the next.

        Their gradients go into the reduction.
        """
        replicas = range(self._layout.replicas)
        names, distributed = self.program.gradient_names, self._options.Distributed
        accumulations = [Accumulation(self._options, names, self.optimizer) for _ in replicas]
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
            results: the results of the program.
            collectors: the collectors of the outputs.
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
