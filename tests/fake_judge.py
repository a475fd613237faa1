"""An OpenAI-compatible endpoint in a thread, which answers, and misbehaves when it is told to."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[int, dict[str, Any]], Any]


def completion(text: str | None, usage: bool = True) -> bytes:
    """The body of a chat completion."""
    found: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if usage:
        found["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
    return json.dumps(found).encode()


def responses(body: dict[str, Any]) -> tuple[str, str]:
    """The two responses of a question in the default prompt's words."""
    found = re.search(
        r"<response A>\n(.*?)\n</response A>.*<response B>\n(.*?)\n</response B>",
        body["messages"][0]["content"],
        re.S,
    )
    assert found is not None
    return found[1], found[2]


class FakeJudge:
    """`script(number, body)` says what a request gets: text, (status, headers, bytes), "reset", or seconds.

    So long an answer takes, on `clock`, for which nobody waits. `seen`: all requests' bodies; `keys`: their
    Authorization headers.
    """

    def __init__(self, script: Script) -> None:
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.clock = 0.0
        lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(fake.seen)
                    fake.seen.append(body)
                    fake.keys.append(self.headers.get("Authorization"))
                assert self.path == "/v1/chat/completions"
                said = script(number, body)
                if said == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                else:
                    if isinstance(said, float):
                        fake.clock += said
                        said = "Verdict: A"
                    status, headers, content = (
                        said if isinstance(said, tuple) else (200, {}, completion(said))
                    )
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None:
                """A connection that the client left, or that the script reset, is no news."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> FakeJudge:
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(self, *arguments: Any) -> None:
        self.server.shutdown()
        self.server.server_close()
