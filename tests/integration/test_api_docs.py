"""The page that describes the API: whole by itself, from our own origin."""

import re

import pytest

from api.routes.docs import ASSETS
from tests.integration.conftest import RunningApi


async def test_the_page_names_no_outside_host(api: RunningApi) -> None:
    page = await api.http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+", page.text) == []
    # Whatever the scripts may think of, the browser loads nothing from elsewhere.
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    loaded = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page.text)
    paths = {one or other for one, other in loaded}
    assert paths == {"openapi.json", *(f"docs/{name}" for name in ASSETS)}
    for path in paths:
        answer = await api.http.get(f"/{path}")
        assert answer.status_code == 200, path
        name = path.removeprefix("docs/")
        assert answer.headers["content-type"].startswith(ASSETS.get(name, "application/json"))


async def test_the_scripts_are_swagger_uis(api: RunningApi) -> None:
    script = (await api.http.get("/docs/swagger-ui-bundle.js")).text
    assert "SwaggerUIBundle" in script
    assert len(script) > 1_000_000
    for other in ("__init__.py", "..%2fmain.py", "swagger-ui.css.map"):
        assert (await api.http.get(f"/docs/{other}")).status_code == 404, other


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect"])
async def test_pages_that_would_load_from_elsewhere_are_off(api: RunningApi, path: str) -> None:
    assert (await api.http.get(path)).status_code == 404


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
async def test_they_are_for_reading(api: RunningApi, path: str) -> None:
    answer = await api.http.post(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
