"""The proxy of `beastmode.testing`: what it lets through, holds back and cuts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from beastmode.errors import ConfigError
from beastmode.testing import FaultProxy
from store_support import wait_until


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(door: socket.socket) -> None:
        with door:
            try:
                while data := door.recv(4096):
                    door.sendall(data)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                door, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(door,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


@pytest.fixture
def proxy(echo: str) -> Iterator[FaultProxy]:
    with FaultProxy(echo) as proxy:
        yield proxy


def connect(proxy: FaultProxy) -> socket.socket:
    name, port = proxy.host.split(":")
    return socket.create_connection((name, int(port)), timeout=5)


def is_cut(door: socket.socket) -> bool:
    try:
        return door.recv(10) == b""
    except ConnectionError:
        return True


def test_it_forwards_both_ways(proxy: FaultProxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        one.sendall(b"one")
        other.sendall(b"other")
        assert one.recv(10) == b"one"
        assert other.recv(10) == b"other"
    assert proxy.accepted == 2


def test_what_is_held_comes_later(proxy: FaultProxy) -> None:
    with connect(proxy) as door:
        door.sendall(b"before")
        assert door.recv(10) == b"before"
        proxy.hold()
        door.settimeout(0.1)
        with pytest.raises(TimeoutError):
            while True:  # hold() takes effect on the proxy's own thread
                door.sendall(b"x")
                assert door.recv(1) == b"x"
        proxy.pass_on()
        door.settimeout(5)
        assert door.recv(1) == b"x"


def test_a_cut_resets_and_lets_new_ones_in(proxy: FaultProxy) -> None:
    with connect(proxy) as door:
        door.sendall(b"hello")
        assert door.recv(10) == b"hello"
        proxy.cut()
        assert is_cut(door)
    with connect(proxy) as door:
        door.sendall(b"again")
        assert door.recv(10) == b"again"


def test_refused_until_healed(proxy: FaultProxy) -> None:
    with connect(proxy) as door:
        door.sendall(b"hello")
        assert door.recv(10) == b"hello"
        proxy.cut(refuse=True)
        assert is_cut(door)
    with connect(proxy) as door:
        assert is_cut(door)
    proxy.pass_on()

    def answers() -> bool:
        with connect(proxy) as door:
            door.sendall(b"hi")
            try:
                return door.recv(10) == b"hi"
            except ConnectionError:
                return False

    wait_until(answers)


def test_a_target_that_is_down_is_a_reset(echo: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with FaultProxy(f"127.0.0.1:{port}") as proxy, connect(proxy) as door:
        assert is_cut(door)


def test_closing_ends_it_all_even_while_it_holds(echo: str) -> None:
    proxy = FaultProxy(echo)
    with connect(proxy) as door:
        door.sendall(b"hello")
        assert door.recv(10) == b"hello"
        proxy.hold()
        door.sendall(b"more")
        proxy.close()
        proxy.close()
        assert is_cut(door)
    with pytest.raises(ConnectionError):
        connect(proxy)
    assert not [thread for thread in threading.enumerate() if thread.name == "fault-proxy"]


@pytest.mark.parametrize("target", ["", "127.0.0.1", "host:", ":80", "host:http"])
def test_bad_targets(target: str) -> None:
    with pytest.raises(ConfigError, match="target must be 'HOST:PORT'"):
        FaultProxy(target)
