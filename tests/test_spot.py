"""A provider's notice that it takes a machine back: heard, whatever its metadata server does before."""

import http.server
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest

from cluster import spot

NOTHING = (404, "")


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server that gives its answers in turn, the last for ever; and what it was asked."""
    monkeypatch.setattr(spot, "INTERVAL_S", 0.01)
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            asked.append((self.command, self.path, dict(self.headers)))
            self.answer(200, "a-token")

        def do_GET(self):
            asked.append((self.command, self.path, dict(self.headers)))
            self.answer(*(answers.pop(0) if len(answers) > 1 else answers[0]))

        def answer(self, code, text):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers, asked
    server.shutdown()


def test_of_aws_is_heard_once_there_is_one_with_the_seconds_that_are_left(metadata):
    address, answers, asked = metadata
    ends_at = (datetime.now(UTC) + timedelta(seconds=120)).strftime("%Y-%m-%dT%H:%M:%SZ")
    notice = json.dumps({"action": "terminate", "time": ends_at})
    answers += [NOTHING, NOTHING, (500, ""), (200, "{"), (200, "{}"), (200, "[]"), (200, notice)]
    assert spot.wait("aws", address) == pytest.approx(120, abs=5)
    put, get = asked[:2]
    assert put[:2] == ("PUT", "/latest/api/token")
    assert get[1] == "/latest/meta-data/spot/instance-action"
    assert {name.lower(): value for name, value in get[2].items()}["x-aws-ec2-metadata-token"] == "a-token"
    assert len(asked) == 14


def test_of_google_is_heard_once_there_is_one(metadata):
    address, answers, asked = metadata
    answers += [(200, "FALSE"), (503, ""), (200, "TRUE")]
    assert spot.wait("gcp", address) == 30
    assert [path for _, path, _ in asked] == ["/computeMetadata/v1/instance/preempted"] * 3
    assert {name.lower(): value for name, value in asked[0][2].items()}["metadata-flavor"] == "Google"
