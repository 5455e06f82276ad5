"""Where the API asks for keys, so does the page; the key stays in the tab."""

from playwright.sync_api import Page, expect

from tests.acceptance.page.conftest import Server, Visit, make_key
from tests.acceptance.page.test_ask import ask


def give(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use it").click()


def test_the_key_is_asked_for_and_stays_in_the_tab(keyed: Server, visit: Visit) -> None:
    visitor = visit(keyed)
    page = visitor.open()
    expect(page.get_by_text("This server asks for an API key")).to_be_visible()
    visitor.look("key")
    give(page, "mp_nonsense")
    expect(page.get_by_role("alert")).to_have_text("The server does not take this key.")

    key = make_key(keyed)
    give(page, key)
    ask(page, "hello")
    expect(page.get_by_label("Receipt")).to_be_visible()
    assert key not in page.url
    assert not any(key in url for url in visitor.requested)
    stored = page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
    assert key not in stored[0]
    assert key in stored[1]
    page.reload()
    expect(page.get_by_label("Receipt")).to_be_visible()

    other = visitor.elsewhere(page.url.removeprefix(f"{keyed.url}/"))
    expect(other.get_by_text("This server asks for an API key")).to_be_visible()
    expect(other.get_by_label("Receipt")).to_have_count(0)
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_text("This server asks for an API key")).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('millpond.key')") is None
    visitor.complaints.clear()  # the browser reports each 401 itself
