"""What stands between a run and a compiled program on IPUs, found without either."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ipu_proxynorm.backend import inspect, poptorch
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.ipu import inference_options, training_options
from ipu_proxynorm.memory import OUT_OF_MEMORY, UNCERTAIN, Prediction
from ipu_proxynorm.memory.table import sentence
from ipu_proxynorm.prediction.advice import predict_run
from ipu_proxynorm.prediction.footprint import footprint, micro_batch
from ipu_proxynorm.run.run import create_program, run_data

#: What no trace can tell, whatever the program.
UNPROVEN = (
    "nothing here has run on an IPU: the rules are from the sources of PopTorch and PopART 3.4.0",
    "conditions that a trace cannot see are not checked (docs/simulator.md lists them): PopART's "
    "own shape inference, Poplar's planning of convolutions, running out of memory while compiling",
)


@dataclasses.dataclass(frozen=True)
class Flight:
    """What was found of one program.

    Attributes:
        name: "training" or "validation".
        refused: what PopTorch refuses, a sentence each, with file and line where there is one.
        kinds: how often each operator occurs, by name.
        operators: a line for each operator: name, shapes and types, place.
        ipus: how many it takes, all replicas together; 0 where that could not be told.
        complete: whether the program could be traced to its end.
    """

    name: str
    refused: List[str]
    kinds: Dict[str, int] = dataclasses.field(default_factory=dict)
    operators: List[str] = dataclasses.field(default_factory=list)
    ipus: int = 0
    complete: bool = True


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What was found of a run: its programs, and its memory by prediction."""

    flights: List[Flight]
    memory: Optional[Prediction] = None

    @property
    def refused(self) -> List[str]:
        """What will not compile, a sentence each."""
        found = [
            f"{flight.name}: {refusal}" for flight in self.flights for refusal in flight.refused
        ]
        if self.memory is not None and self.memory.verdict.name == OUT_OF_MEMORY:
            found.append(f"memory: {sentence(self.memory)}")
        return found

    @property
    def unproven(self) -> List[str]:
        """What is not known either way, a sentence each."""
        found = [
            f"{flight.name}: the trace stopped at what is refused; there may be more after it"
            for flight in self.flights
            if not flight.complete
        ]
        if self.memory is not None and self.memory.verdict.name == UNCERTAIN:
            found.append(f"memory: {sentence(self.memory)}")
        return [*found, *UNPROVEN]


def preflight(name: str, wrap: Callable[[], Any], *inputs: Any) -> Flight:
    """Hold a program, of whatever model, against what PopTorch 3.4 accepts.

    Args:
        name: the name of the program, for messages.
        wrap: returns the model wrapped by ``poptorch.trainingModel`` or ``inferenceModel``; may
            raise what PopTorch says of its options.
        inputs: the inputs of one host call.

    Raises:
        UserError: the backend is not the simulator.
    """
    try:
        executor = wrap()
    except (poptorch.Error, ValueError, AssertionError) as error:
        return Flight(name, [str(error)], complete=False)
    found = inspect(executor, *inputs)
    operators = [
        f"{operator.name}({', '.join(operator.reads)}) -> {', '.join(operator.makes)}  "
        f"{operator.line}"
        for operator in found.operators
    ]
    refused = [str(error) for error in found.refusals]
    return Flight(name, refused, found.kinds, operators, found.ipus, found.complete)


def preflight_run(config: RunConfig, memory: bool = True, shallow: bool = False) -> Preflight:
    """Hold a run's training and validation programs against what PopTorch 3.4 accepts.

    Neither data nor IPUs are needed; a micro-batch of each program is computed on the CPU.

    Args:
        config: the configuration of the run.
        memory: predict the memory of the training program too.
        shallow: with a network of few blocks, whose splits the configuration then names.

    Raises:
        UserError: what the configuration describes cannot be built, or the backend is not the
            simulator.
    """
    flights = [preflight(name, wrap, *inputs) for name, wrap, inputs in programs(config, shallow)]
    return Preflight(flights, predicted(config) if memory else None)


def programs(
    config: RunConfig, shallow: bool = False
) -> Iterator[Tuple[str, Callable[[], Any], List[Tensor]]]:
    """Yield a run's training and its validation program, each to be used before the next.

    Args:
        config: the configuration of the run.
        shallow: see `preflight_run`.

    Yields:
        name; a function that wraps the model, as `preflight` takes it; inputs of one host call.

    Raises:
        UserError: what the configuration describes cannot be built.
    """
    ipu = config.ipu
    data = run_data(config.data, config.model.name)
    batch = ipu.images_per_update
    model, _, program, optimizer = create_program(config, data, batch, shallow)
    inputs = [
        torch.zeros(t.shape, dtype=t.dtype)  # torch 2.0's zeros_like of meta leaves memory as it is
        for t in micro_batch(ipu.micro_batch_size, config.training, data)
    ]

    def trained() -> Any:
        return poptorch.trainingModel(program, training_options(config), optimizer)

    def validated() -> Any:
        return poptorch.inferenceModel(program, inference_options(config))

    steps = batch // ipu.micro_batch_size * ipu.device_iterations
    yield "training", trained, repeated(inputs, steps)
    model.eval()
    executor_steps = inference_options(config)
    steps = int(executor_steps.device_iterations) * int(executor_steps.replication_factor)
    yield "validation", validated, repeated(inputs[:2], steps)


def repeated(inputs: Sequence[Tensor], times: int) -> List[Tensor]:
    """Return the inputs of a host call, of one micro-batch's."""
    return [tensor.repeat(times, *[1] * (tensor.dim() - 1)) for tensor in inputs]


def predicted(config: RunConfig) -> Prediction:
    """Return the predicted memory of a run.

    Raises:
        UserError: what the configuration describes cannot be built or traced.
    """
    one = footprint(config)
    return predict_run(one.config, one.capture, one.layout, one.points, advice=None)
