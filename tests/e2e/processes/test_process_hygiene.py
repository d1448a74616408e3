"""What `serve` starts ends with it, whatever ends it, and what dies meanwhile comes back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import redis

from tests.e2e.serve_process import ServeProcess, is_gone, run_cli
from tests.waiting import wait_until


def process_id(process: psutil.Process) -> str:
    """The name of a child in Redis, from its command line."""
    (found,) = (
        argument.split("=")[1]
        for argument in process.cmdline()
        if argument.startswith(("--worker-id=", "--ingress-id="))
    )
    return found


def test_ps_shows_each_child_by_its_own_command_line_in_the_session_of_serve() -> None:
    with ServeProcess("--num-ingress", "2") as serve:
        ready = serve.wait_until_ready()
        for words in (
            f"tcp 127.0.0.1:{serve.tcp_port}",
            f"websocket 127.0.0.1:{serve.ws_port}",
            f"status 127.0.0.1:{serve.status_port}",
            "model null on cpu, 1 worker, 2 ingress processes",
            f"redis {serve.redis_url}",
        ):
            assert words in ready
        assert "worker ready" in serve.log
        said = [line for line in serve.log.splitlines() if "ready:" in line]
        assert said == [ready], "scripts wait for this word"
        assert len(serve.all_children("ingress")) == 2
        assert len(serve.all_children("gpu_worker")) == 1
        assert len(serve.children()) == 4
        for process in serve.children():
            assert os.getsid(process.pid) == os.getsid(serve.process.pid)
        worker = serve.child("gpu_worker").cmdline()
        assert worker[1:3] == ["-m", "gpu_worker"]
        assert "--backend=null" in worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_in_order(number: signal.Signals) -> None:
    with ServeProcess() as serve:
        serve.wait_until_ready()
        children = serve.children()
        directory = Path(serve.redis_url.removeprefix("unix://")).parent
        assert serve.stop(number) == 0
        assert all(is_gone(process) for process in children)
        assert not directory.exists()
        assert "killing" not in serve.log
        assert serve.lines[-1].endswith("stopped")


def test_ctrl_c_of_a_terminal_reaches_the_children_through_serve_alone() -> None:
    with ServeProcess() as serve:
        serve.wait_until_ready()
        groups = {os.getpgid(process.pid) for process in serve.children()}
        assert os.getpgid(serve.process.pid) not in groups


def test_nothing_is_left_when_serve_is_killed() -> None:
    with ServeProcess("--num-ingress", "2", "--num-workers", "2") as serve:
        serve.wait_until_ready()
        children = serve.children()
        assert len(children) == 5
        serve.process.kill()
        wait_until(lambda: all(is_gone(process) for process in children), what="all children ended")


def test_nothing_is_left_when_serve_is_killed_while_it_starts() -> None:
    with ServeProcess() as serve:
        serve.wait_for_line("started worker 0")
        children = serve.children()
        assert children
        serve.process.kill()
        wait_until(lambda: all(is_gone(process) for process in children), what="all children ended")


def test_a_signal_during_the_start_stops_it() -> None:
    with ServeProcess() as serve:
        serve.wait_for_line("started worker 0")
        children = serve.children()
        assert serve.stop() == 0
        assert all(is_gone(process) for process in children)
        assert "parakeet.ready" not in serve.log


@pytest.mark.parametrize("module", ["gpu_worker", "ingress"])
def test_a_child_that_dies_comes_back_under_a_new_name(module: str) -> None:
    with ServeProcess() as serve:
        serve.wait_until_ready()
        first = serve.child(module)
        name = process_id(first)
        first.send_signal(signal.SIGKILL)
        serve.wait_for_line(r"ended with SIGKILL, restarting in 0\.5 s")
        # A moment after a fork a process still shows its parent's command line.
        (second,) = wait_until(
            lambda: (
                found
                if len(found := serve.all_children(module)) == 1 and module in found[0].cmdline()
                else None
            ),
            what="the child was started again and runs its own command",
        )
        new_name = process_id(second)
        assert second.pid != first.pid
        assert new_name != name
        server = redis.Redis.from_url(serve.redis_url)
        register = "px:{0}:workers" if module == "gpu_worker" else "px:{0}:ingresses"
        wait_until(lambda: server.zscore(register, new_name) is not None, what="the new process is in Redis")
        server.close()
        assert serve.stop() == 0


def test_the_embedded_server_comes_back_and_the_stack_serves_again() -> None:
    with ServeProcess() as serve:
        serve.wait_until_ready()
        valkey = serve.child("redis.sock")
        valkey.send_signal(signal.SIGKILL)
        serve.wait_for_line("the embedded Redis server ended with SIGKILL")
        server = redis.Redis.from_url(serve.redis_url)

        def lives(register: str) -> bool:
            try:
                return bool(server.zcard(register))
            except redis.exceptions.ConnectionError:
                return False

        wait_until(lambda: lives("px:{0}:workers"), what="the worker has renewed its lease")
        wait_until(lambda: lives("px:{0}:ingresses"), what="the ingress has announced itself")
        server.close()
        answer = run_cli("status", "--status-port", str(serve.status_port))
        assert answer.returncode == 0, answer.stderr
        assert serve.stop() == 0


def test_health_says_whether_a_worker_of_this_host_is_well() -> None:
    with ServeProcess("--lease-ms", "3000") as serve:
        serve.wait_until_ready()
        well = run_cli("health", "--redis-url", serve.redis_url)
        assert well.returncode == 0, well.stderr
        worker = serve.child("gpu_worker")
        assert process_id(worker) in well.stdout.decode()
        # A worker that hangs holds no lease.
        worker.send_signal(signal.SIGSTOP)
        try:
            wait_until(
                lambda: run_cli("health", "--redis-url", serve.redis_url).returncode == 1,
                what="the end of the lease",
            )
        finally:
            worker.send_signal(signal.SIGCONT)
        assert serve.stop() == 0
