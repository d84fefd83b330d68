"""The processes. Two real ones are started by the launcher; each writes down what it saw."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vq_prior.core.processes.collectives import gather_rows, sum_over_processes
from vq_prior.core.processes.control import signal_control
from vq_prior.core.processes.interruption import Interrupted, Interruption
from vq_prior.core.processes.runtime import (
    Runtime,
    full_state,
    has_native_bf16,
    unwrap,
)

TWO_PROCESSES = """
import atexit, json, os, signal, sys, time
import torch
from torch import nn
from vq_prior.core.training.code_use import CodeCounts
from vq_prior.core.processes.control import signal_control
from vq_prior.core.processes.gradients import StepSums
from vq_prior.core.processes.collectives import gather_rows, sum_over_processes, take_rows
from vq_prior.core.processes.runtime import full_state, leave_runtime, start_runtime, unwrap
runtime = start_runtime()
rank = runtime.process_index
mine = torch.tensor([1.0 + rank, 10.0])
total = sum_over_processes(mine)
seen = {"rank": rank, "num_processes": runtime.num_processes, "total": total.tolist(), "mine": mine.tolist()}
seen["gathered"] = gather_rows(torch.arange(1 + 2 * rank).view(-1, 1) + 10 * rank).tolist()
seen["empty"] = gather_rows(torch.ones(2 * rank, 3, dtype=torch.int32)).shape
chosen = torch.tensor([3, 0, 2, 0, 1])
rows = torch.tensor([[10], [11], [12], [13]])[2 * rank : 2 * rank + 2]
seen["taken"] = take_rows(rows, lambda total: chosen if total == 4 else None).tolist()
seen["none taken"] = take_rows(rows[:0], lambda total: torch.arange(total)).shape
seen["share"] = [[s.start, s.stop] for s in (runtime.share(7), runtime.share(1), runtime.share(0))]
counts = CodeCounts((4,))
counts.add((torch.tensor([rank, 3]),))
seen["counts"] = counts.read(reset=True)[0]["num_dead"], counts.read()[0]["num_dead"]

torch.manual_seed(0)
module = nn.Linear(2, 1)
module.register_buffer("statistic", torch.tensor(0.0))
data_parallel = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
module.statistic.fill_(rank)
seen["names"] = sorted(full_state(data_parallel))
seen["unwrapped"] = unwrap(data_parallel) is module
for name, wrapped in (("plain", runtime.wrap(module)), ("data parallel", data_parallel)):
    module.zero_grad()
    sums = StepSums(runtime, wrapped)
    for piece in (0, 1):
        with sums.piece(last=piece == 1):
            loss = wrapped(torch.full((1, 2), 1.0 + rank + 10 * piece)).sum()
            sums.backward(loss, {"inputs": torch.tensor(1.0 + rank + 10 * piece)})
    before = None if module.weight.grad is None else module.weight.grad.tolist()
    seen[name] = [before, sums.finish()["inputs"].item(), module.weight.grad.tolist()]
seen["buffer"] = module.statistic.item()
with signal_control() as control:
    seen["asked"] = [control.agreed()]
    for number in (signal.SIGUSR2, signal.SIGTERM):
        if rank == 1:
            os.kill(os.getpid(), number)
        seen["asked"].append(control.agreed())
if rank == 1:
    time.sleep(1)
begin = time.process_time()
sum_over_processes(mine)
seen["awake"] = time.process_time() - begin
runtime.barrier()
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(seen, file)
atexit.register(open, f"{sys.argv[1]}/{rank}.taken_down", "w")
leave_runtime(0)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory, launch):
    """What each of two processes saw, by rank."""
    folder = tmp_path_factory.mktemp("two")
    launch(TWO_PROCESSES, folder)
    assert not list(folder.glob("*.taken_down"))  # beside a process group's threads that would abort now and then
    return {rank: json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)}


def test_two_processes_join(two):
    assert [(one["rank"], one["num_processes"]) for one in two.values()] == [(0, 2), (1, 2)]


def test_a_sum_is_the_same_on_each_process_and_leaves_its_input_alone(two):
    assert [one["total"] for one in two.values()] == [[3.0, 20.0]] * 2
    assert (two[0]["mine"], two[1]["mine"]) == ([1.0, 10.0], [2.0, 10.0])


def test_rows_of_unequal_counts_are_gathered_in_process_order_without_padding(two):
    assert [one["gathered"] for one in two.values()] == [[[0], [10], [11], [12]]] * 2
    assert [one["empty"] for one in two.values()] == [[2, 3]] * 2


def test_the_shares_cover_every_row_once(two):
    for first, second, total in zip(two[0]["share"], two[1]["share"], (7, 1, 0), strict=True):
        assert (first[0], first[1], second[1]) == (0, second[0], total)


def test_codes_are_counted_over_all_processes(two):
    assert [one["counts"] for one in two.values()] == [[1, 4]] * 2  # codes 0, 1 and 3 occurred; then none


def test_rows_are_taken_from_all_processes_in_the_order_asked_for(two):
    assert [one["taken"] for one in two.values()] == [[[13], [10], [12], [10], [11]]] * 2
    assert [one["none taken"] for one in two.values()] == [[0, 1]] * 2


