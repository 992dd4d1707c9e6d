"""A client of i-PI's sockets: computes what the server sends until it says that it is done.

The protocol is that of i-PI 3, with requests in batches where the server's ``<batch_size>`` says
so; of its transports UNIX sockets and TCP (shared memory: ``i-pi-driver-py --shm``).
"""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from typing import Any

import numpy as np
from ase.calculators.socketio import IPIProtocol, SocketClosed
from numpy.typing import NDArray

from phicalc.engines.ipi import Answer, Driver
from phicalc.errors import ServerError, StoppedError
from phicalc.machine.signals import Interrupted, stop_on_signals

Array = NDArray[np.float64]

PREFIX = "/tmp/ipi_"
"""What i-PI puts before the name of a UNIX socket."""

_PAUSE = 0.1  # s between attempts to connect
_FAREWELL = 1.0  # s for the server to take notice of an end
_CHUNK = 2**16  # bytes


def serve(
    driver: Driver,
    *,
    unix: str | None = None,
    host: str = "localhost",
    port: int | None = None,
    prefix: str = PREFIX,
    wait: float = 10.0,
) -> int:
    """Compute for an i-PI server until it ends; any number of clients may do so at a time.

    Parameters
    ----------
    driver
        What computes.
    unix
        Name of the server's UNIX socket, its ``<address>``; None: TCP.
    host, port
        Where the server listens.
    prefix
        Of UNIX sockets' files.
    wait
        Seconds to wait for a server that isn't there yet.

    Returns
    -------
    int
        How many structures were computed.

    Raises
    ------
    ServerError
        No server there, or the connection broke before the server said that it is done.
    StoppedError
        SIGINT or SIGTERM, for which it ends at once.
    PhicalcError
        What the driver raises. The server gives its request to another client then.
    """
    address: Any = (host, port) if unix is None else prefix + unix
    family = socket.AF_INET if unix is None else socket.AF_UNIX
    with stop_on_signals() as stop, _leaving(_connected(family, address, wait)) as connection:
        conversation = _Conversation(connection, driver)
        try:
            with stop.interrupting():
                conversation.run()
        except Interrupted:
            assert stop.name is not None
            raise StoppedError(
                f"ended by {stop.name} after {conversation.count} structures; i-PI goes on with "
                "its other clients",
                stop.name,
            ) from None
        return conversation.count


@contextmanager
def _leaving(connection: socket.socket) -> Iterator[socket.socket]:
    """A connection that ends without unread data, however it ends.

    i-PI 3.3 takes a client that leaves so for gone and gives its work to another; one that leaves
    something unread resets the connection, and the server waits for ever.
    """
    with closing(connection):
        try:
            yield connection
        finally:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(_FAREWELL)
                while connection.recv(_CHUNK):
                    pass


def _connected(family: socket.AddressFamily, address: Any, wait: float) -> socket.socket:
    """A connection to the server, which may be starting only now."""
    last = time.monotonic() + wait
    while True:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect(address)
            return connection
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            if time.monotonic() >= last:
                raise ServerError(_no_server(address, error)) from error
        except OSError as error:
            connection.close()
            raise ServerError(_no_server(address, error)) from error
        time.sleep(_PAUSE)


def _no_server(address: Any, error: OSError) -> str:
    tcp = not isinstance(address, str)
    place = f"{address[0]}:{address[1]}" if tcp else f"UNIX socket {address}"
    remedy = "start it first, `i-pi input.xml`, with this address in its <ffsocket>"
    try:
        metadata.version("ipi")
    except metadata.PackageNotFoundError:
        remedy += "; i-PI is not installed here: pip install ipi"
    return f"expected an i-PI server at {place}, got none ({error.strerror or error}); {remedy}"


class _Protocol(IPIProtocol):
    """ASE's, for numbers of any value: what is wrong with them the driver says better."""

    def recv(self, shape: Any, dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(self._recvall(size), dtype).reshape(shape).copy()


class _Conversation:
    """What server and client say to each other, from the client's side.

    Attributes
    ----------
    count
        How many structures were computed.
    """

    def __init__(self, connection: socket.socket, driver: Driver) -> None:
        self._protocol = _Protocol(connection)
        self._driver = driver
        self._initialised = False
        self._batch_size = 1
        self._answers: list[Answer] | None = None
        self.count = 0

    def run(self) -> None:
        """Answer until the server says EXIT."""
        try:
            message = self._protocol.recvmsg()
            while message != "EXIT":
                message = self._answer(message)
        except (SocketClosed, ConnectionError) as error:
            raise ServerError(
                f"the i-PI server broke the connection after {self.count} structures; its own "
                "output says why"
            ) from error

    def _answer(self, message: str) -> str:
        """Do what the server says; returns what it says next."""
        if message == "POSDATA":
            structures = self._receive()
            # The server asks on at once, and that is read before anything is computed: what is
            # killed while it computes leaves nothing unread (see _leaving)
            following: str = self._protocol.recvmsg()
            self._answers = self._compute(*structures)
            return following
        if message == "STATUS":
            self._tell_status()
        elif message == "INIT":
            self._initialise()
        elif message == "GETFORCE":
            self._send()
        else:
            raise ServerError(
                f"expected a message of i-PI's protocol, got {message!r}; check that an i-PI "
                "server listens there, not with mode='shm'"
            )
        after: str = self._protocol.recvmsg()
        return after

    def _tell_status(self) -> None:
        waiting = "READY" if self._initialised else "NEEDINIT"
        self._protocol.sendmsg(waiting if self._answers is None else "HAVEDATA")

    def _initialise(self) -> None:
        _, text = self._protocol.recvinit()
        said = re.search(rb"batch_size\s*:\s*(\d+)", text.tobytes())
        self._batch_size = int(said[1]) if said else 1
        self._initialised = True

    def _receive(self) -> tuple[Array, Array]:
        """Cells (structures, 3, 3) and positions (structures, N, 3) in Bohr."""
        size = self._batch_size
        if size > 1:
            number = self._number()
            cells = self._protocol.recv((size, 2, 3, 3), np.float64)
        else:
            cells = self._protocol.recv((1, 2, 3, 3), np.float64)
            number = self._number()
        return cells[:, 0], self._protocol.recv((size, number, 3), np.float64)

    def _compute(self, cells: Array, positions: Array) -> list[Answer]:
        self.count += len(cells)
        if len(cells) == 1:
            return [self._driver(cells[0], positions[0])]
        answers: list[Answer] = self._driver(list(cells), list(positions))
        return answers

    def _number(self) -> int:
        number = int(self._protocol.recv((), np.int32))
        self._driver.check_number(number)
        return number

    def _send(self) -> None:
        assert self._answers is not None
        energies, forces, virials, extras = zip(*self._answers, strict=True)
        protocol = self._protocol
        protocol.sendmsg("FORCEREADY")
        protocol.send(energies, np.float64)
        protocol.send(len(forces[0]), np.int32)
        protocol.send(forces, np.float64)
        protocol.send(virials, np.float64)
        for text in extras:
            protocol.send(len(text.encode()), np.int32)
            protocol.socket.sendall(text.encode())
        self._answers = None
