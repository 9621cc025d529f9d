"""Starts the control API of one local region: moto with corrections, one lock around its state, and the keeper's endpoints."""

import argparse
import io
import os
import pathlib
import signal
import socket
import sys
import threading

# Nothing here may look for credentials or metadata outside this machine.
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
os.environ.setdefault("AWS_ACCESS_KEY_ID", "local")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "local")
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
# No default VPC, no stock images: a region starts empty.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import corrections  # noqa: E402
import identity  # noqa: E402
import keeper_api  # noqa: E402

# SQS waits inside a request (long polling) and keeps its own state apart.
_UNLOCKED = "/sqs/aws4_request"


class Application:
    """Serialises requests: moto's models are shared by threads and have no locks of their own."""

    def __init__(self, moto_application):
        self.moto = moto_application
        self.lock = threading.RLock()

    def __call__(self, environ, start_response):
        if environ.get("PATH_INFO", "").startswith("/_keeper/"):
            with self.lock:
                return keeper_api.answer(environ, start_response)
        if _UNLOCKED in environ.get("HTTP_AUTHORIZATION", ""):
            return self.moto(environ, start_response)
        # The body is read before the lock is taken, so that a slow client holds nobody up.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with self.lock:
            return self.moto(environ, start_response)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="address to listen on, e.g. 127.20.0.2")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--state", type=pathlib.Path, required=True, help="state folder of the region")
    parser.add_argument("--network", type=int, required=True, help="N of 127.N.0.0/16")
    options = parser.parse_args()
    if not options.address.startswith(f"127.{options.network}."):
        parser.error(f"address {options.address} is not in 127.{options.network}.0.0/16")

    identity.ensure_key(options.state)
    os.environ["MOTO_PORT"] = str(options.port)

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    corrections.apply()

    # Python's HTTP server asks the name service for its own name when it binds: a packet to elsewhere, and seconds when nobody answers.
    socket.getfqdn = lambda name="": name or options.address

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, code="-", size="-"):
            if isinstance(code, int) and code < 400:
                return
            super().log_request(code, size)

    application = Application(DomainDispatcherApplication(create_backend_app))
    server = make_server(options.address, options.port, application, threaded=True, request_handler=Handler)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: os._exit(0))
    print(f"control api listening address={options.address} port={options.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
