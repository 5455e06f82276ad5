"""Requests made by schemathesis from the OpenAPI description: no 5xx, no answer that is not described."""

import asyncio
import sys
from pathlib import Path

from millpond.access.api_keys import Scope
from tests.integration.conftest import RunningApi, make_key
from tests.integration.test_api_isolation import Echo
from tests.knobs import FUZZ_EXAMPLES

CONFIG = Path(__file__).parents[1] / "schemathesis.toml"
SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"


async def test_the_description_is_kept_whatever_is_sent(
    keyed_api: RunningApi, tmp_path: Path
) -> None:
    """All checks but those that the file turns off with a reason; with a worker, so that jobs end."""
    key = await make_key(keyed_api, scopes=list(Scope))
    echo = asyncio.create_task(Echo(keyed_api).run())
    process = await asyncio.create_subprocess_exec(
        *(SCHEMATHESIS, "--config-file", CONFIG, "run", f"{keyed_api.http.base_url}/openapi.json"),
        *(
            "--header",
            f"Authorization: {key['Authorization']}",
            "--max-examples",
            str(FUZZ_EXAMPLES),
        ),
        *("--continue-on-failure", "--request-timeout", "70", "--suppress-health-check", "all"),
        *("--generation-database", "none", "--no-color"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert not echo.done(), "the worker met a job that it could not read"
    echo.cancel()
    await asyncio.gather(echo, return_exceptions=True)
    report = output.decode(errors="replace")
    print(report[-2_000:])
    assert process.returncode == 0, report[-10_000:]
    assert (await keyed_api.http.get("/healthz")).status_code == 200
