"""A chat model behind OpenAI's protocol, on 127.0.0.1."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer(ThreadingHTTPServer):
    """Serves until closed.

    `answer(prompt, a, b)` gives the reply to a question; the statuses in `failures` are sent before
    that, one a request, and `headers` with them. `requests` are the bodies and headers that came.
    """

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.answer = answer
        self.failures = []
        self.headers = {}
        self.requests = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

    def reply(self, path, headers, body):
        with self.lock:
            self.requests.append((path, headers, body))
            if self.failures:
                # As a careless server would: with all that it was sent.
                return self.failures.pop(0), {"error": str(headers)}
        question = json.loads(body["messages"][-1]["content"])
        text = self.answer(question["prompt"], question["answer_A"], question["answer_B"])
        choice = {"index": 0, "finish_reason": "stop"}
        message = {"role": "assistant", "content": text}
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{**choice, "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, found = self.server.reply(self.path, dict(self.headers), body)
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
