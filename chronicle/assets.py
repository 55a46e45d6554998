"""Files that a browser loads, served from this address and no other, under a strict content security policy."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

HERE = Path(__file__).parent / "assets"

POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
DOCS_POLICY = f"{POLICY}; img-src 'self' data:"
"""Swagger UI's stylesheet holds its icons as data."""


def serve(app: FastAPI, path: str, folder: Path) -> None:
    """Answers GET path/name with the file of that name in the folder; folders in it are left out."""
    files = StaticFiles(directory=folder)

    async def asset(request: Request) -> Response:
        return cached(await files.get_response(request.path_params["name"], request.scope))

    app.router.add_route(f"{path}/{{name}}", asset, methods=["GET"], include_in_schema=False)


def cached(response: Response) -> Response:
    """The answer with a file, which browsers keep, and ask for each time whether it is still the same."""
    response.headers["Cache-Control"] = "no-cache"
    return response


def page(response: Response, policy: str = POLICY) -> Response:
    """The answer with a page, which loads nothing from elsewhere and runs no script that stands in it."""
    response.headers["Content-Security-Policy"] = policy
    response.headers["Referrer-Policy"] = "no-referrer"
    return cached(response)


def document(app: FastAPI) -> None:
    """Serves /docs: the OpenAPI document as a page, by the copy of Swagger UI that lies in this package."""
    files = StaticFiles(directory=HERE)

    async def docs(request: Request) -> Response:
        return page(await files.get_response("docs.html", request.scope), DOCS_POLICY)

    app.router.add_route("/docs", docs, methods=["GET"], include_in_schema=False)
    serve(app, "/docs", HERE)
