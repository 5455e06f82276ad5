"""What a test starts in place of the command ``vllm``: the same arguments, a deterministic upstream.

It starts a process of its own beside itself, as vLLM starts its engine, which must not outlive it.
"""

import argparse
import os
import subprocess
import time
from pathlib import Path

from tests.upstream import Upstream


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--break-down", action="store_true")
    known, others = parser.parse_known_args()
    print("started with", others, flush=True)
    if known.break_down:
        raise SystemExit("no such quantization")
    subprocess.Popen(["sleep", "600"])
    with Upstream(
        api_key=os.environ["VLLM_API_KEY"],
        token_delay_s=0.01,
        model=known.served_model_name,
        port=known.port,
    ):
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main()
