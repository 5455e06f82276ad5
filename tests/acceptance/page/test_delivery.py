"""What the browser gets: how much, under which policy, from where."""

from playwright.sync_api import expect

from tests.acceptance.page.conftest import Server, Visit
from tests.acceptance.page.test_ask import MATHS_AND_CODE, ask

MAX_ASK_BYTES = 400 * 1024


def test_ask_is_under_400_kb_with_maths_and_code(simulated: Server, visit: Visit) -> None:
    """What it prints with ``-s`` is in docs/performance.md. A time is never tested."""
    visitor = visit(simulated)

    def received_bytes() -> int:
        found = visitor.page.evaluate(
            "() => performance.getEntries().filter((e) => e.encodedBodySize)"
            ".map((e) => [e.name, e.encodedBodySize])"
        )
        return sum(size for url, size in found if "/v1/" not in url)

    page = visitor.open()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.wait_for_load_state("networkidle")
    first_bytes = received_bytes()
    paint_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.goto(f"{simulated.url}/#/ask/{simulated.say(MATHS_AND_CODE)}")
    expect(page.locator(".hljs-keyword").first).to_be_visible()
    expect(page.locator(".katex-display").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    all_bytes = received_bytes()
    print(f"\nfirst paint {paint_ms:.0f} ms, {first_bytes / 1024:.0f} KB", end="; ")
    print(f"with maths and code {all_bytes / 1024:.0f} KB")
    assert 0 < first_bytes < all_bytes < MAX_ASK_BYTES


def test_the_policy_lets_nothing_else_run(simulated: Server, visit: Visit) -> None:
    answer = simulated.http.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    visitor = visit(simulated)
    page = visitor.open()
    ask(page, "hello")
    expect(page.get_by_label("Receipt")).to_be_visible()
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return null } catch (e) { return e.name } }"
    )
    assert refused == "TypeError", "only the sanitizer may make HTML out of text"
    visitor.complaints.clear()  # the browser reports what it refused


def test_files_are_packed_and_kept(simulated: Server) -> None:
    index = simulated.http.get("/")
    assert index.headers["Cache-Control"] == "no-cache"
    [script] = [line for line in index.text.splitlines() if "<script" in line]
    path = script.split('src="')[1].split('"')[0]
    packed = simulated.http.get(f"/{path}", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "immutable" in packed.headers["Cache-Control"]
    plain = simulated.http.get(f"/{path}", headers={"Accept-Encoding": "identity, gzip;q=0"})
    assert "Content-Encoding" not in plain.headers
    assert plain.content == packed.content
    assert plain.headers["Content-Type"].startswith("text/javascript")
    older = simulated.http.get(f"/{path.replace(path.split('/')[1], '0123456789ab')}")
    assert older.headers["Cache-Control"] == "no-store"
    assert simulated.http.get("/page/x/../files.py").status_code == 404
    assert simulated.http.get("/page/x/%2e%2e/files.py").status_code == 404
