"""Zygote, workers and the fake engine as real processes over real sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from h2qd.wire.workers import (
    CancelGeneration,
    Fork,
    Forked,
    Generated,
    GenerationFailed,
    Inspected,
    InspectFile,
    Loaded,
    LoadFailed,
    Loading,
    LoadModel,
    Parked,
    ParkModel,
    Ping,
    Pong,
    Prefilling,
    Reaped,
    ResumeModel,
    StopWorker,
    Text,
    ZygoteReady,
    frame,
)
from tests.unit.worker.zygote_peer import REPOSITORY, Watch, WorkerPeer, ZygotePeer, ask, kill, write_script, zygote

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZygotePeer]:
    with zygote(tmp_path_factory.mktemp("zygote")) as peer:
        yield peer


@pytest.fixture
def worker(shared: ZygotePeer) -> Iterator[tuple[WorkerPeer, int]]:
    """A worker that is killed and reaped after the test, however it left it."""
    peer, pid = shared.fork(7)
    with peer:
        yield peer, pid
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    shared.reaped(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- the zygote itself --------------------------------------------------------------------------------


def test_ready_names_the_process_and_its_libraries(shared: ZygotePeer) -> None:
    assert isinstance(shared.ready, ZygoteReady)
    assert shared.ready.pid == shared.process.pid
    assert shared.ready.libraries["python"] == sys.version.split()[0]


def test_zygote_has_one_thread_and_stays_small(shared: ZygotePeer) -> None:
    proc = Path(f"/proc/{shared.process.pid}")
    assert len(list((proc / "task").iterdir())) == 1
    rollup = (proc / "smaps_rollup").read_text()
    pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss_kib < 45 * 1024


def test_zygote_leaks_no_descriptor(shared: ZygotePeer) -> None:
    fds = Path(f"/proc/{shared.process.pid}/fd")
    before = len(list(fds.iterdir()))
    for n in range(10):
        peer, pid = shared.fork(n)
        peer.send(StopWorker())
        assert shared.reaped(pid).status == 0
        peer.sock.close()
    assert len(list(fds.iterdir())) == before


def test_daemon_that_reads_late_gets_everything(tmp_path: Path) -> None:
    with zygote(tmp_path, small_buffer=True) as peer:
        workers = [peer.start_fork(n) for n in range(20)]
        for worker in workers:
            worker.send(StopWorker())
            assert worker.rest() == []
            worker.sock.close()
        messages = [peer.receive() for _ in range(40)]
        assert [m.worker for m in messages if isinstance(m, Forked)] == list(range(20))
        assert sorted(m.worker for m in messages if isinstance(m, Reaped)) == list(range(20))


def test_fork_frame_may_come_in_pieces(shared: ZygotePeer) -> None:
    here, there = socket.socketpair()
    with here, there:
        data = frame(Fork(3))
        socket.send_fds(shared.control, [data[:2]], [there.fileno()])
        for byte in data[2:]:
            shared.control.sendall(bytes([byte]))
        forked = shared.receive()
        assert isinstance(forked, Forked)
        assert forked.worker == 3
    assert shared.reaped(forked.pid).status == os.EX_IOERR


@pytest.mark.parametrize("data", [frame(Fork(1)), b"\x00\x00\x00\x02\x90\x90", b"\xff\xff\xff\xff"])
def test_broken_control_message_ends_zygote_and_workers(tmp_path: Path, data: bytes) -> None:
    with zygote(tmp_path) as peer:
        worker, pid = peer.fork(1)
        watch = Watch(pid)
        with worker:
            peer.control.sendall(data)
            assert peer.process.wait(5) == os.EX_SOFTWARE
            assert watch.ended(1)
        assert [entry["event"] for entry in peer.log()][-1:] == ["zygote.channel_broken"]


def test_fork_with_two_descriptors_is_refused(tmp_path: Path) -> None:
    with zygote(tmp_path) as peer:
        socket.send_fds(peer.control, [frame(Fork(1))], [0, 0])
        assert peer.process.wait(5) == os.EX_SOFTWARE
        assert "descriptor" in str(peer.log()[-1]["error"])


def test_a_broken_llama_library_leaves_other_engines_alone(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("raise RuntimeError('broken')\n")
    with zygote(tmp_path, env={"PYTHONPATH": str(tmp_path)}) as peer:
        assert isinstance(peer.ready, ZygoteReady)
        assert "llama-cpp-python" not in peer.ready.libraries
        assert [entry["event"] for entry in peer.log()] == ["zygote.import_failed"]
        worker, pid = peer.fork(1)
        with worker:
            worker.load(write_script(tmp_path))
        peer.reaped(pid)
        worker, pid = peer.fork(2)
        with worker:
            worker.send(LoadModel("llama", "/model.gguf", 64))
            failed = worker.receive()
            assert isinstance(failed, LoadFailed)
            assert failed.code == "load_failed"
            assert "llama-cpp-python" in failed.message
            assert peer.reaped(pid).status == 0


# --- what a worker is to the system -------------------------------------------------------------------


def test_worker_is_what_linux_was_told(shared: ZygotePeer) -> None:
    peer, pid = shared.fork(42, nice=5)
    with peer:
        peer.send(Ping(1))
        assert peer.receive() == Pong(1, 0, busy=False)
        proc = Path(f"/proc/{pid}")
        assert (proc / "comm").read_text() == "h2qd-worker-42\n"
        assert (proc / "oom_score_adj").read_text() == "900\n"
        assert os.getpriority(os.PRIO_PROCESS, pid) == 5
        assert os.getpgid(pid) == pid
        assert os.getsid(pid) == shared.process.pid
        fds = {int(entry.name): str(entry.readlink()) for entry in (proc / "fd").iterdir()}
        assert [link.split(":")[0] for fd, link in fds.items() if fd > 2] == ["socket"]
        core = next(line for line in (proc / "limits").read_text().splitlines() if "core file" in line)
        assert core.split()[4:6] == ["0", "0"]
    assert shared.reaped(pid).status == os.EX_IOERR


def test_ctrl_c_reaches_neither_zygote_nor_worker(shared: ZygotePeer, worker: tuple[WorkerPeer, int]) -> None:
    peer, pid = worker
    peer.send(Ping(1))
    assert peer.receive() == Pong(1, 0, busy=False)
    os.killpg(pid, signal.SIGINT)
    os.kill(shared.process.pid, signal.SIGINT)
    assert os.getpgid(shared.process.pid) != os.getpgid(0)
    peer.send(Ping(2))
    assert peer.receive() == Pong(2, 0, busy=False)
    assert shared.process.poll() is None


# --- conversations --------------------------------------------------------------------------------------


def test_load_generate_stop(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.send(LoadModel("fake", str(write_script(tmp_path, load_ms=200, tokens=4)), 128))
        loaded, before = peer.until(Loaded)
        assert loaded.ctx == 128
        assert loaded.load_ms >= 200
        fractions = [message.fraction for message in before if isinstance(message, Loading)]
        assert len(fractions) == len(before)
        assert 2 <= len(fractions) <= 5
        assert fractions == sorted(fractions)
        for request in (10, 11):
            peer.send(ask(request))
            generated, before = peer.until(Generated)
            assert "".join(message.text for message in before if isinstance(message, Text)) == "tok0 tok1 tok2 tok3 "
            prefills = [message for message in before if isinstance(message, Prefilling)]
            assert prefills[-1] == Prefilling(request, 4, 4)
            assert (generated.request, generated.finish) == (request, "stop")
            assert (generated.prompt_tokens, generated.completion_tokens) == (4, 4)
        peer.send(StopWorker())
        assert peer.rest() == []
    reaped = shared.reaped(pid)
    assert (reaped.worker, reaped.status) == (1, 0)
    assert 4 * MIB < reaped.peak_bytes < 100 * MIB


def test_requests_sent_together_are_answered_in_turn(worker: tuple[WorkerPeer, int], tmp_path: Path) -> None:
    peer, _ = worker
    peer.load(write_script(tmp_path, tokens=2))
    peer.send(*(ask(n) for n in range(5)))
    assert [peer.until(Generated)[0].request for _ in range(5)] == list(range(5))


def test_cancel_in_prefill_decode_and_queue(worker: tuple[WorkerPeer, int], tmp_path: Path) -> None:
    peer, _ = worker
    peer.load(write_script(tmp_path, tokens=1000, token_ms=50, prefill_ms=500, prompt_tokens=10))
    peer.send(ask(1), ask(2), ask(3))
    peer.until(Prefilling)
    peer.send(CancelGeneration(3), CancelGeneration(1), CancelGeneration(99))
    generated, _ = peer.until(Generated)
    assert (generated.request, generated.finish, generated.completion_tokens) == (1, "cancelled", 0)
    peer.until(Text)
    peer.send(CancelGeneration(2))
    generated, _ = peer.until(Generated)
    assert (generated.request, generated.finish) == (2, "cancelled")
    assert 1 <= generated.completion_tokens < 100
    generated, before = peer.until(Generated)
    assert (generated.request, generated.finish, before) == (3, "cancelled", [])


def test_cancel_right_behind_its_request_is_not_lost(worker: tuple[WorkerPeer, int], tmp_path: Path) -> None:
    peer, _ = worker
    peer.load(write_script(tmp_path, tokens=1000, token_ms=1000))
    for request in range(20):
        peer.sock.sendall(frame(ask(request)) + frame(CancelGeneration(request)))
        assert peer.until(Generated)[0].finish == "cancelled"


def test_a_failed_request_leaves_the_worker_alive(worker: tuple[WorkerPeer, int], tmp_path: Path) -> None:
    peer, _ = worker
    peer.load(write_script(tmp_path, tokens=5, fail_at_token=2))
    for request in (1, 2):
        peer.send(ask(request))
        failed, before = peer.until(GenerationFailed)
        assert (failed.request, failed.code) == (request, "generation_failed")
        assert sum(isinstance(message, Text) for message in before) == 2
    peer.send(ask(3, "word " * 200))
    assert peer.until(GenerationFailed)[0].code == "context_overflow"


def test_ping_tells_a_working_engine_from_a_hung_one(worker: tuple[WorkerPeer, int], tmp_path: Path) -> None:
    peer, _ = worker
    peer.load(write_script(tmp_path, tokens=10, token_ms=1, hang_at_token=5))
    peer.send(Ping(1), ask(1))
    idle, _ = peer.until(Pong)
    assert not idle.busy
    for _ in range(5):
        peer.until(Text)
    frozen = idle.beat + 10 + 5 + 1  # prefill, tokens, and the step that never ends
    pong = idle
    while pong.beat != frozen:
        peer.send(Ping(2))
        pong, _ = peer.until(Pong)
        assert pong.busy
        assert idle.beat < pong.beat <= frozen
    peer.send(Ping(3), CancelGeneration(1), Ping(4))
    assert peer.until(Pong)[0] == Pong(3, frozen, busy=True)
    assert peer.until(Pong)[0] == Pong(4, frozen, busy=True)
    assert peer.silent(0.1)
    peer.send(StopWorker())  # the reader still hears
    assert peer.rest() == []


def test_beat_grows_while_loading_and_stops_when_the_load_hangs(
    worker: tuple[WorkerPeer, int], tmp_path: Path
) -> None:
    peer, _ = worker
    peer.send(LoadModel("fake", str(write_script(tmp_path, load_hang=True)), 64))
    peer.until(Loading)
    peer.send(Ping(1), Ping(2))
    first, second = peer.until(Pong)[0], peer.until(Pong)[0]
    assert first.busy
    assert first.beat == second.beat == 1


def test_a_wedged_process_answers_nothing_and_dies_by_signal_only(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.load(write_script(tmp_path, wedge_at_token=0))
        peer.send(ask(1))
        peer.until(Prefilling)
        while isinstance(message := peer.receive(), Prefilling) and message.done < message.total:
            pass
        assert peer.silent(0.1)
        peer.send(Ping(1), StopWorker())
        assert peer.silent(0.2)
        os.killpg(pid, signal.SIGTERM)
        assert peer.rest() == []
    assert shared.reaped(pid).status == -signal.SIGTERM


def test_kill_ladder_against_a_deaf_worker(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        script = write_script(
            tmp_path, tokens=1000, token_ms=5, ignore_cancel=True, ignore_stop=True, ignore_sigterm=True
        )
        peer.load(script)
        peer.send(ask(1))
        peer.until(Text)
        peer.send(CancelGeneration(1), Ping(1))
        peer.until(Pong)
        peer.send(StopWorker())
        peer.until(Text)
        os.killpg(pid, signal.SIGTERM)
        peer.until(Text)
        os.killpg(pid, signal.SIGKILL)
        peer.rest()
    assert shared.reaped(pid).status == -signal.SIGKILL


def test_exit_code_of_the_script(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.load(write_script(tmp_path, exit_code=3))
        peer.send(StopWorker())
        peer.rest()
    assert shared.reaped(pid).status == 3


@pytest.mark.parametrize("script", [{"load_crash_at": 0.5}, {"crash_at_token": 3}])
def test_crashes_are_reaped_with_their_signal(
    shared: ZygotePeer, tmp_path: Path, script: dict[str, float | int]
) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.send(LoadModel("fake", str(write_script(tmp_path, **script)), 64), ask(1))
        texts = [message for message in peer.rest() if isinstance(message, Text)]
        assert len(texts) == (3 if "crash_at_token" in script else 0)
    assert shared.reaped(pid).status == -signal.SIGSEGV


def pss_bytes(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024


def test_a_parked_worker_gives_the_context_back_and_resumes(worker: tuple[WorkerPeer, int], tmp_path: Path) -> None:
    peer, pid = worker
    peer.load(write_script(tmp_path, memory_bytes=16 * MIB, context_bytes=64 * MIB, tokens=2))
    ready = pss_bytes(pid)
    peer.send(ParkModel())
    assert peer.receive() == Parked()
    assert 62 * MIB < ready - pss_bytes(pid) < 66 * MIB
    peer.send(ask(1))
    assert peer.receive() == GenerationFailed(1, "not_loaded", "cannot generate: the model is parked")
    peer.send(Ping(1))
    pong = peer.receive()
    assert isinstance(pong, Pong)
    assert not pong.busy
    peer.send(ResumeModel(256, slots=2))
    resumed, _ = peer.until(Loaded)
    assert resumed.ctx == 128
    assert abs(pss_bytes(pid) - ready) < 2 * MIB
    peer.send(ask(2))
    assert peer.until(Generated)[0].finish == "stop"


def test_memory_is_real_and_its_peak_reported(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.load(write_script(tmp_path, memory_bytes=64 * MIB, tokens=4, leak_bytes_per_token=8 * MIB))
        peer.send(ask(1))
        peer.until(Generated)
        assert pss_bytes(pid) > 94 * MIB
    peak = shared.reaped(pid).peak_bytes
    assert 96 * MIB < peak < 200 * MIB


def test_a_load_that_fails_says_so_and_exits_clean(shared: ZygotePeer, tmp_path: Path) -> None:
    for path, code in (
        (write_script(tmp_path, load_fail=["no_fit", "too large"]), "no_fit"),
        (tmp_path / "absent", "file_not_found"),
    ):
        peer, pid = shared.fork(1)
        with peer:
            peer.send(LoadModel("fake", str(path), 64))
            failed, _ = peer.until(LoadFailed)
            assert failed.code == code
            assert peer.rest() == []
        assert shared.reaped(pid).status == 0


def test_a_second_load_is_refused(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        script = write_script(tmp_path)
        peer.load(script)
        peer.send(LoadModel("fake", str(script), 64))
        assert peer.until(LoadFailed)[0].code == "load_failed"
        assert peer.rest() == []
    assert shared.reaped(pid).status == 0


def test_generate_without_a_model_is_answered(worker: tuple[WorkerPeer, int]) -> None:
    peer, _ = worker
    peer.send(ask(5))
    assert peer.receive() == GenerationFailed(5, "not_loaded", "cannot generate: this worker holds no model")


def test_orders_to_park_or_resume_out_of_turn_are_ignored(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.send(ParkModel(), ResumeModel(64))
        peer.load(write_script(tmp_path, tokens=3, token_ms=5))
        peer.send(ResumeModel(64), ask(1), ParkModel(), ResumeModel(64))
        ended, before = peer.until(Generated)
        assert ended.finish == "stop"
        assert not [said for said in before if isinstance(said, Parked | Loaded)]
        peer.send(ParkModel(), ParkModel())
        assert [peer.receive(), peer.receive()] == [Parked(), Parked()], "parked already is parked"
        peer.send(StopWorker())
        assert peer.rest() == []
    assert shared.reaped(pid).status == 0
    ignored = [entry["order"] for entry in shared.log() if entry["pid"] == pid]
    assert ignored == ["park", "resume", "resume", "park", "resume"]


def test_a_resumption_that_fails_says_so_and_exits_clean(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.load(write_script(tmp_path, resume_fail=["load_failed", "no room for a context"]))
        peer.send(ParkModel(), ResumeModel(64))
        assert peer.receive() == Parked()
        assert peer.receive() == LoadFailed("load_failed", "no room for a context")
        assert peer.rest() == []
    assert shared.reaped(pid).status == 0


def test_an_engine_in_doubt_answers_its_requests_and_ends(shared: ZygotePeer, tmp_path: Path) -> None:
    # More memory than there are addresses: the engine's MemoryError is no EngineError.
    peer, pid = shared.fork(1)
    with peer:
        peer.load(write_script(tmp_path, tokens=2, leak_bytes_per_token=2**62))
        peer.send(ask(1), ask(2))
        failed = [message for message in peer.rest() if isinstance(message, GenerationFailed)]
        assert [(message.request, message.code) for message in failed] == [
            (1, "generation_failed"),
            (2, "generation_failed"),
        ]
    assert shared.reaped(pid).status == os.EX_SOFTWARE
    entry = shared.log()[-1]
    assert entry["event"] == "worker.engine_failed"
    assert str(entry["error"]).startswith("MemoryError")


def test_an_unexpected_error_in_a_load_is_a_failed_load(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.send(LoadModel("fake", str(write_script(tmp_path, memory_bytes=2**62)), 64))
        assert peer.until(LoadFailed)[0].code == "load_failed"
        assert peer.rest() == []
    assert shared.reaped(pid).status == os.EX_SOFTWARE


def test_inspection(worker: tuple[WorkerPeer, int], tmp_path: Path) -> None:
    peer, _ = worker
    path = write_script(tmp_path, facts={"title": "small", "context_length": 99})
    peer.send(InspectFile(str(path)))
    inspected, _ = peer.until(Inspected)
    assert (inspected.facts.format, inspected.facts.title, inspected.facts.context_length) == ("fake", "small", 99)
    assert inspected.sha256 == sha256(path.read_bytes()).hexdigest()
    status = path.stat()
    assert inspected.identity == [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def test_inspection_of_what_is_no_model_ends_the_worker(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.send(InspectFile(str(tmp_path)))
        assert peer.until(LoadFailed)[0].code == "invalid_model_file"
        assert peer.rest() == []
    assert shared.reaped(pid).status == 0


@pytest.mark.parametrize(
    "data", [b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x01\x90", b"\xff\xff\xff\xff", b"\x00\x00\x00\x04\x81\xa1t\xc0"]
)
def test_a_malformed_frame_ends_the_worker_with_a_line_on_stderr(shared: ZygotePeer, data: bytes) -> None:
    peer, pid = shared.fork(1)
    with peer:
        peer.sock.sendall(data)
        assert peer.rest() == []
    assert shared.reaped(pid).status == os.EX_SOFTWARE
    assert [entry["event"] for entry in shared.log() if entry["pid"] == pid] == ["worker.channel_broken"]


# --- nothing outlives the supervisor --------------------------------------------------------------------


def test_a_closed_channel_ends_a_worker_in_the_middle_of_a_load(shared: ZygotePeer, tmp_path: Path) -> None:
    peer, pid = shared.fork(1)
    watch = Watch(pid)
    with peer:
        peer.send(LoadModel("fake", str(write_script(tmp_path, load_hang=True)), 64))
        peer.until(Loading)
    assert watch.ended(1)
    assert shared.reaped(pid).status == os.EX_IOERR


def test_a_closed_control_socket_ends_zygote_and_workers(tmp_path: Path) -> None:
    with zygote(tmp_path) as peer:
        script = write_script(tmp_path, ignore_sigterm=True, ignore_stop=True, load_hang=True)
        workers = [peer.fork(n) for n in range(2)]
        watches = [Watch(pid) for _, pid in workers]
        workers[0][0].send(LoadModel("fake", str(script), 64))
        workers[0][0].until(Loading)
        peer.control.close()
        assert peer.process.wait(1) == 0
        assert all(watch.ended(1) for watch in watches)
        for worker, _ in workers:
            worker.sock.close()


def test_killing_the_zygote_kills_its_workers(tmp_path: Path) -> None:
    with zygote(tmp_path) as peer:
        worker, pid = peer.fork(1)
        watch = Watch(pid)
        with worker:
            worker.send(LoadModel("fake", str(write_script(tmp_path, load_hang=True)), 64))
            worker.until(Loading)
            kill(peer.process.pid)
            assert watch.ended(1)


_DAEMON = """
import os, signal, sys
from pathlib import Path
from h2qd.wire.workers import Loading, LoadModel, Prefilling
from tests.unit.worker.zygote_peer import ZygotePeer, ask

