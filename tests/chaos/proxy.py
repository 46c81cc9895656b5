"""An HTTP proxy in front of a storage server that answers some requests wrongly, by a plan.

with FaultyProxy("127.0.0.1:8333", seeded(7, rate=0.2)) as proxy:
    ...  # talk to proxy.url
proxy.exchanges  # what was asked, and what went wrong
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Fault(enum.Enum):
    """What goes wrong with one request."""

    ERROR_500 = "InternalError"
    """Not passed on."""
    SLOW_DOWN = "SlowDown"
    """503, not passed on."""
    TOO_MANY = "TooManyRequests"
    """429, not passed on."""
    FORBIDDEN = "AccessDenied"
    """403, not passed on: no client should ask again."""
    SILENCE = "no answer"
    """Not passed on, and no answer until the client hangs up."""
    RESET = "connection reset"
    """Not passed on; the connection is reset."""
    LOST_ANSWER = "answer lost"
    """Done by the server, and then the connection is reset."""
    TRUNCATED = "truncated body"
    """Half of the answer's body, then the connection ends; of an answer without one, nothing at all."""


STATUS = {Fault.ERROR_500: 500, Fault.SLOW_DOWN: 503, Fault.TOO_MANY: 429, Fault.FORBIDDEN: 403}
TRANSIENT = tuple(fault for fault in Fault if fault is not Fault.FORBIDDEN)


@dataclass(frozen=True)
class Exchange:
    """One request."""

    number: int
    """From 0, in the order of arrival."""
    method: str
    path: str
    """With its query."""


Plan = Callable[[Exchange], Fault | None]


def seeded(seed: int, rate: float, faults: Sequence[Fault] = TRANSIENT) -> Plan:
    """Each request goes wrong with probability ``rate``; which, follows from the seed and the order of arrival."""
    draws, lock = random.Random(seed), threading.Lock()

    def plan(exchange: Exchange) -> Fault | None:
        with lock:
            return draws.choice(faults) if draws.random() < rate else None

    return plan


def first(fault: Fault, times: int, method: str = "", path: str = "") -> Plan:
    """The first ``times`` requests of a method on paths that contain ``path`` go wrong."""
    left, lock = [times], threading.Lock()

    def plan(exchange: Exchange) -> Fault | None:
        with lock:
            if left[0] and exchange.method.startswith(method) and path in exchange.path:
                left[0] -= 1
                return fault
        return None

    return plan


class FaultyProxy:
    """The proxy, on a free port of the loopback for the time of the block. ``plan`` may be replaced at any time."""

    def __init__(self, server: str, plan: Plan = lambda exchange: None) -> None:
        self.server = server
        self.plan = plan
        self.exchanges: list[tuple[Exchange, Fault | None]] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> FaultyProxy:
        self._httpd = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_address[1]}"

    def faults(self) -> list[Fault]:
        """What went wrong so far."""
        return [fault for _, fault in self.exchanges if fault]

    def decide(self, method: str, path: str) -> Fault | None:
        with self._lock:
            exchange = Exchange(len(self.exchanges), method, path)
            fault = self.plan(exchange)
            self.exchanges.append((exchange, fault))
        return fault

    def wait_for_hang_up(self, connection: socket.socket) -> None:
        connection.settimeout(0.1)
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = self.proxy.decide(self.command, self.path)
        if fault in STATUS:
            self._answer(STATUS[fault], [("Content-Type", "application/xml")], _error(fault), None)
        elif fault is Fault.SILENCE:
            self.proxy.wait_for_hang_up(self.connection)
            self.close_connection = True
        elif fault is Fault.RESET:
            self._reset()
        else:
            self._pass_on(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = handle_any  # noqa: N815

    def _pass_on(self, body: bytes, fault: Fault | None) -> None:
        server = http.client.HTTPConnection(self.proxy.server, timeout=60)
        try:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the host, too: it is signed
                if name.lower() not in HOP_BY_HOP - {"content-length"}:
                    server.putheader(name, value)
            server.endheaders(body)
            answer = server.getresponse()
            data, headers = answer.read(), answer.getheaders()
        finally:
            server.close()
        if fault is Fault.LOST_ANSWER:
            self._reset()
        else:
            self._answer(answer.status, headers, data, fault)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault | None) -> None:
        if fault is Fault.TRUNCATED and not data:
            self.close_connection = True
            return
        self.send_response_only(status)
        length = [value for name, value in headers if name.lower() == "content-length"] if not data else []
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length[0] if length else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if fault is Fault.TRUNCATED else data)
        if fault is Fault.TRUNCATED:
            self.close_connection = True

    def _reset(self) -> None:
        """End the connection by a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        self.rfile = self.wfile = open("/dev/null", "r+b", buffering=0)  # noqa: SIM115

    def log_message(self, format: str, *args: object) -> None:
        """Silent: ``exchanges`` has it all."""


def _error(fault: Fault) -> bytes:
    message = f"injected at {time.monotonic():.3f}"
    return f"<Error><Code>{fault.value}</Code><Message>{message}</Message></Error>".encode()
