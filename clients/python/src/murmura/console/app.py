"""The console's addresses: each is a page, made of what the services say at that moment. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from murmura.api.inference.v1 import inference_pb2
from murmura.budget import attacker
from murmura.calls.jobs import ended
from murmura.console.guard import NAMES, Guard
from murmura.console.pages import Pages, Part
from murmura.counts import percent
from murmura.display import state_name
from murmura.errors import MurmuraError, NotAllowed, NotFound

if TYPE_CHECKING:
    from starlette.requests import Request

    from murmura.client import Client

# How often a page looks anew, in seconds: while a job runs or something is away, and otherwise.
LIVELY_S, CALM_S = 2, 15


def application(client: Client, key: str) -> Starlette:
    """Return the console as an ASGI application.

    Args:
        client: as whom it reads.
        key: what a browser must show once.
    """
    pages = Pages(client)
    render = Renderer(client.subject)

    def page(template: str, gather: Callable[..., dict[str, Any]]) -> Callable[[Request], HTMLResponse]:
        def answer(request: Request) -> HTMLResponse:
            try:
                return render(template, request.url.path, gather(**request.path_params))
            except MurmuraError as error:
                return render.problem(request.url.path, error)

        return answer

    def report(request: Request) -> HTMLResponse:
        try:
            return HTMLResponse(pages.report(request.path_params["identity"]))
        except MurmuraError as error:
            return render.problem(request.url.path, error)

    def nothing(request: Request, error: Exception) -> HTMLResponse:
        return render.problem(request.url.path, NotFound("There is no such page."))

    return Starlette(
        routes=[
            Route("/", page("overview.html", pages.overview)),
            Route("/activity", page("activity.html", pages.activity)),
            Route("/datasets/{identity}", page("dataset.html", pages.dataset)),
            Route("/trainingJobs/{identity}", page("job.html", pages.job)),
            Route("/adapters/{identity}", page("adapter.html", pages.adapter)),
            Route("/adapters/{identity}/report", report),
            Mount("/static", StaticFiles(packages=[("murmura.console", "static")])),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(NAMES), www_redirect=False),
            Middleware(Guard, key=key),
        ],
        exception_handlers={404: nothing},
    )


class Renderer:
    """Makes HTML of what a page shows; everything that people wrote is escaped.

    Args:
        subject: as whom the console reads.
    """

    def __init__(self, subject: str) -> None:
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("murmura.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(subject=subject)
        self._templates.filters.update(
            when=_when,
            state=state_name,
            ended=ended,
            percent=percent,
            adapter_state=_adapter_state,
            attacker=attacker,
            last=_last_part,
        )

    def __call__(self, template: str, path: str, found: dict[str, Any], status: int = 200) -> HTMLResponse:
        """Return a page.

        Args:
            template: its file.
            path: its address.
            found: what it shows.
            status: of the answer.
        """
        lively = any(not ended(job) for job in _jobs_on(found)) or any(
            part.problem for part in found.values() if isinstance(part, Part)
        )
        text = self._templates.get_template(template).render(found, path=path, refresh_s=LIVELY_S if lively else CALM_S)
        return HTMLResponse(text, status_code=status)

    def problem(self, path: str, error: MurmuraError) -> HTMLResponse:
        """Return a page that says why there is none."""
        status = 404 if isinstance(error, NotFound) else 403 if isinstance(error, NotAllowed) else 502
        return self("problem.html", path, {"problem": str(error), "missing": status == 404}, status)


def _jobs_on(found: dict[str, Any]) -> list[Any]:
    several = found["jobs"].found or [] if "jobs" in found else []
    return [*several, *([found["job"]] if "job" in found else [])]


def _when(time: Any) -> str:
    """Return a moment, in UTC."""
    moment: datetime = time if isinstance(time, datetime) else time.ToDatetime()
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _adapter_state(adapter: inference_pb2.Adapter) -> str:
    """Return an adapter's state as a word."""
    return inference_pb2.AdapterState.Name(adapter.state).removeprefix("ADAPTER_STATE_").lower()


def _last_part(name: str) -> str:
    """Return the last part of a resource's name."""
    return name.rpartition("/")[2]
