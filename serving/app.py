"""The routes, as one ASGI application: the same under uvicorn, in tests, and inside another server."""

from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from vlm_trt.families.messages import PlaceKind
from vlm_trt.serving.chat import Chat
from vlm_trt.serving.completions import Completions
from vlm_trt.serving.errors import UNKNOWN, ApiError
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
from vlm_trt.serving.services import Served, Services
from vlm_trt.serving.turn import A, answer

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(services: Services) -> FastAPI:
    """The application. No route describes the others: documents of that kind are for servers that people explore."""
    settings = services.settings
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        # Its own spans hold texts of exceptions and are there whoever asks for them; ours are in `spans.py`.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        middleware=[
            Middleware(Front, services=services),
            Middleware(Keys, digests=settings.key_digests, max_per_key=settings.max_per_key),
            Middleware(Bodies, max_body_bytes=settings.max_body_bytes, held=services.held),
        ],
        exception_handlers={HTTPException: _not_routed, ApiError: _refused},
    )
    app.state.services = services
    get, post = ["GET", "HEAD"], ["POST"]
    app.add_api_route("/v1/chat/completions", _asking(Chat()), methods=post)
    app.add_api_route("/v1/completions", _asking(Completions()), methods=post)
    for kind in PlaceKind:
        route = "/v1/detect" if kind is PlaceKind.BOX else "/v1/point"
        app.add_api_route(route, _asking(Locate(kind)), methods=post)
    app.add_api_route("/v1/models", _models(services), methods=get)
    app.add_api_route("/v1/models/{name:path}", _model(services), methods=get)
    app.add_api_route("/health", _health(services), methods=get)
    app.add_api_route("/health/ready", _health(services), methods=get)
    app.add_api_route("/health/live", _live, methods=get)
    app.add_api_route("/metrics", _metrics(services), methods=get)
    app.add_api_route("/version", _version, methods=get)
    if settings.page and (page := load_page()) is not None:
        app.add_api_route("/", _fixed(Response(page.content, 200, page.headers, "text/html")), methods=get)
    return app


def _asking(kind: Kind[A]) -> Endpoint:
    async def ask(request: Request) -> Response:
        return await answer(kind, request)

    return ask


def _models(services: Services) -> Endpoint:
    async def models(request: Request) -> Response:
        return Json({"object": "list", "data": [_described(one) for one in services.models.values()]})

    return models


def _model(services: Services) -> Endpoint:
    async def model(request: Request) -> Response:
        return Json(_described(services.named(request.path_params["name"])))

    return model


def _described(served: Served) -> dict[str, object]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "vlm-trt",
        "max_model_len": served.loop.model.engine.limits.max_seq_tokens,
    }


def _health(services: Services) -> Endpoint:
    async def health(request: Request) -> Response:
        found = services.lifecycle.health()
        return Json({"status": found}, 200 if found is Health.READY else 503)

    return health


async def _live(request: Request) -> Response:
    """That the event loop answers."""
    return Json({"status": "live"})


def _metrics(services: Services) -> Endpoint:
    async def metrics(request: Request) -> Response:
        return Response(services.metrics.page(), media_type=MEDIA_TYPE)

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
