from __future__ import annotations

import pytest

import ipu_proxynorm.simulator as poptorch
from ipu_proxynorm.simulator import poptorch_core

pytestmark = pytest.mark.simulator


@pytest.mark.parametrize("kind", poptorch_core.TestErrorType)
def test_every_kind_of_error_can_be_provoked(kind):
    with pytest.raises(poptorch.Error) as caught:
        poptorch_core._throwTestError(kind)
    error = caught.value
    assert str(error) == f"'{error.type}': {error.message}"
    assert error.location.startswith(__file__)


def test_errors_of_the_machine_have_classes_of_their_own():
    kinds = poptorch_core.TestErrorType
    with pytest.raises(poptorch.RecoverableError) as caught:
        poptorch_core._throwTestError(kinds.PoplarRecoverableFullReset)
    assert caught.value.recovery_action == "FULL_RESET"
    assert caught.value.type == "poplar_recoverable_runtime_error"
    with pytest.raises(poptorch.UnrecoverableError):
        poptorch_core._throwTestError(kinds.PoplarUnrecoverable)
    with pytest.raises(poptorch.Error, match="-lfoo not found"):
        poptorch_core._throwTestError(kinds.PoplarLinkError)
    assert not issubclass(poptorch.Error, RuntimeError)
    assert poptorch_core.Error is poptorch.Error
