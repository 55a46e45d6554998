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
        return await file(files, request.path_params["name"], request)

    app.router.add_route(f"{path}/{{name}}", asset, methods=["GET"], include_in_schema=False)


async def file(files: StaticFiles, name: str, request: Request) -> Response:
    """The answer with a file, which browsers keep, and ask for each time whether it is still the same.

    The whole of it, whatever range is asked for (RFC 9110, 14.2): Starlette would answer some with an error of its own.
    """
    request.scope["headers"] = [header for header in request.scope["headers"] if header[0] != b"range"]
    response = await files.get_response(name, request.scope)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Accept-Ranges"] = "none"
    return response


async def page(files: StaticFiles, name: str, request: Request, policy: str = POLICY) -> Response:
    """The answer with a page, which loads nothing from elsewhere and runs no script that stands in it."""
    response = await file(files, name, request)
    response.headers["Content-Security-Policy"] = policy
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def document(app: FastAPI) -> None:
    """Serves /docs: the OpenAPI document as a page, by the copy of Swagger UI that lies in this package."""
    files = StaticFiles(directory=HERE)

    async def docs(request: Request) -> Response:
        return await page(files, "docs.html", request, DOCS_POLICY)

    app.router.add_route("/docs", docs, methods=["GET"], include_in_schema=False)
    serve(app, "/docs", HERE)
