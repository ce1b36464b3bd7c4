"""The process that workers are forked from: imports done, one thread, nothing loaded. `python -m h2qd.worker.zygote`.

It forks, reaps and reports; it decides nothing, and never blocks on anyone. Its only caller is the
supervisor, which does this:

    ours, its = socket.socketpair()                                  # AF_UNIX, SOCK_STREAM
    subprocess.Popen([sys.executable, "-m", "h2qd.worker.zygote", "--fd", str(its.fileno())],
                     pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, stderr=…)   # from the main thread
    its.close()                                                      # else its end never closes
    # then ZygoteReady comes, and for each worker:
    here, there = socket.socketpair()
    socket.send_fds(ours, [frame(Fork(worker=n))], [there.fileno()])
    there.close()                                                    # else the worker's exit gives no EOF
    # then Forked(n, pid) comes, and some day Reaped(n, pid, status, peak_bytes)

`send_fds` may send less than all of the frame when `ours` does not block: send the rest without descriptors.
A worker's messages and EOF come through `here`, in no order against Forked and Reaped. The pid leads a
process group that may be signalled as soon as Forked came, until Reaped. A fork that the system refuses
is answered by Reaped with pid 0 and status `EXIT_NOT_FORKED`, without a Forked. stderr, shared with the
workers, carries one JSON object a line, beside what native code prints.

Invariant: when the supervisor is gone, however it went, so are this process and all workers: the kernel
kills each with its parent, and the closed socket ends both too.
"""

import argparse
import os
import select
import signal
import socket
import struct
from collections import deque
from typing import NoReturn

import msgspec

from h2qd.wire.workers import (
    ChannelError,
    Fork,
    Forked,
    FromZygote,
    Reaped,
    Reassembler,
    ZygoteReady,
    frame,
    to_zygote,
)
from h2qd.worker import journal, libraries, loop, process

EXIT_NOT_FORKED = os.EX_OSERR
"""Status in the Reaped of a worker that never was."""

_READ_BYTES = 4096
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: struct ucred of unix(7)


class Zygote:
    """Serves one control socket until it closes."""

    def __init__(self, control: socket.socket) -> None:
        control.setblocking(False)
        self._control = control
        self._children, self._child_signal = socket.socketpair()
        self._children.setblocking(False)
        self._child_signal.setblocking(False)
        self._inbox = Reassembler()
        self._descriptors: deque[int] = deque()  # received with frames that are not complete yet
        self._outbox = bytearray()
        self._workers: dict[int, int] = {}  # pid to worker

    def run(self, ready: ZygoteReady) -> None:
        """Say `ready`, then fork and reap until the supervisor closes its end. Raises `ChannelError`."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the wake-up descriptor is written
        signal.set_wakeup_fd(self._child_signal.fileno(), warn_on_full_buffer=False)
        self._send(ready)
        poll = select.poll()
        poll.register(self._children, select.POLLIN)
        while True:
            poll.register(self._control, select.POLLIN | (select.POLLOUT if self._outbox else 0))
            for fd, events in poll.poll():
                if fd == self._children.fileno():
                    self._reap()
                elif events & select.POLLOUT:
                    self._flush()
                elif not self._receive():
                    return

    def kill_workers(self) -> None:
        """End every worker and what it started, now."""
        for pid in self._workers:
            os.killpg(pid, signal.SIGKILL)

    # --- from the supervisor --------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Take what came. False: the supervisor is gone."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._control, _READ_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        self._descriptors.extend(fds)
        if flags & socket.MSG_CTRUNC:
            raise ChannelError("cannot take more than one descriptor with a message")
        for body in self._inbox.feed(data):
            try:
                order = to_zygote.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ChannelError(f"cannot read a message of {len(body)} bytes: {error}") from None
            if not self._descriptors:
                raise ChannelError(f"cannot fork worker {order.worker}: no descriptor came along")
            self._fork(order, self._descriptors.popleft())
        return bool(data)

    def _fork(self, order: Fork, descriptor: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            journal.record("zygote.fork_failed", error, worker=order.worker)
            self._send(Reaped(order.worker, 0, EXIT_NOT_FORKED, 0))
            os.close(descriptor)
            return
        if pid == 0:
            self._become_worker(order, descriptor, parent)
        os.close(descriptor)
        process.lead_group(pid)
        self._workers[pid] = order.worker
        self._send(Forked(order.worker, pid))

    def _become_worker(self, order: Fork, descriptor: int, parent: int) -> NoReturn:
        """In the child: nothing of the zygote may be reached from here on, nor returned to."""
        try:
            process.die_with_parent(parent)
            process.lead_group()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for ours in (self._control, self._children, self._child_signal):
                ours.close()
            process.close_all_but(descriptor)
            process.name_process(f"h2qd-worker-{order.worker}")
            process.yield_to_others(order.oom_score_adj, order.nice)
            os._exit(loop.serve(socket.socket(fileno=descriptor)))
        except BaseException as error:  # noqa: BLE001 - whatever it is, this is not the zygote
            journal.record("worker.failed", error, worker=order.worker)
            os._exit(os.EX_SOFTWARE)

    # --- to the supervisor ----------------------------------------------------------------------------

    def _reap(self) -> None:
        """Report all children that ended; one signal may stand for several."""
        try:
            while self._children.recv(_READ_BYTES):
                pass
        except BlockingIOError:
            pass
        while self._workers:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            os.killpg(ended.si_pid, signal.SIGKILL)  # before the reaping, while the number is surely its own
            pid, status, usage = os.wait4(ended.si_pid, 0)
            worker = self._workers.pop(pid)
            self._send(Reaped(worker, pid, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024))

    def _send(self, message: FromZygote) -> None:
        self._outbox += frame(message)
        self._flush()

    def _flush(self) -> None:
        """Send what the socket takes. The rest is bounded: two small messages for each Fork that was sent."""
        try:
            del self._outbox[: self._control.send(self._outbox)]
        except BlockingIOError:
            return
        except OSError:  # the supervisor is gone: the next read says so and ends everything
            self._outbox.clear()


def main() -> int:
    """Serve the control socket given as `--fd`; the exit status."""
    parser = argparse.ArgumentParser(prog="h2qd.worker.zygote", description="Forks h2qd's workers.")
    parser.add_argument("--fd", type=int, required=True, help="the control socket, inherited")
    parser.add_argument(
        "--remotes", action="store_true", help="import HTTP and TLS, too: some workers will need them"
    )
    options = parser.parse_args()
    control = socket.socket(fileno=options.fd)
    control.set_inheritable(False)
    credentials = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    supervisor, _, _ = _CREDENTIALS.unpack(credentials)
    process.die_with_parent(supervisor)
    process.leave_terminal()
    process.drop_cores()
    process.name_process("h2qd-zygote")
    zygote = Zygote(control)
    try:
        zygote.run(ZygoteReady(os.getpid(), libraries.preload(remotes=options.remotes)))
    except ChannelError as error:
        journal.record("zygote.channel_broken", error)
        return os.EX_SOFTWARE
    finally:
        zygote.kill_workers()
    return os.EX_OK


if __name__ == "__main__":
    raise SystemExit(main())
