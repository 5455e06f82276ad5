"""``millpond keys`` and ``tenants``, and a stack that strangers could reach."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from tests.acceptance.conftest import Up, run_command

StartUp = Callable[..., Awaitable[Up]]


async def test_a_key_is_made_used_listed_and_revoked(up: StartUp, tmp_path: Path) -> None:
    arguments = ("--engine", "simulated", "--host", "0.0.0.0", "--port", "0")
    running = await up(*arguments)
    assert "millpond keys create" in running.printed
    url = running.about.api_url.replace("0.0.0.0", "127.0.0.1")
    here = ("--data", str(running.data))

    code, out, err = await run_command(
        *("keys", "create", "--tenant", "acme", "--scope", "read", "--scope", "submit"),
        *("--name", "nightly", "--tokens-per-minute", "5000", *here),
        cwd=tmp_path,
    )
    token = out.strip()
    assert (code, token[:3]) == (0, "mp_"), err
    assert "not shown again" in err

    async with httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/v1/models")).status_code == 401
        http.headers["Authorization"] = f"Bearer {token}"
        submitted = await http.post("/v1/jobs", json={"prompt": "a", "max_tokens": 3})
        assert submitted.status_code == 202
        id = submitted.json()["id"]
        assert (await http.get(f"/v1/jobs/{id}?wait=20")).json()["status"] == "succeeded"

        code, out, _ = await run_command("keys", "list", *here, cwd=tmp_path)
        assert code == 0
        for shown in ("nightly", "acme", "read submit", "5000 tokens/min"):
            assert shown in out
        secret = token.rpartition("_")[2]
        assert secret not in out
        for log in running.data.rglob("*.log"):
            assert secret not in log.read_text()

        code, _, err = await run_command("tenants", "weight", "acme", "2.5", *here, cwd=tmp_path)
        assert code == 0, err
        code, out, _ = await run_command("tenants", "list", *here, cwd=tmp_path)
        assert code == 0
        assert "acme" in out
        assert "2.5" in out
        assert (await run_command("tenants", "weight", "acme", "0", *here, cwd=tmp_path))[0] == 2

        key_id = token.split("_")[1]
        assert (await run_command("keys", "revoke", key_id, *here, cwd=tmp_path))[0] == 0
        assert (await run_command("keys", "revoke", "nothing", *here, cwd=tmp_path))[0] == 1


async def test_it_does_not_open_itself_to_all_by_mistake(tmp_path: Path) -> None:
    code, _, err = await run_command(
        *("up", "--host", "0.0.0.0", "--set", "auth=off", "--engine", "simulated"), cwd=tmp_path
    )
    assert code == 2
    assert "auth:" in err
    assert "off-and-i-know-it-is-open" in err
