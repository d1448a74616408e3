"""The page is served whole, from this server alone, and with a policy that lets nothing else in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient

from ingress.api.page import PAGE
from ingress.http.endpoints import application

pytestmark = pytest.mark.one_loop

FOLDER = Path("ingress/page")
HOST = "speech.example:8000"


@pytest.fixture
def client() -> AsyncClient:
    transport = ASGITransport(app=application(PAGE, ("/", "/ws")))
    return AsyncClient(transport=transport, base_url=f"http://{HOST}")


async def test_the_page_and_all_that_it_names_are_served(client: AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = set(re.findall(r'(?:href|src)="(assets/[^"]+)"', page.text))
    assert named
    for path in named:
        assert (await client.get(f"/{path}")).status_code == 200, path


@pytest.mark.parametrize(
    "name",
    sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.*") if path.name != "index.html"),
)
async def test_every_file_has_its_type_and_its_imports_are_there(client: AsyncClient, name: str) -> None:
    answer = await client.get(f"/assets/{name}")
    kind = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
    assert answer.headers["content-type"] == kind[name.rpartition(".")[2]]
    assert answer.content == (FOLDER / name).read_bytes()
    for imported in re.findall(r'from "\./([^"]+)"|new URL\("([^"]+)", import', answer.text):
        path = Path(name).parent / (imported[0] or imported[1])
        assert (await client.get(f"/assets/{path}")).status_code == 200


async def test_the_policy_lets_nothing_in_but_this_server(client: AsyncClient) -> None:
    policy = (await client.get("/")).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    assert rules["connect-src"] == f"'self' ws://{HOST} wss://{HOST}"
    assert rules["frame-ancestors"] == "'none'"


def test_no_file_needs_what_the_policy_forbids() -> None:
    for path in FOLDER.rglob("*.*"):
        text = path.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", text), path


async def test_a_host_that_is_none_does_not_reach_the_policy(client: AsyncClient) -> None:
    policy = (await client.get("/", headers={"host": "a; script-src *"})).headers["content-security-policy"]
    assert "script-src *" not in policy


async def test_an_unchanged_file_is_not_sent_again(client: AsyncClient) -> None:
    first = await client.get("/assets/app.js")
    again = await client.get("/assets/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["none.js", "../server.py", "%2e%2e/server.py", "__init__.py", ""])
async def test_nothing_else_is_served(client: AsyncClient, name: str) -> None:
    assert (await client.get(f"/assets/{name}")).status_code == 404
