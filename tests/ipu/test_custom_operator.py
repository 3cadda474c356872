"""The custom operator: its C++ interface against the Python side, its function in programs."""

import copy
import inspect
import re

import pytest
import torch

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import Classification
from ipu_proxynorm.ipu import custom_operator as own
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import ProxyNormAct, create_norm_act, plain_operators, share_moments
from ipu_proxynorm.prediction.footprint import footprint
from ipu_proxynorm.run.run import create_program, run_data

TEXT = own.SOURCE.read_text(encoding="utf-8")
CODE = re.sub(r"//[^\n]*", "", TEXT)


def listed(pattern):
    """Return the names within the one place that the pattern finds."""
    (found,) = re.findall(pattern, CODE, re.DOTALL)
    return re.findall(r'\{"(\w+)",', found)


def test_name_inputs_and_attributes_are_those_of_the_python_side():
    identifier = re.search(r'unitId = \{"([\w.]+)", "(\w+)", (\d+), \{(\d+), (\d+)\}, 1\}', CODE)
    domain, name, version, least, most = identifier.groups()
    assert (domain, name, int(version)) == (own.DOMAIN, own.NAME, own.VERSION)
    assert int(least) == int(most) == len(own.INPUTS)
    assert tuple(listed(r"OpDefinition::Inputs\((.*?)\),")) == own.INPUTS
    assert tuple(listed(r"OpDefinition::Attributes\((.*?)\)\}\);")) == own.ATTRIBUTES
    assert tuple(re.findall(r'appendAttribute\("(\w+)"', CODE)) == own.ATTRIBUTES
    assert tuple(re.findall(r'getAttribute<[\w:]+>\("(\w+)"\)', CODE)) == own.ATTRIBUTES
    assert re.search(r'"activation", \{"([\w|]+)"\}', CODE)[1].split("|") == list(own.ACTIVATIONS)
    arguments = list(inspect.signature(own.proxy_norm_unit).parameters)
    assert tuple(arguments) == own.INPUTS + own.ATTRIBUTES
    enum = re.search(r"enum Input \{([^}]*)\}", CODE)[1].replace(" ", "").split(",")
    assert [entry.lower() for entry in enum] == [*own.INPUTS, "inputs"]


def test_each_input_has_a_gradient_and_brackets_match():
    mapped = re.search(r"gradOutToNonGradIn.*?info = \{(.*?)\};", CODE, re.DOTALL)[1]
    assert re.findall(r"\{(\w+), \1\}", mapped) == [name.upper() for name in own.INPUTS]
    grown = CODE.split("class ProxyNormUnitGradOpx")[1]
    assert re.findall(r"setOutTensor\((\w+),", grown) == [name.upper() for name in own.INPUTS]
    for opening, closing in ("()", "{}", "[]"):
        assert CODE.count(opening) == CODE.count(closing)
    assert "NEVER COMPILED" in TEXT
    assert "proxy_norm_op.cpp" in (own.SOURCE.parent / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("act", own.ACTIVATIONS)
def test_the_unit_is_the_layer_s(act):
    layer = create_norm_act("gn2+pn", 8, act).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    mean, variance = layer.moments()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    out = own.proxy_norm_unit(
        x, layer.weight, layer.bias, -mean, torch.rsqrt(variance + 0.03), 2, layer.eps, act
    )
    torch.testing.assert_close(out, layer(x), rtol=1e-9, atol=1e-9)


@pytest.mark.simulator
@pytest.mark.parametrize(("name", "act"), [("resnetv2_8", "relu"), ("efficientnet_b0", "silu")])
def test_programs_train_as_with_plain_operators(name, act):
    model = create_model(name, "ln+pn", 5, act_layer=act, shallow=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "rate"):
            module.rate = 0.0
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    losses, states = [], []
    for opted in (False, True):
        trained = copy.deepcopy(model)
        if opted:
            count = own.use_custom_operator(trained, "proxy_norm_op.so")
            assert count == sum(hasattr(m, "proxy_weight") for m in trained.modules())
        share_moments(trained)
        program = Classification(trained, (0.5,) * 3, (0.25,) * 3).train()
        optimizer = poptorch.optim.SGD(trained.parameters(), lr=0.01)
        executor = poptorch.trainingModel(program, poptorch.Options(), optimizer)
        losses.append(executor(images, torch.tensor([0, 1]))[0])
        executor.copyWeightsToHost()
        executor.destroy()
        states.append(trained.state_dict())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states[1], states[0], rtol=1e-3, atol=1e-5)


def test_a_key_of_the_configuration_chooses_it():
    config = load("configs/quickstart.yaml", ["ipu.proxy_norm_operator=proxy_norm_op.so"])
    data = run_data(config.data, config.model.name)
    model, *_ = create_program(config, data, 16)
    units = [m for m in model.modules() if isinstance(m, ProxyNormAct)]
    assert units
    assert all(unit.operator is not None for unit in units)
    predicted = footprint(config)  # of plain operators
    assert predicted.config.ipu.proxy_norm_operator == "proxy_norm_op.so"
    assert all(m.operator is None for m in predicted.model.modules() if isinstance(m, ProxyNormAct))
    config.model.norm = "gn4"
    with pytest.raises(UserError, match=r"ipu.proxy_norm_operator=proxy_norm_op.so: .*no Proxy"):
        create_program(config, data, 16)


def test_it_is_never_the_default_and_needs_a_unit():
    layer = create_norm_act("ln+pn", 4)
    assert layer.operator is None
    with plain_operators():
        assert isinstance(layer(torch.randn(2, 4, 3, 3)), torch.Tensor)
    with pytest.raises(UserError, match="no Proxy Norm unit with one of relu, silu"):
        own.use_custom_operator(create_model("resnetv2_8", "gn4"), "x.so")
