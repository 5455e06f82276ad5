"""Ask: from the question to the receipt, with the real model and with texts that are hard to show."""

import re

from playwright.sync_api import Page, expect

from tests.acceptance.page.conftest import SLOTS, Server, Visit, until


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def test_a_question_is_answered_and_stays_under_its_address(real: Server, visit: Visit) -> None:
    visitor = visit(real)
    page = visitor.open()
    expect(page.locator("#why-not")).to_have_text("Write a question first")
    button = page.get_by_role("button", name="Ask", exact=True)
    expect(button).to_have_attribute("aria-disabled", "true")
    visitor.look("ask-empty")

    page.get_by_role("button", name="Why is the sea salty?").click()
    expect(button).to_have_attribute("aria-disabled", "false")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Why is the sea salty?")
    receipt = page.get_by_label("Receipt")
    expect(receipt).to_contain_text("tok/s", timeout=60_000)
    expect(receipt).to_contain_text("smollm2-135m")
    [seed] = re.findall(r"Seed(\d+)", receipt.inner_text().replace("\n", ""))
    text = page.locator(".prose").inner_text()
    assert len(text) > 20
    visitor.look("ask-answered")

    id = page.url.partition("#/ask/")[2]
    stored = real.http.get(f"/v1/jobs/{id}").json()["result"]
    assert int(seed) == stored["receipt"]["seed"], "JavaScript's numbers would round it"
    page.reload()
    expect(page.locator(".prose")).to_have_text(text, use_inner_text=True)
    other = visitor.elsewhere(f"#/ask/{id}")
    expect(other.get_by_role("heading", level=1)).to_have_text("Why is the sea salty?")
    expect(other.locator(".prose")).to_have_text(text, use_inner_text=True)


def test_an_answer_is_cancelled_and_what_was_written_stays(real: Server, visit: Visit) -> None:
    page = visit(real).open()
    page.get_by_text("Sampling").click()
    page.get_by_label("Longest answer").fill("9000")
    page.get_by_label("Your question").fill("Tell me everything about rivers.")
    expect(page.locator("#why-not")).to_have_text("Longest answer has to be between 1 and 4096")
    page.get_by_label("Longest answer").fill("4000")
    page.get_by_label("Temperature").fill("1")
    page.get_by_role("button", name="Ask", exact=True).click()
    until(lambda: page.locator(".prose").count() and page.locator(".prose").inner_text(), "text")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled. This is what was written until then.")).to_be_visible()
    assert page.locator(".prose").inner_text()


def test_of_texts_that_vote_the_winner_is_shown(simulated: Server, visit: Visit) -> None:
    id = simulated.say("It is **4**.", n=3, vote="exact")
    visitor = visit(simulated)
    page = visitor.open(f"#/ask/{id}")
    expect(page.get_by_label("Receipt")).to_contain_text("It is **4**., by 3 of 3 texts")
    expect(page.locator(".prose")).to_have_text("It is 4.")
    visitor.look("ask-voted")


def test_the_role_is_the_models_unless_it_is_changed(real: Server, visit: Visit) -> None:
    page = visit(real).open()
    page.get_by_text("Role", exact=True).click()
    page.get_by_label("The role that the model is given").fill("You are a pirate.")
    expect(page.get_by_text("Role (changed)")).to_be_visible()
    page.get_by_text("Sampling").click()
    page.get_by_label("Longest answer").fill("12")
    with page.expect_request("**/v1/jobs") as sent:
        ask(page, "Who are you?")
    assert sent.value.post_data_json["system"] == "You are a pirate."
    assert sent.value.post_data_json["priority"] == "interactive"
    expect(page.get_by_label("Receipt")).to_be_visible(timeout=60_000)


def test_a_gentle_hint_for_other_languages_than_english(real: Server, visit: Visit) -> None:
    page = visit(real).open()
    box = page.get_by_label("Your question")
    box.fill("Warum ist das Meer salzig und wie viel Salz ist darin?")
    expect(page.get_by_text("This looks like German.")).to_be_visible()
    box.fill("为什么大海是咸的？")
    expect(page.get_by_text("This looks like another script.")).to_be_visible()
    box.fill("Why is the sea salty, and how much salt is in it?")
    expect(page.get_by_text("This looks like")).to_have_count(0)


MATHS_AND_CODE = r"""<think>
First I recall the formula, then I add $1 + 2$.
</think>

## The sum

The sum of the first $n$ numbers is \(\frac{n(n+1)}{2}\), which costs $5 and not $10:

$$\sum_{i=1}^{n} i = \frac{n(n+1)}{2}$$

\[
\begin{aligned} a &= b \\ &= c \end{aligned}
\]

```python
def total(n: int) -> int:
    return n * (n + 1) // 2  # Gauss
```

| n | sum |
|---|-----|
| 10 | 55 |
| 100 | 5050 |

1. Read it, with `code` in it
2. **Check** it

- [x] done

> A quotation, and ![a picture](https://example.org/x.png)
"""


def test_maths_code_and_reasoning(simulated: Server, visit: Visit) -> None:
    visitor = visit(simulated)
    page = visitor.open(f"#/ask/{simulated.say(MATHS_AND_CODE)}")
    expect(page.get_by_label("Receipt")).to_be_visible()
    answer = page.get_by_label("Answer", exact=True)
    prose = page.locator(".answer > .prose")
    expect(prose.locator(".katex-display")).to_have_count(2)
    expect(prose.locator(".katex-mathml").first).to_have_count(1)
    expect(prose).to_contain_text("which costs $5 and not $10")
    expect(prose.locator(".hljs-keyword").first).to_have_text("def")
    expect(prose.locator("td").nth(3)).to_have_text("5050")
    expect(prose.locator("img")).to_have_count(0)
    reasoning = answer.locator("details.reasoning")
    expect(reasoning).not_to_have_attribute("open", "")
    expect(prose).not_to_contain_text("First I recall")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    prose.get_by_role("button", name="Copy").click()
    expect(prose.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("def total(n: int)")
    reasoning.locator("summary").click()
    expect(reasoning).to_contain_text("First I recall")
    visitor.look("ask-maths-and-code")


def test_why_it_waits(simulated: Server, visit: Visit) -> None:
    long = [simulated.submit("busy", max_tokens=30_000, ignore_eos=True) for _ in range(SLOTS)]
    until(
        lambda: all(
            simulated.http.get(f"/v1/jobs/{id}").json()["status"] == "running" for id in long
        ),
        "all slots are taken",
    )
    visitor = visit(simulated)
    page = visitor.open()
    ask(page, "Who is next?")
    expect(page.get_by_role("status")).to_contain_text("Waiting: all slots are busy")
    visitor.look("ask-waiting")
    for id in long:
        simulated.http.delete(f"/v1/jobs/{id}")
    expect(page.get_by_label("Receipt")).to_be_visible()


def test_an_answer_that_is_gone(simulated: Server, visit: Visit) -> None:
    visitor = visit(simulated)
    page = visitor.open("#/ask/nosuchjob")
    expect(page.get_by_role("heading", level=1)).to_have_text("This answer is not here")
    visitor.complaints.clear()  # the browser reports the 404 itself
