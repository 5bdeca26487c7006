"""`python -m pusa.serving.openapi` writes `openapi.json`, the definition of the API that clients may rely on."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pusa.files import write_json
from pusa.serving.app import make_app
from pusa.serving.served_model import ServedModel
from pusa.serving.server import Server, ServerOptions

FILE = Path(__file__).with_name("openapi.json")

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        server = Server(ServerOptions(ServedModel("tiny", "tiny"), Path(folder), workers=0))
        write_json(FILE, make_app(server).openapi())
        server.presence.leave()
