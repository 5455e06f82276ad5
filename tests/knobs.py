"""Sizes of the long tests, from the environment: `make chaos` and `make fuzz` ask for more.

They are taken out of it, so that the processes which the tests start see settings only.
"""

import os

_given = {
    name: os.environ.pop(f"MILLPOND_{name}", None)
    for name in (
        "CHAOS",
        "COOKBOOK",
        "TIMINGS",
        "HANGUPS",
        "FUZZ_EXAMPLES",
        "KERNELS",
        "SCHEMAS",
        "VLLM",
    )
}

FULL_CHAOS = _given["CHAOS"] == "full"
TIMINGS = int(_given["TIMINGS"] or 300)
HANGUPS = int(_given["HANGUPS"] or 400)
COOKBOOK = _given["COOKBOOK"]  # the model for docs/cookbook.md; by default none, but simulated
VLLM = _given["VLLM"]  # a command vllm, to be tried itself
SCHEMAS = int(_given["SCHEMAS"] or 30)  # from 500 on with the real model, too
FUZZ_EXAMPLES = int(_given["FUZZ_EXAMPLES"] or 5)
ALL_KERNELS = _given["KERNELS"] == "all"

# As they were given, for the processes of `tests.side_by_side`, which take them out again.
GIVEN = {f"MILLPOND_{name}": value for name, value in _given.items() if value is not None}
