"""``/``: the web page, and its files under ``/page/VERSION/``."""

from fastapi import APIRouter, HTTPException, Request, Response

from api.page.files import INDEX, PageFile
from api.services import Api

# Nothing but our own files is loaded, and no script or style stands in the page itself. Text becomes HTML
# through DOMPurify alone, whose policy is the only one with that right.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_FOR_EVER = "public, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)


@router.get("/")
def page(request: Request, api: Api) -> Response:
    """Its addresses are relative, so that it works behind a proxy that serves it under a prefix."""
    found = api.page.get(INDEX)
    assert found is not None
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    return _answer(request, found, headers)


@router.get("/page/{version}/{name:path}")
def file(request: Request, api: Api, version: str, name: str) -> Response:
    """On a thread, since it may read and compress. A page of an older version gets today's files."""
    found = api.page.get(name)
    if found is None or name == INDEX:
        raise HTTPException(404)
    current = version == api.page.version
    return _answer(request, found, {"Cache-Control": _FOR_EVER if current else "no-store"})


def _answer(request: Request, found: PageFile, headers: dict[str, str]) -> Response:
    content = found.content
    headers = {**_SAFE, "Vary": "Accept-Encoding", **headers}
    if found.gzipped is not None and _takes_gzip(request.headers.get("accept-encoding", "")):
        content, headers["Content-Encoding"] = found.gzipped, "gzip"
    return Response(content, headers=headers, media_type=found.media_type)


def _takes_gzip(accepted: str) -> bool:
    """Whether the header names gzip, and not with the weight 0."""
    for part in accepted.lower().replace(" ", "").split(","):
        name, _, weight = part.partition(";q=")
        if name == "gzip":
            return weight.strip("0.") != "" or not weight
    return False
