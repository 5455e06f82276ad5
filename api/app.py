"""The FastAPI application: ``create_app(settings)``. Importing this does nothing else."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from api.access.rate_headers import RateHeadersMiddleware
from api.answers.errors import install_error_handlers
from api.description.openapi import DESCRIPTION, KEY_PROBLEMS, TITLE, install_openapi, problems
from api.http.body_limit import BodyLimit, BodyLimitMiddleware
from api.http.cors import cors_options
from api.http.head import HeadMiddleware
from api.http.hosts import HostMiddleware, Hosts
from api.http.observer import ObserverMiddleware
from api.http.tracing import TracingMiddleware
from api.metrics import Metrics
from api.requests.uploads import ENVELOPE_BYTES
from api.routes import (
    batches,
    bulk,
    completions,
    dead,
    docs,
    events,
    files,
    health,
    jobs,
    lists,
    metrics,
    models,
    page,
    queue,
)
from api.services import open_services
from millpond import __version__
from millpond.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def create_app(settings: Settings, tracer: "Tracer | None" = None) -> FastAPI:
    """The application on these settings. Its services open and close with its lifespan.

    With a tracer each request has a span, and its jobs are traced.
    Raises ModelLoadError when the settings name a model that does not exist.
    """
    preset = settings.preset()
    counted = Metrics(settings.max_depth)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, preset, counted) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        # FastAPI's own pages load scripts from another host; see api/routes/docs.py.
        docs_url=None,
        redoc_url=None,
    )
    app.state.metrics = counted
    keyed = (bulk, lists, jobs, events, dead, queue, models, metrics)
    for module in keyed:
        app.include_router(module.router, responses=problems(*KEY_PROBLEMS))
    for module in (completions, files, batches, health, docs, page):
        app.include_router(module.router)
    every = (*keyed, completions, files, batches, health, docs, page)
    app.state.routes = [route for module in every for route in module.router.routes]
    install_error_handlers(app)
    install_openapi(app, settings.max_wait_s)
    app.add_middleware(
        BodyLimitMiddleware,
        limit=BodyLimit(settings.max_body_bytes),
        limits={
            bulk.BULK_PATH: BodyLimit(max(bulk.MAX_BULK_BYTES, settings.max_body_bytes)),
            files.FILES: BodyLimit(settings.max_file_bytes, "file", ENVELOPE_BYTES),
        },
    )
    app.add_middleware(RateHeadersMiddleware)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(settings))
    app.add_middleware(HostMiddleware, hosts=Hosts(settings))
    app.add_middleware(ObserverMiddleware, metrics=counted)
    if tracer is not None:
        app.add_middleware(TracingMiddleware, tracer=tracer)
    app.add_middleware(HeadMiddleware)
    return app
