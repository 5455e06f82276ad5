"""The API's images hold no torch, so importing it must not need any."""

import subprocess
import sys


def test_the_api_and_the_client_load_no_torch() -> None:
    program = (
        "import sys, millpond, api.app, api.http.server; "
        "print([m for m in ('torch', 'transformers', 'worker', 'background') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