def test_gradients_of_all_pieces_and_processes_are_summed_and_buffers_left_alone(two):
    for rank in (0, 1):
        assert two[rank]["plain"] == [None, 26.0, [[26.0, 26.0]]]
        assert two[rank]["data parallel"] == [[[26.0, 26.0]], 26.0, [[26.0, 26.0]]]
    assert (two[0]["buffer"], two[1]["buffer"]) == (0.0, 1.0)


def test_saved_names_do_not_show_the_wrapper(two):
    assert [one["names"] for one in two.values()] == [["bias", "statistic", "weight"]] * 2
    assert all(one["unwrapped"] for one in two.values())


def test_a_signal_to_one_process_stops_both(two):
    assert [one["asked"] for one in two.values()] == [[[False, False], [False, True], [True, True]]] * 2


def test_a_process_that_waits_long_for_another_sleeps(two):
    assert two[0]["awake"] < 0.5


def test_processes_that_share_cores_leave_them_to_each_other(child_environment):
    code = "from vq_prior.core.processes.collectives import _has_core_each; print(_has_core_each())"
    for processes, expected in (("1", "True"), ("100000", "False")):
        environment = child_environment(LOCAL_WORLD_SIZE=processes)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_one_process_needs_no_launcher(child_environment):
    code = (
        "from vq_prior.core.processes.runtime import start_runtime; r = start_runtime();"
        "print(r.num_processes, r.is_main, r.share(5), r.precision); r.barrier(); print(r.describe())"
    )
    command = [sys.executable, "-c", code]
    environment = child_environment(ACCELERATE_USE_CPU="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "1 True slice(0, 5, None) fp32"
    assert second == "device cpu (1 threads each), precision fp32, 1 process"


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="asks Linux on x86")
def test_native_bf16_is_what_the_system_says_of_the_cpu():
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    assert has_native_bf16("cpu") == bool({"avx512_bf16", "amx_bf16"} & set(flags))
    assert not has_native_bf16("mps")


def test_processes_that_the_launcher_announced_but_that_did_not_join_are_noticed(child_environment):
    # What `accelerate launch --cpu --num_processes 2` does: every process believes that it is alone.
    code = (
        "import os; from accelerate import PartialState; PartialState(cpu=True); os.environ['WORLD_SIZE'] = '2';"
        "from vq_prior.core.processes.runtime import start_runtime; start_runtime()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert "EnvironmentFault: the launcher announced 2 processes (WORLD_SIZE) but 1 joined" in done.stderr


def runtime_at(process_index, precision="fp32"):
    """The place of one of three processes; its accelerator is data alone."""
    place = SimpleNamespace(num_processes=3, process_index=process_index, device=torch.device("cpu"))
    return Runtime(place, precision)


@pytest.mark.parametrize("total", [0, 1, 2, 3, 10, 11])
def test_shares_differ_by_one_row_at_most(total):
    shares = [runtime_at(index).share(total) for index in range(3)]
    assert [row for share in shares for row in range(total)[share]] == list(range(total))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_autocast_follows_the_precision():
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with runtime_at(0, precision).autocast():
            assert layer(x).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_alone_sums_and_gathers_are_the_identity():
    x = torch.arange(3)
    assert torch.equal(sum_over_processes(x), x)
    assert torch.equal(gather_rows(x), x)


def test_the_saved_state_is_a_copy_on_the_host():
    module = nn.Linear(2, 2)
    state = full_state(module)
    with torch.no_grad():
        module.weight.zero_()
    assert state["weight"].abs().sum() > 0
    assert unwrap(module) is module


def test_a_module_that_merely_has_a_module_is_not_unwrapped():
    outer = nn.Module()
    outer.module = nn.Linear(1, 1)
    assert unwrap(outer) is outer


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_raises_the_flag_and_former_handlers_come_back(name):
    former = signal.getsignal(getattr(signal, name))
    with signal_control() as control:
        assert control.agreed() == (False, False)
        os.kill(os.getpid(), getattr(signal, name))
        assert control.agreed() == (True, True)
        assert control.stop_signal == name
    assert signal.getsignal(getattr(signal, name)) is former


def test_a_repeated_signal_does_not_disturb_the_end_that_the_first_asked_for():
    interruption = Interruption()
    former = signal.signal(signal.SIGTERM, interruption)
    try:
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        interruption = Interruption()
        signal.signal(signal.SIGTERM, interruption)
        with signal_control():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1.1)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        interruption.is_too_late = True
        time.sleep(1.1)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)


def test_a_save_is_asked_for_once():
    with signal_control() as control:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert [control.agreed() for _ in range(2)] == [(False, True), (False, False)]


def test_a_second_ctrl_c_ends_the_process_at_once(child_environment):
    code = (
        "import time; from vq_prior.core.processes.control import signal_control\n"
        "with signal_control() as control:\n"
        "    print('ready', flush=True)\n"
        "    while not control.stop_signal: time.sleep(0.01)\n"
        "    print('asked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for word in ("ready", "asked"):
        assert process.stdout.readline().strip() == word
        process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (75, "")
    assert time.monotonic() - started < 5
