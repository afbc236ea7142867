"""The routes of a server."""

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, StrictUndefined
from starlette.exceptions import HTTPException

from pipeline import __version__
from pipeline.serving import messages
from pipeline.serving.faults import GONE, ClientGone, Refused
from pipeline.serving.guard import Guard, Tokens
from pipeline.serving.monitor import CONTENT_TYPE
from pipeline.serving.service import Answer, Gone, Service

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of the pages: nothing comes from elsewhere, and nothing is sent there."""
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": messages.Failure} for status in (400, 401, 404, 408, 413, 422, 429, 500, 503)
}


class _Request(Request):
    """One of which the `json` module does not keep the last of equal keys, such as two hypotheses of one label."""

    async def json(self) -> Any:
        return json.loads(await self.body(), object_pairs_hook=_object)


class _Route(APIRoute):
    """Reads such requests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_once(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return handle_once


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSONDecodeError where a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise json.JSONDecodeError(f"the key {key[:80]!r} is there twice", "", 0)
    return found


def create_app(service: Service, tokens: Tokens) -> Guard:
    """The ASGI application."""
    app = FastAPI(title="ltune serve", version=__version__, docs_url=None, redoc_url=None, responses=FAILURES)
    app.router.route_class = _Route
    guard = Guard(app, service.limits, service.monitor, tokens)
    _add_faults(app)
    _add_scoring(app, service)
    _add_adapters(app, service)
    _add_pages(app, service, guard)
    return guard


def _add_scoring(app: FastAPI, service: Service) -> None:
    @app.post("/v1/classify", tags=["texts"], summary="Classify texts")
    async def classify(asked: messages.ClassifyRequest, request: Request) -> messages.ClassifyResponse:
        """Scores of every label for every text: of the labels of training, or of `labels`, which need not be those."""
        answer = await service.classify(
            asked.model, asked.listed, _gone(request), labels=asked.names, hypotheses=asked.hypotheses
        )
        _note(request, answer)
        return messages.ClassifyResponse(
            model=answer.adapter,
            results=list(map(messages.Result.of, answer.predictions)),
            usage=messages.Usage(texts=len(answer.predictions), tokens=answer.tokens),
        )

    @app.post("/predict", tags=["texts"], summary="Classify texts, in the shape of Text Embeddings Inference")
    async def predict(
        asked: messages.PredictRequest, request: Request
    ) -> list[messages.LabelScore] | list[list[messages.LabelScore]]:
        """Labels with their scores, the best first: of one text, or of each of a batch."""
        answer = await service.classify(asked.model, asked.listed, _gone(request), whole=not asked.truncate)
        _note(request, answer)
        found = [messages.LabelScore.best_first(one, asked.raw_scores) for one in answer.predictions]
        return found if asked.is_batch else found[0]


def _add_adapters(app: FastAPI, service: Service) -> None:
    @app.get("/v1/adapters", tags=["adapters"], summary="The adapters that are served")
    async def adapters() -> messages.AdapterList:
        served = [(name, service.adapters[name]) for name in service.adapters.names]
        return messages.AdapterList(adapters=[messages.AdapterInfo.of(name, loaded) for name, loaded in served])

    @app.put("/v1/adapters/{name}", tags=["adapters"], summary="Add an adapter, or put it in the place of another")
    async def put(name: str, asked: messages.PutAdapter, request: Request) -> messages.AdapterInfo:
        """Requests that were accepted before are answered by the adapter that had the name then."""
        return messages.AdapterInfo.of(name, await service.put(name, asked.path, _gone(request)))

    @app.delete("/v1/adapters/{name}", tags=["adapters"], summary="Remove an adapter", status_code=204)
    async def remove(name: str) -> None:
        service.remove(name)


def _add_pages(app: FastAPI, service: Service, guard: Guard) -> None:
    @app.get("/health", tags=["server"], summary="May requests be sent here?")
    async def health(response: Response) -> messages.Health:
        """200, or 503 while the server ends, or where it cannot answer."""
        if guard.ending or not service.is_alive:
            response.status_code = 503
        return messages.Health(status="ending" if guard.ending else "ok" if service.is_alive else "failed")

    @app.get("/metrics", tags=["server"], summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.monitor.exposition(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_file("page.html"), headers=SECURITY)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_reference(app), headers=SECURITY)


def _add_faults(app: FastAPI) -> None:
    """Every fault in the same form."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, Refused):
            _facts(request)["refused"] = error.kind
            return JSONResponse(error.body, error.status_code, error.headers)
        kind = "unknown" if error.status_code == 404 else "validation"
        return JSONResponse({"error": str(error.detail), "error_type": kind}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Of the kinds that a value may be of, the one that it fits furthest says most; of a list, that of lists.
        found = max(error.errors(), key=lambda one: (len(one["loc"]), _is_of_lists(one)))
        if found["type"] == "json_invalid":
            line, status = f"the body is not JSON: {found.get('ctx', {}).get('error', found['msg'])}", 400
        elif isinstance(error.body, bytes) and error.body:
            # FastAPI reads a body as JSON only where it is called so: curl calls it a form.
            line, status = "the body is not sent as JSON: add the header 'Content-Type: application/json'", 422
        else:
            place = ".".join(part for part in map(str, found["loc"][1:]) if "[" not in part)  # not the name of a kind
            line, status = f"{place or 'the body'}: {found['msg'].removeprefix('Value error, ')}", 422
        return JSONResponse(Refused("validation", line).body, status)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        line = f"the server failed ({type(error).__name__}); its log has more, under the request's id"
        return JSONResponse(Refused("backend", line).body, 500)


def _is_of_lists(fault: Mapping[str, Any]) -> bool:
    """Whether a list is refused by what is wrong in it, and not for being no string."""
    return isinstance(fault["input"], list) and fault["type"] != "string_type"


def _gone(request: Request) -> Gone:
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone


def _facts(request: Request) -> dict[str, Any]:
    """What the log says of this request."""
    facts: dict[str, Any] = request.state.facts
    return facts


def _note(request: Request, answer: Answer) -> None:
    labels = len(answer.predictions[0].scores)
    _facts(request).update(adapter=answer.adapter, texts=len(answer.predictions), tokens=answer.tokens, labels=labels)


@cache
def _file(name: str) -> str:
    return files("pipeline.serving").joinpath(name).read_text(encoding="utf-8")


def _reference(app: FastAPI) -> str:
    """The routes and their bodies as a page, from the same schema as /openapi.json."""
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    schema: Mapping[str, Any] = app.openapi()
    return template.from_string(_file("docs.html.j2")).render(schema=schema, kind=_kind)


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if schema.get("type") == "array":
        few = schema.get("maxItems")
        size = "" if few is None else f" of {few}" if schema.get("minItems") == few else f" of 1 to {few}"
        return f"list{size} ({_kind(schema['items'])})"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"object ({_kind(schema['additionalProperties'])})"
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    return str(schema.get("type", "anything"))
