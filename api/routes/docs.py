"""``/docs``: the API's documentation in Swagger UI, from a package, without an outside host."""

from importlib import resources

from fastapi import APIRouter, HTTPException, Response
from fastapi.openapi.docs import get_swagger_ui_html

from api.description.openapi import TITLE

# What the page loads, and how. Files of the package fastapi-swagger, which follows Swagger UI's releases.
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
# FastAPI's page starts Swagger UI by a script of its own; the style is Swagger UI's.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'"
)
_CACHE = "public, max-age=86400"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def page() -> Response:
    """Its addresses are relative, so that it works behind a proxy that serves it under a prefix."""
    found = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=TITLE,
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon-32x32.png",
        swagger_ui_parameters={"persistAuthorization": False, "validatorUrl": None},
    )
    found.headers["Content-Security-Policy"] = _POLICY
    return found


@router.get("/docs/{name}")
def asset(name: str) -> Response:
    """On a thread, since it reads a file of up to 2 MB."""
    if name not in ASSETS:
        raise HTTPException(404)
    content = (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
    return Response(content, media_type=ASSETS[name], headers={"Cache-Control": _CACHE})
