"""What the server of the web app answers to those who do not use its page."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import time
import uuid

import psutil
import pytest

from seem_jax.demo.studio import Limits, Studio
from tests.browser_support import served, until
from tests.predictor_support import picture, tiny_predictor
from tests.test_demo import png

gradio = pytest.importorskip("gradio", reason="pip install -r requirements-demo.txt")
import httpx  # noqa: E402 - comes with gradio

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def studio():
    return Studio(tiny_predictor(), Limits(megabytes=0.5, megapixels=1.0, video_megabytes=1.0))


@pytest.fixture(scope="module")
def client(studio):
    with served(studio) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def uploaded(client, name: str, data: bytes) -> httpx.Response:
    return client.post("/gradio_api/upload", files={"files": (name, data)})


def sent(client, place: int, data: list) -> dict:
    """The last message of an event, by its place among those of the page."""
    session = uuid.uuid4().hex
    body = {"fn_index": place, "data": data, "session_hash": session}
    client.post("/gradio_api/queue/join", json=body).raise_for_status()
    messages = []
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                messages.append(json.loads(line[5:]))
                if messages[-1]["msg"] == "process_completed":
                    break
    return messages[-1]


def place_of(client, event: str) -> int:
    """The place of the first event of a kind."""
    events = client.get("/config").json()["dependencies"]
    return next(one["id"] for one in events if one["targets"][0][1] == event)


def test_the_page_asks_no_other_server_and_offers_no_tunnel(client):
    page = client.get("/").text
    assert client.get("/").status_code == 200
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("is_space")
    assert "fonts.googleapis.com" not in json.dumps(config["stylesheets"])
    assert "share.gradio" not in page
    assert all(one["api_visibility"] == "private" for one in config["dependencies"])


def test_a_request_under_a_name_of_somebody_else_is_refused(client):
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400


def test_a_file_over_the_limit_is_refused_before_it_is_kept(client):
    assert uploaded(client, "a.png", bytes(2 * MEGABYTE)).status_code == 413


def test_a_name_of_fifty_megabytes_takes_no_memory_to_speak_of(client):
    before = psutil.Process().memory_info().rss
    name = "n" * (50 * MEGABYTE) + ".png"
    try:
        status = uploaded(client, name, b"x").status_code
    except httpx.TransportError:  # the server hung up in the middle, which is as good
        status = 400
    assert 400 <= status < 500
    assert psutil.Process().memory_info().rss - before < 400 * MEGABYTE  # ours holds copies too
    assert client.get("/config").status_code == 200


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "README.md"]
)
def test_files_of_the_machine_are_not_served(client, path):
    answer = client.get(f"/gradio_api/file={path}")
    assert 400 <= answer.status_code < 500
    assert "root:" not in answer.text


def test_a_path_that_was_not_uploaded_is_nobodys_picture(client, studio):
    place = place_of(client, "upload")
    for path in ("/etc/passwd", "docs/shapes.png", "/tmp/../etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        answer = sent(client, place, [file, None])
        assert not answer["success"]
        assert "root:" not in json.dumps(answer)
    assert studio.desks == ()


def test_an_uploaded_picture_opens_and_the_answer_names_no_path_of_ours(client, studio):
    path = uploaded(client, "a.png", png(picture())).json()[0]
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    answer = sent(client, place_of(client, "upload"), [file, None])
    assert answer["success"], answer
    assert len(studio.desks) == 1
    assert "data:image/jpeg;base64," in json.dumps(answer)
    studio.close(studio.desks[0])


def test_a_picture_at_rest_is_put_away(studio):
    resting = Studio(studio.predictor, Limits(seconds=0.5))
    with served(resting) as address, httpx.Client(base_url=address, timeout=60) as client:
        path = uploaded(client, "a.png", png(picture())).json()[0]
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert sent(client, place_of(client, "upload"), [file, None])["success"]
        until(lambda: not resting.desks, "the end of a desk at rest")
    assert len(resting.pool) == resting.pool.nbytes == 0


def test_slow_clients_and_a_hundred_uploads_leave_others_served(client):
    host, port = client.base_url.host, client.base_url.port
    slow = [socket.create_connection((host, port)) for _ in range(50)]
    try:
        for one in slow:  # a request that never ends
            one.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9")
        data = png(picture())
        with concurrent.futures.ThreadPoolExecutor(16) as crowd:
            sending = [crowd.submit(uploaded, client, f"{n}.png", data) for n in range(100)]
            start = time.monotonic()
            assert client.get("/config").status_code == 200
            took = time.monotonic() - start
            assert {future.result().status_code for future in sending} == {200}
        assert took < 30
    finally:
        for one in slow:
            one.close()
