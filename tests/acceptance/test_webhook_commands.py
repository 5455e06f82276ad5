"""``millpond webhooks``: what is registered, shown and refused."""

from pathlib import Path

from millpond.local.server import RedisServer
from tests.acceptance.conftest import run_command


async def test_endpoints_are_added_listed_and_removed(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def webhooks(*arguments: str) -> tuple[int, str, str]:
        there = ("--redis-url", redis_server.url)
        return await run_command("webhooks", *arguments, *there, cwd=tmp_path)

    code, out, err = await webhooks(
        *("add", "https://8.8.8.8/hook", "--tenant", "acme", "--event", "job.failed")
    )
    assert (code, out[:6]) == (0, "whsec_"), err
    secret = out.strip()
    assert "not shown again" in err

    code, out, _ = await webhooks("list")
    assert code == 0
    for shown in ("acme", "https://8.8.8.8/hook", "job.failed", "nothing sent yet"):
        assert shown in out
    assert secret not in out

    id = out.split()[out.split().index("acme") - 1]
    assert (await webhooks("remove", id))[0] == 0

    code, _, err = await webhooks("add", "http://169.254.169.254/")
    assert code == 2
    assert "webhook_url: its host is not a public address" in " ".join(err.split())
    assert "Traceback" not in err
