"""Every module-level name of PopTorch 3.4 is served, or refused in words, as the docs list it."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator import _impl, _poplar_executor, _utils
from ipu_proxynorm.simulator.alias.names import REFUSED, Refused

pytestmark = pytest.mark.simulator

PAGE = Path(__file__).parents[2] / "docs" / "simulator_names.md"


def listed():
    """Yield module, name and whether it is served, as the page has them."""
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        module, _, text = section.partition("\n")
        for kind, names in re.findall(r"^(served|refused): (.*?)(?:\n\n|\Z)", text, re.M | re.S):
            for name in re.findall(r"`(\w+)`", names):
                yield module, name, kind == "served"


NAMES = [entry for entry in listed() if entry[0] != "torch.ops.poptorch"]


def derived(base):
    class Derived(base):
        pass


def found(module, name):
    real = importlib.import_module("ipu_proxynorm.simulator" + module[len("poptorch") :])
    return getattr(real, name)


@pytest.mark.parametrize("module", sorted({module for module, _, _ in NAMES}))
def test_every_name_is_served_or_refused_in_words(module):
    for _, name, served in (entry for entry in NAMES if entry[0] == module):
        if name == "pkg_resources" and importlib.util.find_spec("pkg_resources") is None:
            continue
        value = found(module, name)
        assert isinstance(value, Refused) != served, name
        if not served:
            for use in (lambda v: v(), lambda v: v.attribute, derived):
                with pytest.raises(poptorch.Error, match=f"{module}.{name} is part of PopTorch's"):
                    use(value)


def test_the_page_counts_what_it_lists():
    total, served, refused = map(int, re.search(
        r"(\d+) names: (\d+) served, (\d+) refused", PAGE.read_text(encoding="utf-8")
    ).groups())  # fmt: skip
    assert (total, served) == (len(NAMES), sum(entry[2] for entry in NAMES))
    assert refused == total - served
    known = {name for names in REFUSED.values() for name in names} - {"pvti"}
    assert known == {name for _, name, is_served in NAMES if not is_served} - {"pvti"}
    operators = [name for module, name, _ in listed() if module == "torch.ops.poptorch"]
    assert all(hasattr(torch.ops.poptorch, name) for name in operators)


def test_a_name_that_poptorch_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"simulator._impl' has no attribute 'nothing'"):
        _impl.nothing  # noqa: B018


def test_substitution_managers_work_while_a_model_is_compiled():
    calls = []

    class Manager:
        def replace(self):
            calls.append("replaced")

        def restore(self):
            calls.append("restored")

    manager = _poplar_executor._OverwriteContextManager
    manager.registerSubsitutionManager(Manager)
    manager.registerSubsitutionManager(Manager)
    try:
        model = poptorch.inferenceModel(lambda x: (calls.append("traced"), x + 1)[1])
        model(torch.ones(2))
        model(torch.ones(2))
        assert calls == ["replaced", "traced", "restored"]
        with pytest.raises(poptorch.Error):
            poptorch.inferenceModel(lambda x: int(x.sum()))(torch.ones(2))
        assert calls[3:] == ["replaced", "restored"]
    finally:
        manager._subsitution_manager_types.remove(Manager)


def test_load_module_gives_the_module_that_runs(tmp_path):
    """``poptorch_geometric/__init__.py`` asks for it so: a second copy would have other classes."""
    program = tmp_path / "program.py"
    program.write_text(
        "import importlib.util, poptorch\n"
        "for _ in range(2):\n"
        "    loader = importlib.util.find_spec('poptorch._poplar_executor').loader\n"
        "    assert loader.load_module().PoplarExecutor is poptorch.PoplarExecutor\n"
        "import poptorch._poplar_executor, importlib\n"
        "loader = importlib.util.find_spec('poptorch._poplar_executor').loader\n"
        "assert loader.load_module().PoplarExecutor is poptorch.PoplarExecutor\n"
    )
    command = [sys.executable, "-m", "ipu_proxynorm.simulator", str(program)]
    subprocess.run(command, check=True)


def test_marks_of_a_trained_model_come_off_and_on_again():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    _impl.unwrapModelIfNecessary(model)
    _impl.rewrapModelIfNecessary(model)
    assert not _impl.isWrapped(model)

    class Training(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return poptorch.identity_loss(self.model(x), "sum")

    wrapped = Training()
    trainer = poptorch.trainingModel(wrapped, optimizer=poptorch.optim.SGD(model.parameters(), 0.1))
    trainer(torch.randn(4, 2))
    marked = [wrapped, *wrapped.parameters(), *wrapped.buffers()]
    classes = [type(one) for one in marked]
    assert all(map(_impl.isWrapped, marked))
    shift = model[1].bias.detach().clone()
    _impl.unwrapModelIfNecessary(wrapped)
    assert not any(map(_impl.isWrapped, marked))
    assert type(wrapped) is Training
    assert type(model[0].weight) is torch.nn.Parameter
    assert type(model[1].running_mean) is torch.Tensor
    assert torch.equal(model[1].bias, shift)
    _impl.rewrapModelIfNecessary(wrapped)
    assert [type(one) for one in marked] == classes
    trainer(torch.randn(4, 2))
    assert not torch.equal(wrapped.model[1].bias, shift)


def test_helpers_of_impl_and_utils():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = _impl.getBufferAndParameterAddresses(model)
    assert set(before[1]) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert before[0] == {}  # a batch norm's may move
    _impl.errorOnBufferOrParameterAddressChanges(before, before)
    model[0].weight = torch.nn.Parameter(torch.zeros(2, 2))
    after = _impl.getBufferAndParameterAddresses(model)
    with pytest.raises(poptorch.Error, match=r"Parameter 0.weight is reassigned"):
        _impl.errorOnBufferOrParameterAddressChanges(before, after)
    ids = []
    poptorch.inferenceModel(lambda x: (ids.append(_utils.getIpuTensorId(x)), x + 1)[1])(
        torch.ones(1)
    )
    assert isinstance(ids[0], int)
    with pytest.raises(poptorch.Error, match="got one of the host"):
        _utils.getIpuTensorId(torch.ones(1))
    cast = poptorch.inferenceModel(lambda x: _impl.internal_cast(x, torch.float16))
    assert cast(torch.ones(1)).dtype == torch.float16
    scopes = _impl.NameScopeHook(model)
    assert poptorch.inferenceModel(model.eval())(torch.ones(1, 2)).shape == (1, 2)
    scopes.remove()
    kept = _impl.WeakKeyPtrDict({model: 1})
    assert model in kept
    assert kept.get(model[0]) is None
    del model
    for optimizer in (poptorch.optim.SGD, poptorch.optim.Adam):
        assert optimizer.__bases__[1] in (torch.optim.SGD, torch.optim.Adam)
