"""A small HTTP server on the loopback interface in the place of ``kvflow_jax.serve``."""

import asyncio
import json
from contextlib import asynccontextmanager

from experiments.load.connections import Address

CHUNKS = (
    {"choices": [{"text": "a"}]},
    {"choices": [{"text": "b"}]},
    {"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 3}}},
)
STREAM = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in CHUNKS)
METRICS = b'vllm:num_requests_running{a="b"} 0.0\nvllm:kv_cache_usage_perc{a="b"} 0.25\n'


class FakeServer:
    """Answers each request; ``requests`` has (method, path, headers, body) of each."""

    def __init__(self, status=200, headers=b"", stream=STREAM + b"data: [DONE]\n\n"):
        self.status, self.headers, self.stream = status, headers, stream
        self.requests = []

    @asynccontextmanager
    async def listening(self, key=None):
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            yield Address("127.0.0.1", port, key)

    async def _serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ", 2)
                self.requests.append((method, path, headers, body))
                writer.write(self._answer(path, body))
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _answer(self, path, body):
        if path in ("/health", "/flush_cache"):
            return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        if path == "/metrics":
            content = METRICS
        elif b'"stream": true' in body and self.status == 200:
            return b"HTTP/1.1 200 OK\r\n\r\n" + self.stream
        else:
            content = b"{}"
        head = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%b\r\n"
        return head % (self.status, len(content), self.headers) + content
