"""A server with as much of the Hugging Face Jobs API as a workflow uses; it runs the commands itself."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FakeJobs:
    """`bucket`: the folder that stands for the mounted one. `started`: what was posted, in this order."""

    def __init__(self, bucket: Path) -> None:
        self.bucket = bucket
        self.started: list[dict[str, Any]] = []
        self.processes: list[subprocess.Popen[str]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(fake.told(int(self.path.rpartition("/")[2])))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(fake.start(body))

            def answer(self, value: dict[str, Any]) -> None:
                text = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def start(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run what a job would, with this checkout's rpo, in the folder for the mounted bucket."""
        (volume,) = job["volumes"]
        script = job["command"][-1].replace(volume["mountPath"], str(self.bucket))
        program = f'rpo() {{ {shlex.quote(sys.executable)} -m rpo_cli.cli "$@"; }}\n'
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        started: Any = subprocess.Popen(["bash", "-c", program + script], env=environment, **pipe)
        self.processes.append(started)
        self.started.append(job)
        return self.told(len(self.processes) - 1)

    def told(self, number: int) -> dict[str, Any]:
        code = self.processes[number].poll()
        stage = "RUNNING" if code is None else "ERROR" if code else "COMPLETED"
        owner = {"id": "1", "name": "anna", "type": "user"}
        return {"id": str(number), "status": {"stage": stage}, "owner": owner}

    def output(self, name: str) -> str:
        """What the last job of this name printed."""
        numbers = [number for number, job in enumerate(self.started) if job["labels"]["name"] == name]
        return self.processes[numbers[-1]].communicate()[0]

    def __enter__(self) -> FakeJobs:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *arguments: Any) -> None:
        self.server.shutdown()
        self.server.server_close()
        for process in self.processes:
            process.kill()
            process.communicate()
