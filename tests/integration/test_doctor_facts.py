"""What `millpond doctor` is told of this machine is what an engine would load."""

from typing import Any

import pytest

from millpond.settings import load_settings
from tests.integration.test_kernel_sets import PLAIN
from worker import doctor


@pytest.mark.skipif(not PLAIN, reason="no kernels for this processor")
@pytest.mark.parametrize(("chosen", "dtype"), [({}, "bfloat16"), ({"dtype": "float32"}, "float32")])
def test_the_kernels_compute_bfloat16_on_every_processor(
    chosen: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch would take float32 here, where the processor does not multiply bfloat16."""
    monkeypatch.setattr("worker.engines.model.loading.cpu_features", lambda: {PLAIN[0]})
    found = doctor.facts(load_settings(device="cpu", cpu_isa=PLAIN[0], **chosen))
    assert (found["kernels"], found["dtype"]) == (PLAIN[0], dtype)
