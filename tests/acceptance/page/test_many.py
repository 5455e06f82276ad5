"""Many at once: from a list, a table or JSON lines to the API's batches, row by row, and back as files."""

import csv
import json
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.acceptance.page.conftest import FLAKY, Server, Visit


def rows(page: Page) -> list[tuple[str, str]]:
    """What was asked and what was answered, of each row shown."""
    found = page.get_by_label("Requests and answers").get_by_role("listitem")
    return [
        (row.locator(".asked").inner_text(), row.locator(".answered").inner_text())
        for row in found.all()
    ]


def test_a_list_of_prompts(real: Server, visit: Visit) -> None:
    visitor = visit(real)
    page = visitor.open("#/many")
    expect(page.locator("#why-not")).to_have_text("Nothing to run yet")
    page.get_by_role("button", name="Fill in an example").click()
    page.get_by_label("Longest answer, in tokens").fill("12")
    page.get_by_role("button", name="Run 3 requests").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("3 requests", timeout=60_000)
    expect(page.get_by_role("status")).to_contain_text("Completed", timeout=60_000)
    found = rows(page)
    assert found[0][0].endswith("What is the capital of France?")
    assert all(len(answer) > 3 for _, answer in found)
    visitor.look("many-completed")
    page.reload()
    expect(page.get_by_role("status")).to_contain_text("3 of 3 answered")
    expect(page.get_by_label("Requests and answers").get_by_role("listitem")).to_have_count(3)
    assert rows(page) == found, "a batch stays under its address"
    batch = real.http.get(f"/v1/batches/{page.url.rpartition('/')[2]}").json()
    assert batch["request_counts"] == {"completed": 3, "failed": 0, "total": 3}


def test_a_table_with_a_template(simulated: Server, visit: Visit, tmp_path: Path) -> None:
    table = tmp_path / "words.csv"
    lines = [f'"word {i}, quoted",{FLAKY if i == 3 else "fine"}' for i in range(40)]
    table.write_text("\n".join(["word,kind", *lines]) + "\n")
    visitor = visit(simulated)
    page = visitor.open("#/many")
    page.locator("input[type=file]").set_input_files(table)
    expect(page.get_by_role("radio", name="Table with a template")).to_be_checked()
    page.get_by_label("Template", exact=True).fill("Explain {word} ({sort})")
    expect(page.locator("#why-not")).to_have_text("There is no column sort; there is word, kind")
    page.get_by_label("Template", exact=True).fill("Explain {word} ({kind})")
    expect(page.locator("#why-not")).to_have_text("First: Explain word 0, quoted (fine)")
    visitor.look("many-table")
    page.get_by_role("button", name="Run 40 requests").click()
    expect(page.get_by_role("status")).to_contain_text(
        "40 of 40 answered, 1 failed", timeout=60_000
    )
    expect(page.get_by_role("status")).to_contain_text("Completed")
    assert rows(page)[3][1] == "the simulated engine stumbles"
    visitor.look("many-one-failed")

    with page.expect_download() as saved:
        page.get_by_role("button", name="Download CSV").click()
    with Path(saved.value.path()).open(newline="") as file:
        results = list(csv.DictReader(file))
    assert [row["custom_id"] for row in results] == [str(i + 1) for i in range(40)]
    assert results[0]["prompt"] == "Explain word 0, quoted (fine)"
    assert [bool(row["answer"]) for row in results].count(False) == 1
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download JSON lines").click()
    answers = [json.loads(line) for line in Path(saved.value.path()).read_text().splitlines()]
    assert {answer["custom_id"] for answer in answers} == {str(i + 1) for i in range(40)}


def test_json_lines_and_their_faults(simulated: Server, visit: Visit) -> None:
    page = visit(simulated).open("#/many")
    page.get_by_text("JSON lines").click()
    box = page.locator("#requests")
    for text, fault in (
        ('{"prompt": "a"}\nnonsense', "Line 2 is not JSON"),
        ('{"temperature": 1}', "Line 1 has neither url nor prompt nor messages"),
        (
            '{"custom_id": "x", "prompt": "a"}\n{"custom_id": "x", "prompt": "b"}',
            "Line 2 has the custom_id of another line",
        ),
    ):
        box.fill(text)
        expect(page.locator("#why-not")).to_have_text(fault)
    line = {
        "custom_id": "own",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 400},
    }
    box.fill(
        f'{json.dumps(line)}\n{{"custom_id": "wrapped", "prompt": "hello", "max_tokens": 400}}'
    )
    page.get_by_role("button", name="Run 2 requests").click()
    expect(page.get_by_role("status")).to_contain_text("2 of 2 answered", timeout=60_000)
    first, second = rows(page)
    assert first[0].startswith("own")
    assert second[0].startswith("wrapped")
    assert first[1]
    assert first[1] == second[1]


def test_a_batch_whose_lines_are_wrong_says_which(simulated: Server, visit: Visit) -> None:
    page = visit(simulated).open("#/many")
    page.get_by_text("JSON lines").click()
    page.locator("#requests").fill('{"prompt": "a"}\n{"prompt": "b", "max_tokens": -1}')
    page.get_by_role("button", name="Run 2 requests").click()
    expect(page.get_by_role("status")).to_contain_text(
        "It failed before anything ran", timeout=60_000
    )
    expect(page.get_by_text("Line 2:")).to_contain_text("max_tokens")


def test_a_batch_is_cancelled(simulated: Server, visit: Visit) -> None:
    page = visit(simulated).open("#/many")
    page.get_by_role("textbox", name="List of prompts").fill(
        "\n".join(f"long {i}" for i in range(60))
    )
    page.get_by_label("Longest answer, in tokens").fill("9000")
    page.get_by_role("button", name="Run 60 requests").click()
    expect(page.get_by_role("status")).to_contain_text("Running", timeout=60_000)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_contain_text("Cancelled", timeout=60_000)


def test_a_growing_output_is_read_once(simulated: Server, visit: Visit) -> None:
    """Each look asks for what is new: of 50,000 long answers, all of it each second would be too much."""
    page = visit(simulated).open("#/many")
    received: dict[str, list[int]] = {}
    page.on(
        "response",
        lambda answer: (
            received.setdefault(answer.url, []).append(int(answer.headers["content-length"]))
            if answer.url.endswith("/content")
            else None
        ),
    )
    page.get_by_role("textbox", name="List of prompts").fill(
        "\n".join(f"Say something long, {i} times" for i in range(64))
    )
    page.get_by_label("Longest answer, in tokens").fill("600")
    page.get_by_role("button", name="Run 64 requests").click()
    expect(page.get_by_role("status")).to_contain_text("Completed", timeout=60_000)
    expect(page.get_by_role("status")).to_contain_text("64 of 64 answered")
    batch = simulated.http.get(f"/v1/batches/{page.url.rpartition('/')[2]}").json()
    output = f"/v1/files/{batch['output_file_id']}"
    [looks] = [sizes for url, sizes in received.items() if output in url]
    assert len(looks) > 1
    assert sum(looks) == simulated.http.get(output).json()["bytes"]
    hidden = "(text) => text.scrollHeight - text.clientHeight"
    assert page.locator(".cut").first.evaluate(hidden) > 0
    page.get_by_role("button", name="Show all").first.click()
    whole = page.get_by_role("button", name="Show less").locator("xpath=preceding-sibling::p")
    assert whole.evaluate(hidden) == 0
