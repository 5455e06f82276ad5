"""Queue: the batch slot by slot, depth, workers, charts, dead letters with retry."""

import re

from playwright.sync_api import expect

from tests.acceptance.page.conftest import FLAKY, Server, Visit, make_key, until


def flood(server: Server, number: int) -> None:
    """Jobs of many lengths, so that slots are refilled at different times."""
    priorities = ("interactive", "normal", "batch")
    jobs = [
        {
            "prompt": "x" * (10 + i * 37 % 200),
            "max_tokens": 300 + i * 531 % 1700,
            "priority": priorities[i % 3],
        }
        for i in range(number)
    ]
    assert server.http.post("/v1/jobs/bulk", json={"jobs": jobs}).json()["accepted"] == number


def end_all(server: Server) -> None:
    for status in ("queued", "running"):
        for job in server.http.get(f"/v1/jobs?status={status}&limit=200").json()["jobs"]:
            server.http.delete(f"/v1/jobs/{job['id']}")
    until(lambda: server.http.get("/v1/queue").json()["unfinished"] == {}, "all jobs have ended")


def test_the_batch_slot_by_slot(simulated: Server, visit: Visit) -> None:
    visitor = visit(simulated)
    page = visitor.open("#/queue")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    flood(simulated, 200)
    expect(page.locator(".strip figcaption")).to_contain_text("16 of 16 slots taken")
    ended = page.locator(".strip figcaption").filter(
        has_text=re.compile(r"[1-9]\d* rows ended in 10 s")
    )
    expect(ended).to_be_visible()
    table = page.get_by_role("region", name="Tenants")
    expect(table.get_by_role("row", name="default")).to_be_visible()
    workers = page.get_by_role("region", name="Workers")
    expect(workers).to_contain_text(re.compile(r"1\d / 16"))
    expect(
        page.get_by_role("img", name=re.compile("^Throughput: tokens a second [1-9]"))
    ).to_be_visible(timeout=15_000)
    painted = page.locator(".strip canvas").evaluate(
        "(canvas) => new Set(new Uint32Array("
        "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
    )
    assert painted > 3, "slots, prompts, rows that write and rows that ended"
    visitor.look("queue")
    page.goto(f"{simulated.url}/#/ask")
    expect(page.get_by_role("heading", name="Ask a question")).to_be_visible()
    end_all(simulated)


def test_dead_letters_are_tried_again(simulated: Server, visit: Visit) -> None:
    id = simulated.submit(f"{FLAKY} over this", max_tokens=20)
    until(lambda: simulated.http.get(f"/v1/dead/{id}").status_code == 200, "a dead letter")
    visitor = visit(simulated)
    page = visitor.open("#/queue")
    letter = page.get_by_role("listitem").filter(has_text=id)
    expect(letter).to_contain_text("the simulated engine stumbles")
    letter.get_by_text("What was asked").click()
    expect(letter.locator("pre")).to_contain_text("stumble over this")
    visitor.look("queue-dead-letter")
    with page.expect_response("**/v1/dead?*"):  # the list without it
        letter.get_by_role("button", name="Retry").click()
    letter.get_by_role("link", name="See the new job").click()
    expect(page.get_by_label("Receipt")).to_be_visible()
    assert simulated.http.get(f"/v1/dead/{id}").status_code == 404


def test_it_needs_a_key_with_admin(keyed: Server, visit: Visit) -> None:
    visitor = visit(keyed)
    page = visitor.open("#/queue")
    for scopes, shown in (
        (("submit", "read"), page.get_by_text("needs a key with the scope admin")),
        (("submit", "read", "admin"), page.get_by_text("Live", exact=True)),
    ):
        key = make_key(keyed, *(word for scope in scopes for word in ("--scope", scope)))
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use it").click()
        expect(shown).to_be_visible()
        page.get_by_role("button", name="Forget key").click()
    visitor.complaints.clear()  # the browser reports 401 and 403 itself


def test_the_real_models_batch(real: Server, visit: Visit) -> None:
    page = visit(real).open("#/queue")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    jobs = [{"prompt": f"Tell a story about the number {i}.", "max_tokens": 60} for i in range(6)]
    answer = real.http.post("/v1/jobs/bulk", json={"jobs": jobs}).json()
    expect(page.locator(".strip figcaption")).to_have_text(re.compile(r"[1-6] of \d+ slots taken"))
    expect(page.get_by_role("region", name="Workers")).to_contain_text("native")
    for job in answer["jobs"]:
        state = real.http.get(f"/v1/jobs/{job['id']}?wait=30").json()
        assert state["status"] == "succeeded"


def test_rows_that_live_shorter_than_a_look_are_drawn(simulated: Server, visit: Visit) -> None:
    """The rows are published five times a second; a row of 20 tokens is over in a fifth of that."""
    page = visit(simulated).open("#/queue")
    caption = page.locator(".strip figcaption")
    expect(caption).to_contain_text(re.compile("idle, 16 slots"), timeout=40_000)
    for _ in range(12):
        id = simulated.submit("short", max_tokens=20, ignore_eos=True)
        assert simulated.http.get(f"/v1/jobs/{id}?wait=10").json()["status"] == "succeeded"
    expect(caption).to_contain_text("12 rows ended in 10 s", timeout=5_000)
