"""The server: what it gives, what it keeps to itself, what it survives."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import uvicorn

from verisim.errors import VerisimError
from verisim.web.answers import AnswerBook
from verisim.web.server import listen, make_app, serve

JSON = {"Content-Type": "application/json"}
ROW = {"reader": "Anna", "item": "pair-000", "answer": "left", "seconds": 1.25}


class Client:
    def __init__(self, port):
        self.port = port

    def ask(self, method, path, body=None, headers=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        c.request(
            method, path, body if body is None or isinstance(body, bytes) else json.dumps(body), headers or {}
        )
        reply = c.getresponse()
        return reply.status, reply.read(), reply.headers

    def post(self, **change):
        status, body, _ = self.ask("POST", "/answers", {**ROW, **change}, JSON)
        return status, json.loads(body)


@pytest.fixture
def client(study):
    bound = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(study), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Client(bound.getsockname()[1])
    server.should_exit = True
    thread.join()
    bound.close()


def test_page_and_images(client, study):
    """The page comes with a policy that allows nothing from elsewhere; images come as they are."""
    status, body, headers = client.ask("GET", "/")
    assert status == 200 and b"Real or not?" in body
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "http" not in policy and "unsafe-eval" not in policy
    name = study.items[0]["images"][0]
    assert client.ask("GET", f"/images/{name}")[1] == study.images[name].read_bytes()


@pytest.mark.parametrize(
    "path",
    ["/key.json", "/images/key.json", "/images/../key.json", "/images/..%2fkey.json", "/images/%2e%2e/key.json",
     "/answers.sqlite", "/study.json", "/images/", "/images/x.png"],
)  # fmt: skip
def test_nothing_else_is_given(client, path):
    """Neither the key nor any other file, however it is asked for."""
    status, body, _ = client.ask("GET", path)
    assert status == 404 and b"secret" not in body


def test_answering_resuming_correcting(client, study):
    """Kept at once, the same again is fine, a second answer is not, a correction is; names fold case."""
    assert client.post() == (201, {"state": "stored"})
    assert client.post() == (200, {"state": "known"})
    status, found = client.post(answer="right")
    assert status == 409 and "first answer stays" in found["error"]
    assert client.post(answer="right", replace=True) == (200, {"state": "changed"})
    known = json.loads(client.ask("GET", "/answers?reader=anna")[1])
    assert known == {"reader": "anna", "answers": {"pair-000": "right"}}
    assert AnswerBook(study).all()[0].changes == 1
    assert client.ask("GET", "/answers?reader=../x")[0] == 400


def test_hostile_requests(client, study):
    """Other content types, no JSON, too much of it, wrong fields, another host's name: refused, nothing kept."""
    for body, headers, status in (
        (ROW, {"Content-Type": "text/plain"}, 415),
        (b"{", JSON, 400),
        (b"[1]", JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b"[" * 4000, JSON, 400),
        (b"{" + b" " * 5000 + b"}", JSON, 400),
        ({**ROW, "reader": "../../x"}, JSON, 400),
        ({**ROW, "item": "pair-000' OR 1=1 --"}, JSON, 400),
        ({**ROW, "seconds": 1e400}, JSON, 400),
        (ROW, {**JSON, "Host": "evil.example"}, 400),
    ):
        assert client.ask("POST", "/answers", body, headers)[0] == status, (body, headers)
    assert client.ask("DELETE", "/answers")[0] == 405
    assert AnswerBook(study).all() == []


def test_double_submission_at_the_same_time(client, study):
    """Twenty requests at once for one item: one is stored, none is lost or doubled."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(client.post()[0])) for _ in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(found) == [200] * 19 + [201]
    assert len(AnswerBook(study).all()) == 1


def test_sigkill_loses_nothing(study):
    """Every answer that was confirmed before the server was killed is there afterwards, from the command line."""
    command = [sys.executable, "-m", "verisim.cli.main", "readers", "serve", str(study.folder), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    line = process.stdout.readline()
    client = Client(int(line.split("127.0.0.1:")[1].split("/")[0]))
    forms = study.forms
    for item, form in forms.items():
        assert client.post(item=item, answer="left" if form == "pair" else "3")[0] == 201
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert [a.item for a in AnswerBook(study).all()] == list(forms)


def test_port_in_use_and_out_of_range(study):
    """A taken port names the next one; an impossible port or address is one sentence."""
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(VerisimError, match=f"Port {port} of 127.0.0.1 is in use.*--port {port + 1}"):
            serve(study, port=port)
    with pytest.raises(VerisimError, match="--port is 70000"):
        listen("127.0.0.1", 70000)
    with pytest.raises(VerisimError, match="Cannot listen on"):
        listen("203.0.113.7", 0)


def test_only_this_machine_by_default():
    """The default socket is bound to the loopback address alone."""
    with listen("127.0.0.1", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1" and bound.family == socket.AF_INET
