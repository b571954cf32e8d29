"""What both listeners have in common: their options, and how they come to listen."""

from __future__ import annotations

import socket

import grpc

from iemas.core.errors import ConfigurationError, IemasError
from iemas.tls import common_options, join_host_port, split_host_port


def make_server_options(streams: int, max_message_bytes: int) -> list[tuple[str, int | str]]:
    """Give a server's options: at most so many streams a connection, and bytes a message."""
    return [
        *common_options(max_message_bytes),
        ("grpc.so_reuseport", 0),  # Or a second node would silently share the port.
        ("grpc.max_concurrent_streams", streams),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 5),
    ]


async def start_server(
    server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials, flag: str
) -> int:
    """Bind and start a server; give its port. Raises: ConfigurationError that names the flag."""
    try:
        port = server.add_secure_port(listen, credentials)
        await server.start()
    except RuntimeError as error:
        await server.stop(None)
        raise ConfigurationError(
            f"cannot listen on {listen}: {_explain_bind_failure(listen)}; "
            f"choose another address with {flag}",
            listen=listen,
        ) from error
    return port


def _explain_bind_failure(listen: str) -> str:
    """Ask the operating system again, since gRPC does not tell why it could not bind."""
    try:
        host, port = split_host_port(listen)
        family, kind, protocol, _, location = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(location)
    except OSError as error:
        return error.strerror or str(error)
    except IemasError as error:
        return str(error)
    return "the port is taken"


def advertise(listen: str, port: int, advertised: str | None = None) -> str:
    """Give the ``host:port`` that others should dial for a listener bound to `port`."""
    if advertised is not None:
        host, advertised_port = split_host_port(advertised)
        return join_host_port(host, advertised_port or port)
    return join_host_port(split_host_port(listen)[0], port)
