"""A hostile client, as busy as it can be. `python -m tests.bench.attack_process SOCKET KIND COUNT`.

`frames`: COUNT random frames in messages of one to three, the replies read; `frames-unread`: the same, nothing read.
`strangers`: COUNT connections that never say a word; `mutes`: COUNT that shake hands as ZeroMQ does and then are
silent. Says "begun" and "done"; connections stay until standard input ends.
"""

import contextlib
import random
import socket
import sys

import zmq

from h2qd.wire.frames import Request, request_frames
from h2qd.wire.limits import PROTOCOL_VERSION

_POOL = 4096
"""Different messages, made beforehand: the attack is to be limited by the daemon, not by its own dice."""

_HANDSHAKE_MS_MAX = 500


def main() -> int:
    """Attack."""
    path, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with contextlib.ExitStack() as held:
        print("begun", flush=True)
        if kind == "strangers":
            for _ in range(count):
                held.enter_context(stranger(path))
        elif kind == "mutes":
            mutes(held, path, count)
        else:
            flood(held, path, count, reads=kind == "frames")
        print("done", flush=True)
        sys.stdin.read()
    return 0


def messages() -> list[list[bytes]]:
    """Random bytes, and requests with a few bytes changed, the same in each run."""
    dice = random.Random(1)
    valid = request_frames(Request(PROTOCOL_VERSION, 1, "daemon.status"))
    made = []
    for _ in range(_POOL):
        if dice.random() < 0.5:
            frames = [dice.randbytes(int(dice.paretovariate(1) * 8) % 4096) for _ in range(dice.randint(1, 3))]
        else:
            frames = [_bent(frame, dice) for frame in valid]
        made.append(frames)
    return made


def _bent(frame: bytes, dice: random.Random) -> bytes:
    bent = bytearray(frame)
    bent[dice.randrange(len(bent))] = dice.randrange(256)
    return bytes(bent)


def flood(held: contextlib.ExitStack, path: str, count: int, *, reads: bool) -> None:
    """Send at least `count` frames, as fast as they are taken."""
    context = held.enter_context(zmq.Context())
    dealer = held.enter_context(context.socket(zmq.DEALER))
    dealer.linger = 0
    dealer.connect(f"ipc://{path}")
    pool = messages()
    sent = turn = 0
    while sent < count:
        frames = pool[turn % _POOL]
        dealer.send_multipart(frames)
        sent += len(frames)
        turn += 1
        if reads:
            with contextlib.suppress(zmq.Again):
                while True:
                    dealer.recv_multipart(zmq.NOBLOCK)


def stranger(path: str) -> socket.socket:
    """A connection that does not speak; the kernel makes it wait where too many do."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def mutes(held: contextlib.ExitStack, path: str, count: int) -> None:
    """Connections of ZeroMQ, each with its handshake behind it, unless the daemon lets no more in."""
    context = held.enter_context(zmq.Context())
    context.set(zmq.MAX_SOCKETS, 2 * count + 16)
    for _ in range(count):
        dealer = held.enter_context(context.socket(zmq.DEALER))
        dealer.linger = 0
        with dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
            dealer.connect(f"ipc://{path}")
            monitor.poll(_HANDSHAKE_MS_MAX)
            dealer.disable_monitor()


if __name__ == "__main__":
    sys.exit(main())
