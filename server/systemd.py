"""What systemd is told of the server (sd_notify): one datagram to the socket that $NOTIFY_SOCKET names."""

import logging
import os
import socket
import time

log = logging.getLogger("enginehouse.server")
READY, STOPPING = "READY=1", "STOPPING=1"


def notify(*states: str) -> None:
    """Nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        try:
            connection.connect("\0" + address[1:] if address.startswith("@") else address)
            connection.send("\n".join(states).encode())
        except OSError as error:
            log.warning("systemd cannot be told '%s': %s", " ".join(states), error.strerror)


def reloading() -> str:
    """A unit of Type=notify-reload waits for READY=1 after it."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
