"""Which routes a client asks for: what it sends to a server passes through here."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

REQUEST = re.compile(rb"(?:^|[\n}])([A-Z]+) (/[^ ?\r\n]*)[^ \r\n]* HTTP/1\.1\r\n")
PIECE, LONGEST_LINE = 1 << 16, 1 << 12


@contextmanager
def overheard(port: int) -> Iterator[tuple[str, set[str]]]:
    """A URL that leads to this port of this machine, and the routes that were asked for there, as they come."""
    routes = set[str]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener, port, routes), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", routes
        listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in it


def accept(listener: socket.socket, port: int, routes: set[str]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        server = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=pass_on, args=(client, server, routes), daemon=True).start()
        threading.Thread(target=pass_on, args=(server, client, None), daemon=True).start()


def pass_on(source: socket.socket, target: socket.socket, routes: set[str] | None) -> None:
    held = b""
    with suppress(OSError):
        while piece := source.recv(PIECE):
            target.sendall(piece)
            if routes is not None:
                held = held[-LONGEST_LINE:] + piece
                routes |= {f"{method.decode()} {path.decode()}" for method, path in REQUEST.findall(held)}
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
