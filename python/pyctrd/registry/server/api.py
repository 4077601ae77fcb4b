"""The distribution API: each request goes to its handler, if whoever sends it may."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from pyctrd.registry.server import blobs, manifests
from pyctrd.registry.server.answers import RefusedError, empty_answer, error_answer, json_answer, refusal_of
from pyctrd.registry.server.call import Call, Threads
from pyctrd.registry.server.metrics import MEDIA_TYPE, Gauges, Metrics
from pyctrd.registry.server.routes import METHODS, Route, find_route
from pyctrd.registry.server.tokens import TOKEN_SECONDS, parse_scopes

if TYPE_CHECKING:
    from pyctrd.registry.server.access import Access, Caller
    from pyctrd.registry.server.connections import Listener
    from pyctrd.registry.server.store import Tenants

logger = logging.getLogger("pyctrd.registry")
access_logger = logging.getLogger("pyctrd.registry.access")
# Bodies that come at once: each holds two blocks, a few descriptors, and now and then a worker.
MAX_RECEIVING = 128
_HOST = re.compile(r"[A-Za-z0-9.\-]{1,253}(?::\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::\d{1,5})?")
_PATH_SHOWN_CHARS = 512
_METHODS = frozenset(method for methods in METHODS.values() for method in methods)
_CLOSED = 499  # as nginx notes it: the client left before it had its answer

Handler = Callable[[Call], Awaitable[web.StreamResponse]]
_HANDLERS: Mapping[tuple[str, str], Handler] = {
    ("manifests", "GET"): manifests.get_manifest,
    ("manifests", "PUT"): manifests.put_manifest,
    ("manifests", "DELETE"): manifests.delete_manifest,
    ("tags", "GET"): manifests.list_tags,
    ("catalog", "GET"): manifests.list_repositories,
    ("referrers", "GET"): manifests.list_referrers,
    ("blobs", "GET"): blobs.get_blob,
    ("blobs", "DELETE"): blobs.delete_blob,
    ("uploads", "POST"): blobs.begin_upload,
    ("upload", "GET"): blobs.get_upload,
    ("upload", "PATCH"): blobs.continue_upload,
    ("upload", "PUT"): blobs.finish_upload,
    ("upload", "DELETE"): blobs.cancel_upload,
}


class Api:
    """Answers requests.

    Args:
        tenants: What it serves.
        access: Who may do what.
        threads: Run what may wait.
        metrics: Where all is counted.
        public_url: How clients reach it, where that is not what they ask for; "" else.
    """

    def __init__(
        self, tenants: Tenants, access: Access, threads: Threads, metrics: Metrics, *, public_url: str = ""
    ) -> None:
        self._tenants = tenants
        self._access = access
        self._threads = threads
        self._metrics = metrics
        self._public_url = public_url.rstrip("/")
        self._receiving = asyncio.Semaphore(MAX_RECEIVING)
        self.listener: Listener | None = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; its answer is sent when this returns."""
        began = time.perf_counter()
        connection = request.protocol
        connection.begin()  # type: ignore[attr-defined] # it is one of ours
        self._metrics.running += 1
        route, status = Route("other"), _CLOSED
        answer: web.StreamResponse | None
        try:
            try:
                route = find_route(request.method, request.raw_path)
                answer = await self._answer(request, route)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
                answer = self._failure(error)
            if answer is None or not await _sent(request, answer):
                return _nothing(request)
            status = answer.status
            return answer
        finally:
            self._metrics.running -= 1
            connection.end()  # type: ignore[attr-defined]
            self._note(request, route, status, time.perf_counter() - began)

    def _failure(self, error: Exception) -> web.StreamResponse | None:
        """The answer to a request that failed; None where nobody is there to have one."""
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            return None
        refused = refusal_of(error)
        if refused is None:
            logger.error("a request failed", exc_info=error)
            refused = RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry failed")
        return error_answer(refused)

    async def _answer(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        if route.is_open:
            return self._tell(route)
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED", "bodies are sent as they are")
        caller = await self._access.identify(request.headers.get("Authorization"))
        if route.kind == "token":
            return self._give_token(request, caller)
        self._check(request, route, caller)
        if route.kind == "base" or caller is None:
            return json_answer({})
        method = "GET" if request.method == "HEAD" else request.method
        store = self._tenants.store(caller.namespace)
        # A mirror's client says of which registry a repository is: two of them may have the same name.
        registry = request.query.get("ns", "")
        if method == "GET" and route.name and registry and self._tenants.is_upstream(registry):
            route = route._replace(name=f"{registry}/{route.name}")
        call = Call(request, route, caller, store, self._metrics, self._threads, self._receiving)
        return await _HANDLERS[route.kind, method](call)

    def _check(self, request: web.BaseRequest, route: Route, caller: Caller | None) -> None:
        realm = self._realm(request)
        action = route.action(request.method)
        if caller is None:
            raise self._access.ask(realm=realm, action=action, repository=route.name)
        if route.kind == "base":
            # A client that is not asked here sends no credentials later either.
            if not caller.name and caller.scopes is None and (self._access.has_users or not caller.actions):
                raise self._access.refuse(caller, realm=realm, action=action, repository="")
            return
        if not caller.may(action, route.name):
            raise self._access.refuse(caller, realm=realm, action=action, repository=route.name)
        # A blob of another repository is read by who mounts it.
        source = request.query.get("from") if route.kind == "uploads" else None
        if source is not None and not caller.may("pull", source):
            raise self._access.refuse(caller, realm=realm, action="pull", repository=source)

    def _give_token(self, request: web.BaseRequest, caller: Caller | None) -> web.StreamResponse:
        if caller is None or (not caller.name and not caller.actions):
            raise self._access.ask(realm=self._realm(request), basic=True)
        token = self._access.grant(caller, parse_scopes(request.query.getall("scope", [])))
        body = {"token": token, "access_token": token, "expires_in": TOKEN_SECONDS}
        return json_answer(body, headers={"Cache-Control": "no-store"})

    def _realm(self, request: web.BaseRequest) -> str:
        """Where the registry is, as this client reaches it."""
        if self._public_url:
            return self._public_url
        host = request.headers.get("Host", "")
        return f"{request.scheme}://{host if _HOST.fullmatch(host) else 'localhost'}"

    def _tell(self, route: Route) -> web.StreamResponse:
        if route.kind == "health":
            return json_answer({"status": "ok"})
        listener = self.listener
        gauges = Gauges(
            connections=len(listener.connections) if listener is not None else 0,
            requests=self._metrics.running,
            receiving=self._metrics.receiving,
            refused=listener.refused if listener is not None else 0,
        )
        return empty_text(self._metrics.text(gauges))

    def _note(self, request: web.BaseRequest, route: Route, status: int, seconds: float) -> None:
        method = request.method if request.method in _METHODS else "other"
        self._metrics.note(route.kind, method, status, seconds)
        if access_logger.isEnabledFor(logging.INFO):
            # Without its query, which may have more in it than a digest; and without what a terminal would act on.
            path = request.raw_path.partition("?")[0][:_PATH_SHOWN_CHARS]
            shown = path.encode("ascii", "backslashreplace").decode()
            access_logger.info("%s %s %s %d %.3f s", request.remote, request.method[:20], shown, status, seconds)


async def _sent(request: web.BaseRequest, answer: web.StreamResponse) -> bool:
    """Send what of an answer is not sent yet; whether somebody was there to take it."""
    try:
        await answer.prepare(request)
        await answer.write_eof()
    except ConnectionError:
        return False
    return True


def _nothing(request: web.BaseRequest) -> web.Response:
    """What the loop is handed where nobody is there to have an answer: the connection is over."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=_CLOSED)


def empty_text(text: str) -> web.Response:
    """Metrics, as an answer."""
    answer = empty_answer(HTTPStatus.OK, {"Content-Type": MEDIA_TYPE})
    answer.body = text.encode()
    return answer
