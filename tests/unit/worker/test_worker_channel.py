"""The worker's end of its socket."""

import socket
import threading
from collections.abc import Iterator

import pytest

from h2qd.wire.limits import WORKER_FRAME_BYTES_MAX
from h2qd.wire.workers import ChannelError, FromWorker, Ping, Pong, Reassembler, StopWorker, Text, frame, from_worker
from h2qd.worker.channel import Channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, its = socket.socketpair()
    its.setblocking(False)  # as a careless maker may leave it
    ours.settimeout(10)
    with ours, its:
        yield Channel(its), ours


def test_messages_come_whole_however_they_were_cut(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    data = frame(Ping(1)) + frame(Ping(2)) + frame(StopWorker())
    received = channel.receive()

    def dribble() -> None:
        for byte in data:
            peer.sendall(bytes([byte]))
        peer.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=dribble)
    sender.start()
    assert list(received) == [Ping(1), Ping(2), StopWorker()]
    sender.join()


def test_a_cut_message_at_the_end_is_no_message(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    peer.sendall(frame(Ping(1)) + frame(Ping(2))[:-1])
    peer.shutdown(socket.SHUT_WR)
    assert list(channel.receive()) == [Ping(1)]


def test_a_peer_gone_with_unread_messages_is_an_end(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    channel.send(Pong(1, 0, busy=False))
    peer.close()
    assert list(channel.receive()) == []


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", b"\x81\xa1t\xa4ping", b"\x81\xa1t\xa3???", b"\x90" * 5000])
def test_what_is_no_message_is_refused(ends: tuple[Channel, socket.socket], body: bytes) -> None:
    channel, peer = ends
    peer.sendall(len(body).to_bytes(4, "big") + body)
    with pytest.raises(ChannelError, match="cannot read a message"):
        next(channel.receive())


def test_a_length_over_the_limit_is_refused_before_it_is_read(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    peer.sendall((WORKER_FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(ChannelError, match="cannot read"):
        next(channel.receive())


def test_threads_do_not_mix_their_messages(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends

    def talk(n: int) -> None:
        for _ in range(5):
            channel.send(Text(n, str(n) * 100_000, 1))

    threads = [threading.Thread(target=talk, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    inbox = Reassembler()
    texts: list[FromWorker] = []
    while len(texts) < 20:
        texts += [from_worker.decode(body) for body in inbox.feed(peer.recv(65536))]
    for thread in threads:
        thread.join()
    for message in texts:
        assert isinstance(message, Text)
        assert message.text == str(message.request) * 100_000


def test_sending_waits_for_a_slow_peer_and_ends_with_it(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    failed = threading.Event()

    def flood() -> None:
        try:
            while True:
                channel.send(Text(1, "x" * 65536, 1))
        except OSError:
            failed.set()

    sender = threading.Thread(target=flood)
    sender.start()
    peer.recv(1)
    assert not failed.is_set()
    peer.close()
    sender.join(10)
    assert failed.is_set()


def test_a_message_that_is_too_large_is_not_sent(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    with pytest.raises(ChannelError, match="cannot send"):
        channel.send(Text(1, "x" * (WORKER_FRAME_BYTES_MAX + 1), 1))
    channel.send(Pong(1, 2, busy=True))
    assert peer.recv(100) == frame(Pong(1, 2, busy=True))
