"""Two hosts that lose processes, launchers and their cable: the run ends in the same weights, or says what failed."""

import os
import signal
import sys
import time

import psutil
import pytest

from tests.conftest import make_experiment
from tests.faults import hosts
from tests.faults.runs import Run, final, same

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hosts.possible(), reason="network namespaces need root and iproute2"),
]
REPEAT = int(os.environ.get("FAULT_REPEAT", "3"))
STEP = 5  # the fault strikes here, after the first of the three epochs of four steps is saved


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """An experiment, and what an undisturbed run of two processes ends in."""
    folder = tmp_path_factory.mktemp("whole")
    experiment = make_experiment(folder, data, train={"epochs": 3, "log_every": 1}, model={"options": {"dropout": 0.1}})
    assert Run(experiment, folder / "run", world=2).wait() == [0, 0]
    return experiment, final(folder / "run")


@pytest.fixture
def pair(tmp_path, whole):
    """Both hosts, their launchers started, and the function that starts one again."""
    experiment, _ = whole

    def launcher(host):
        return net.start(
            host,
            tmp_path,
            sys.executable,
            "-c",
            hosts.LAUNCH,
            "--config",
            str(experiment),
            "--exp",
            str(tmp_path / "run"),
        )

    with hosts.Hosts() as net:
        both = [launcher(0), launcher(1)]
        try:
            yield net, both, launcher
        finally:
            for each in both:
                for process in each.everything() if each.process.poll() is None else []:
                    process.kill()
            leave = [p for p in psutil.process_iter() if str(tmp_path / "run") in " ".join(_command(p))]
            for process in leave:
                process.kill()


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def ends_like(whole, tmp_path, both):
    statuses = [each.wait() for each in both]
    output = "\n".join(each.text() for each in both)
    assert statuses == [0, 0], output
    assert same(final(tmp_path / "run"), whole[1]), output
    return output


def twice(times=REPEAT):
    return pytest.mark.parametrize("repetition", range(times))


@twice()
@pytest.mark.parametrize("host", [0, 1])
def test_a_killed_process_is_named_and_all_start_again(tmp_path, whole, pair, host, repetition, record_fault):
    _, both, _ = pair
    both[0].until(f"step {STEP}/12")
    both[host].workers()[0].kill()
    output = ends_like(whole, tmp_path, both)
    assert f"rank {host} on host-{'ab'[host]}): killed by SIGKILL" in output
    assert f"rank {host} on host-{'ab'[host]} " in both[1 - host].text() and "Traceback" not in output
    record_fault(f"two hosts: the process on host {'AB'[host]} is killed", REPEAT, "restarted; the same weights")


@twice()
@pytest.mark.parametrize("host", [0, 1])
def test_a_killed_launcher_that_is_started_again(tmp_path, whole, pair, host, repetition, record_fault):
    _, both, launcher = pair
    both[0].until(f"step {STEP}/12")
    left = both[host].workers()
    both[host].send(signal.SIGKILL)
    both[host].process.wait()
    _, alive = psutil.wait_procs(left, timeout=5)
    assert not alive, "its processes go on without it"
    both[host] = launcher(host)
    output = ends_like(whole, tmp_path, both)
    assert "Traceback" not in output
    fault = f"two hosts: the launcher on host {'AB'[host]} is killed, and started again"
    record_fault(fault, REPEAT, "the same weights")


@twice()
def test_a_launcher_that_stays_away_ends_the_other_in_time(tmp_path, pair, repetition, record_fault):
    _, both, _ = pair
    both[0].until(f"step {STEP}/12")
    both[1].send(signal.SIGKILL)
    began = time.monotonic()
    assert both[0].wait() == 69
    assert time.monotonic() - began < 90
    text = both[0].text()
    assert "rank 1 on host-b" in text and "not all 2 machines came" in text and "Traceback" not in text
    fault = "two hosts: the launcher on host B is killed for good"
    record_fault(fault, REPEAT, "host A names rank and host, status 69")


@twice()
@pytest.mark.parametrize("back", [True, False], ids=["back", "gone"])
def test_a_cut_cable(tmp_path, whole, pair, back, repetition, record_fault):
    net, both, _ = pair
    both[0].until(f"step {STEP}/12")
    net.cable("down")
    began = time.monotonic()
    both[0].until("rank 1 on host-b")
    both[1].until("rank 0 on host-a")
    if back:
        net.cable("up")
        ends_like(whole, tmp_path, both)
        record_fault("two hosts: the network is cut, and comes back", REPEAT, "both name the other; the same weights")
    else:
        assert [each.wait() for each in both] == [69, 69]
        assert time.monotonic() - began < 120
        assert "not all 2 machines came" in both[0].text() and "cannot be reached" in both[1].text()
        record_fault("two hosts: the network is cut for good", REPEAT, "both name the other and end, status 69")
    assert "Traceback" not in both[0].text() + both[1].text()


@twice()
def test_a_host_that_stands_still_for_a_while(tmp_path, whole, pair, repetition, record_fault):
    _, both, _ = pair
    both[0].until(f"step {STEP}/12")
    stopped = both[1].everything()
    for process in stopped:
        process.suspend()
    time.sleep(4)
    for process in stopped:
        process.resume()
    output = ends_like(whole, tmp_path, both)
    assert "error" not in output
    fault = "two hosts: host B stands still for half of PEER_TIMEOUT"
    record_fault(fault, REPEAT, "nothing restarts; the same weights")


@twice()
def test_a_slow_network(tmp_path, whole, pair, repetition, record_fault):
    net, both, _ = pair
    both[0].until("step 2/12")
    net.slow(200)
    assert "error" not in ends_like(whole, tmp_path, both)
    record_fault("two hosts: the network becomes slow, 200 Mbit/s", REPEAT, "the same weights")


@twice()
def test_a_signal_on_one_host_stops_both_with_a_checkpoint(tmp_path, whole, pair, repetition, record_fault):
    _, both, launcher = pair
    both[0].until(f"step {STEP}/12")
    both[1].send(signal.SIGUSR1)
    assert [each.wait() for each in both] == [75, 75], both[0].text() + both[1].text()
    both[:] = [launcher(0), launcher(1)]
    ends_like(whole, tmp_path, both)
    fault = "two hosts: SIGUSR1 to the launcher on host B"
    record_fault(fault, REPEAT, "both save and end, status 75; continued, the same weights")