signal.signal(signal.SIGINT, signal.SIG_IGN)
peer = ZygotePeer(stderr=Path(sys.argv[1]) / "zygote.log")
loading, loading_pid = peer.fork(1)
loading.send(LoadModel("fake", sys.argv[2], 64))
loading.until(Loading)
working, working_pid = peer.fork(2)
working.load(Path(sys.argv[3]))
working.send(ask(1))
working.until(Prefilling)
idle, idle_pid = peer.fork(3)
print(peer.process.pid, loading_pid, working_pid, idle_pid, flush=True)
sys.stdin.read()
"""


def test_kill_9_of_the_daemon_leaves_nothing(tmp_path: Path) -> None:
    hanging = tmp_path / "hanging.json"
    hanging.write_text(json.dumps({"h2qd_fake": 1, "load_hang": True, "ignore_sigterm": True}))
    wedged = tmp_path / "wedged.json"
    wedged.write_text(json.dumps({"h2qd_fake": 1, "wedge_at_token": 0}))
    daemon = subprocess.Popen(
        [sys.executable, "-c", _DAEMON, str(tmp_path), str(hanging), str(wedged)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    with daemon:
        assert daemon.stdout is not None
        pids = [int(word) for word in daemon.stdout.readline().split()]
        assert len(pids) == 4
        watches = [Watch(pid) for pid in pids]
        os.killpg(daemon.pid, signal.SIGINT)  # a Ctrl-C at its terminal
        assert all(alive(pid) for pid in pids)
        killed_s = time.monotonic()
        daemon.kill()
        assert all(watch.ended(1) for watch in watches)
        assert time.monotonic() - killed_s < 1
