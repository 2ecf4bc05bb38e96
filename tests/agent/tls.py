"""A CA made for a test, and a TLS proxy on 127.0.0.1 before a plain server."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import queue
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Authority:
    """A CA; `file` is its certificate, for clients."""

    file: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def issue(self, folder: Path, *, address: str = HOST, starts_in_days: float = -1) -> Path:
        """A server's certificate with its key, for one address and ten days."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = (
            _builder("server", self.certificate.subject, key, starts_in_days)
            .add_extension(name, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        path = folder / f"server-{address}-{starts_in_days:g}.pem"
        path.write_bytes(_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
        return path


def make_authority(folder: Path) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of a test")])
    certificate = (
        _builder("CA of a test", subject, key, -30)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "ca.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(path, key, certificate)


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, starts_in_days: float
) -> x509.CertificateBuilder:
    start = dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=starts_in_days)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=40))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@contextlib.contextmanager
def tls_proxy(certificate: Path, port: int) -> Iterator[str]:
    """The https address of a proxy that hands every connection on to `port` of 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    started: queue.Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(HOST, port)
        try:
            await asyncio.gather(_carry(reader, behind_writer), _carry(behind_reader, writer))
        except asyncio.CancelledError:
            pass  # Clients keep connections; the loop ends with the proxy.
        finally:
            behind_writer.transport.abort()
            writer.transport.abort()

    async def serve() -> None:
        server = await asyncio.start_server(connect, HOST, 0, ssl=context)
        stopping = asyncio.Event()
        here = server.sockets[0].getsockname()[1]
        started.put((here, asyncio.get_running_loop(), stopping))
        await stopping.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    here, loop, stopping = started.get(timeout=60)
    try:
        yield f"https://{HOST}:{here}"
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(60)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
