"""`enginehouse health`: asks the server that the config describes whether it lives; for Docker's HEALTHCHECK."""

import http.client
import ipaddress

from enginehouse.config.schema import Server

SECONDS = 2


def run(server: Server) -> int:
    """0 where it answers, else 1, and one line either way."""
    host, where = reachable(server.host), f"{server.host} port {server.port}"
    connection = http.client.HTTPConnection(host, server.port, timeout=SECONDS)
    try:
        connection.request("GET", "/health", headers={"host": "localhost"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"no server answers on {where}: {error}")
        return 1
    finally:
        connection.close()
    print(f"the server on {where} {'lives' if status == 200 else f'answers {status}'}")
    return 0 if status == 200 else 1


def reachable(host: str) -> str:
    """A server that listens on all addresses is asked on loopback."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return ("127.0.0.1" if address.version == 4 else "::1") if address.is_unspecified else host
