"""The routes, as one ASGI application: the same under uvicorn, in tests, and inside another server."""

from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from vlm_trt.families.messages import PlaceKind
from vlm_trt.serving.chat import Chat
from vlm_trt.serving.completions import Completions
from vlm_trt.serving.errors import UNKNOWN, ApiError, no_such_model
from vlm_trt.serving.exchange import exchange_of
from vlm_trt.serving.front import Front
from vlm_trt.serving.keys import Keys
from vlm_trt.serving.lifecycle import Health
from vlm_trt.serving.limits import Bodies
from vlm_trt.serving.locating import Locate
from vlm_trt.serving.metrics import MEDIA_TYPE
from vlm_trt.serving.page import load_page
from vlm_trt.serving.preparing import Kind
from vlm_trt.serving.replies import Json, reply
from vlm_trt.serving.site import Offered, Site

Endpoint = Callable[[Request], Awaitable[Response]]
Asking = Callable[[Kind[Any]], Endpoint]
# What can be asked for, by its route.
KINDS: dict[str, Kind[Any]] = {
    "/v1/chat/completions": Chat(),
    "/v1/completions": Completions(),
    "/v1/detect": Locate(PlaceKind.BOX),
    "/v1/point": Locate(PlaceKind.POINT),
}


def make_app(site: Site, asking: Asking) -> FastAPI:
    """The application. No route describes the others: documents of that kind are for servers that people explore.

    Args:
        site: what it stands on.
        asking: how a kind of request is answered there.
    """
    settings = site.settings
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        # Its own spans hold texts of exceptions and are there whoever asks for them; ours are in `spans.py`.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        middleware=[
            Middleware(Front, site=site),
            Middleware(Keys, digests=settings.key_digests, max_per_key=settings.max_per_key),
            Middleware(Bodies, max_body_bytes=settings.max_body_bytes, held=site.held),
        ],
        exception_handlers={HTTPException: _not_routed, ApiError: _refused},
    )
    get, post = ["GET", "HEAD"], ["POST"]
    for route, kind in KINDS.items():
        app.add_api_route(route, asking(kind), methods=post)
    app.add_api_route("/v1/models", _models(site), methods=get)
    app.add_api_route("/v1/models/{name:path}", _model(site), methods=get)
    app.add_api_route("/health", _health(site), methods=get)
    app.add_api_route("/health/ready", _health(site), methods=get)
    app.add_api_route("/health/live", _live, methods=get)
    app.add_api_route("/metrics", _metrics(site), methods=get)
    app.add_api_route("/version", _version, methods=get)
    if settings.page and (page := load_page()) is not None:
        app.add_api_route("/", _fixed(Response(page.content, 200, page.headers, "text/html")), methods=get)
    return app


def _models(site: Site) -> Endpoint:
    async def models(request: Request) -> Response:
        return Json({"object": "list", "data": [_described(one) for one in await site.offered()]})

    return models


def _model(site: Site) -> Endpoint:
    async def model(request: Request) -> Response:
        offered = {one.name: one for one in await site.offered()}
        if (found := offered.get(request.path_params["name"])) is None:
            raise no_such_model(offered)
        return Json(_described(found))

    return model


def _described(offered: Offered) -> dict[str, object]:
    return {
        "id": offered.name,
        "object": "model",
        "created": offered.created,
        "owned_by": "vlm-trt",
        "max_model_len": offered.max_seq_tokens,
    }


def _health(site: Site) -> Endpoint:
    async def health(request: Request) -> Response:
        found = site.lifecycle.health()
        return Json({"status": found}, 200 if found is Health.READY else 503)

    return health


async def _live(request: Request) -> Response:
    """That the event loop answers."""
    return Json({"status": "live"})


def _metrics(site: Site) -> Endpoint:
    async def metrics(request: Request) -> Response:
        return Response(await site.metrics_page(), media_type=MEDIA_TYPE)

    return metrics


async def _version(request: Request) -> Response:
    try:
        return Json({"version": version("vlm-trt")})
    except PackageNotFoundError:  # run from a folder that was never installed
        return Json({"version": None})


def _fixed(response: Response) -> Endpoint:
    async def same(request: Request) -> Response:
        return response

    return same


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return reply(error, exchange_of(request.scope))


async def _not_routed(request: Request, error: Exception) -> Response:
    """What the router says, in our words."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = ApiError(405, "this route has no such method; GET and POST are not the same", "method_not_allowed")
    else:
        refusal = ApiError(404, "there is no such route here; /v1/models lists what can be asked", "not_found", UNKNOWN)
    return reply(refusal, exchange_of(request.scope))
