"""A real server over a tiny model, for tests: uvicorn on a free port, in a thread."""

import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import uvicorn
from conftest import until

from fader.server import run
from fader.server.app import create_app
from fader.server.keys import Keys
from fader.server.limits import Limits
from fader.server.serving import Serving


@dataclass
class Served:
    url: str
    model: str
    serving: Serving
    server: uvicorn.Server
    http: httpx.Client = field(init=False)
    clients: list[openai.OpenAI] = field(default_factory=list)

    def __post_init__(self):
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def client(self, key="none", kind=openai.OpenAI, **more):
        made = kind(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **more)
        if kind is openai.OpenAI:  # closed with the server; else its socket is a warning somewhere
            self.clients.append(made)
        return made

    def chat(self, content="the sea", **fields):
        """An answer of /v1/chat/completions, by plain HTTP."""
        headers = fields.pop("headers", {})
        turns = content if isinstance(content, list) else [{"role": "user", "content": content}]
        body = {"messages": turns, "max_tokens": 8, "temperature": 0, **fields}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def error(self, path, status=400, method="POST", **how):
        """The error object of a request that is refused with this status."""
        answer = self.http.request(method, path, **how)
        assert answer.status_code == status, answer.text
        found = answer.json()["error"]
        assert set(found) == {"message", "type", "param", "code"}
        assert found["message"]
        assert found["type"]
        return found


@contextmanager
def serve(backend, keys=Path("/nonexistent/keys.json"), limits=None, **how):
    app, serving = create_app(backend, Keys(keys), limits=limits or Limits(), **how)
    listening = socket.create_server(("127.0.0.1", 0))
    server = run.server(app, serving)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    until(lambda: server.started)
    served = Served(
        f"http://127.0.0.1:{listening.getsockname()[1]}", backend.models[0], serving, server
    )
    try:
        yield served
    finally:
        for client in (served.http, *served.clients):
            client.close()
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
