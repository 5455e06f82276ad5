"""What a model writes is shown, never run: by the renderer, by the sanitizer, and by the page's policy."""

import pytest
from playwright.sync_api import expect

from tests.acceptance.page.conftest import Server, Visit

RUN = "window.broken=1"
# The usual lists: OWASP's filter evasion, DOMPurify's and markdown-it's own, KaTeX's commands with rights.
PAYLOADS = [
    f"<script>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f'<img src="javascript:{RUN}">',
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f'<svg><a xlink:href="javascript:{RUN}"><text y=20>click</text></a></svg>',
    f"<math><mtext></form><form><mglyph><style></math><img src onerror={RUN}>",
    f"<iframe src=javascript:{RUN}></iframe>",
    f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
    f"<object data=javascript:{RUN}></object>",
    f"<embed src=javascript:{RUN}>",
    f"<body onload={RUN}>",
    f"<details open ontoggle={RUN}>x</details>",
    f"<video><source onerror={RUN}></video>",
    f"<input autofocus onfocus={RUN}>",
    f'<form action="javascript:{RUN}"><button>x</button></form>',
    f'<meta http-equiv=refresh content="0;url=javascript:{RUN}">',
    f'<base href="javascript:{RUN}//">',
    '<link rel=stylesheet href="https://example.org/x.css">',
    "<style>body{display:none}</style>",
    f'<div style="position:fixed;inset:0;background:url(javascript:{RUN})">x</div>',
    f'<a href="javascript:{RUN}" target=_self>x</a>',
    f'<noscript><p title="</noscript><img src=x onerror={RUN}>">',
    f"<!--<img src=--><img src=x onerror={RUN}>//>",
    f"<![CDATA[<img src=x onerror={RUN}>]]>",
    f"<x onclick={RUN} tabindex=1 id=x>x</x>",
    f"<template><script>{RUN}</script></template>",
    f"[link](javascript:{RUN})",
    f"[link](JaVaScRiPt&colon;{RUN})",
    f"[link](\x01javascript:{RUN})",
    f"[link](java&#10;script:{RUN})",
    "[link](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    f"[link](vbscript:{RUN})",
    f"[link](<javascript:{RUN}>)",
    f"<javascript:{RUN}>",
    f'![x](x"onerror="{RUN})',
    "![x](https://example.org/pixel.png?q=secret)",
    f"[x]: javascript:{RUN}\n\n[x]",
    f'[x](https://example.org "onmouseover={RUN} \\"x")',
    f"```html\n<script>{RUN}</script>\n```",
    f"```<img/src=x/onerror={RUN}>\ncode\n```",
    f"`<img src=x onerror={RUN}>`",
    f"$\\href{{javascript:{RUN}}}{{x}}$",
    f"$\\htmlData{{x=<img src=x onerror={RUN}>}}{{x}}$",
    f"$\\html@mathml{{<img src=x onerror={RUN}>}}{{x}}$",
    "$\\includegraphics{https://example.org/x.png}$",
    f"$<img src=x onerror={RUN}>$",
    "$\\def\\a{\\a\\a}\\a$",
    f"$$\\text{{<script>{RUN}</script>}}$$",
    f"| a |\n|---|\n| <img src=x onerror={RUN}> |",
    f"- <img src=x onerror={RUN}>",
    f"# <img src=x onerror={RUN}>",
    f"<think><img src=x onerror={RUN}></think><img src=x onerror={RUN}>",
]
ALLOWED_TAGS = frozenset(
    (
        *("DIV", "P", "H3", "H4", "H5", "H6", "UL", "OL", "LI", "BLOCKQUOTE", "PRE", "CODE", "EM"),
        *("STRONG", "DEL", "A", "BR", "HR", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "SPAN"),
        *("INPUT", "FIGURE", "FIGCAPTION", "BUTTON"),
    )
)
# Everything below an answer that the page does not make itself; KaTeX's output is its own.
FOUND = """() => [...document.querySelectorAll(".prose *")].map((e) => ({
  tag: e.tagName,
  katex: e.closest(".katex") !== null,
  handlers: e.getAttributeNames().filter((name) => name.startsWith("on") || name === "srcdoc"),
  addresses: ["href", "src", "action", "xlink:href", "formaction", "data"]
    .map((name) => e.getAttribute(name)).filter(Boolean),
}))"""


def check(found: list[dict[str, object]]) -> None:
    for element in found:
        assert element["katex"] or element["tag"] in ALLOWED_TAGS, element
        assert element["handlers"] == [], element
        for address in element["addresses"]:  # type: ignore[attr-defined]
            assert address.startswith(("https://example.org", "mailto:")), element


def test_each_of_the_usual_lists_in_one_answer(simulated: Server, visit: Visit) -> None:
    visitor = visit(simulated)
    id = simulated.say("\n\n".join(PAYLOADS[:-1]))
    page = visitor.open(f"#/ask/{id}")
    expect(page.get_by_label("Receipt")).to_be_visible()
    expect(page.locator(".tex.unread").last).to_be_attached()
    check(page.evaluate(FOUND))
    shown = page.locator(".prose").inner_text()
    assert f"<script>{RUN}</script>" in shown, "it is shown as it was written"
    assert page.evaluate("window.broken") is None
    for link in page.locator(".prose a[href]").all():
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"


@pytest.mark.parametrize("start", range(0, len(PAYLOADS), 11))
def test_each_alone(simulated: Server, visit: Visit, start: int) -> None:
    """One that opens an element is not closed by the next."""
    visitor = visit(simulated)
    page = visitor.open()
    for payload in PAYLOADS[start : start + 11]:
        id = simulated.say(payload, stream=False)
        page.goto(f"{simulated.url}/#/ask/{id}")
        expect(page.get_by_label("Receipt")).to_be_visible()
        check(page.evaluate(FOUND))
        assert page.evaluate("window.broken") is None, payload
