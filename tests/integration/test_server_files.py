"""What the embedded server leaves on the disk, which holds every prompt."""

from pathlib import Path

from redis.asyncio import Redis

from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mode & 0o777
        for path in (folder, *folder.rglob("*"))
        if path != folder
    }


async def test_nobody_else_can_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "dump.rdb.old").write_text("of a version that left it open")
    options = ServerOptions(folder, free_port())
    async with RedisServer(options, bundled_server()) as server:
        redis = Redis.from_url(server.url)
        await redis.set("a", "b")
        await redis.bgrewriteaof()
        await redis.aclose()
    found = modes(folder)
    assert "redis.log" in found
    assert any(name.endswith(".aof") for name in found)
    assert {
        name: mode
        for name, mode in found.items()
        if mode != (0o700 if (folder / name).is_dir() else 0o600)
    } == {}
    assert folder.stat().st_mode & 0o777 == 0o700
