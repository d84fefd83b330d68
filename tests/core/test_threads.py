"""The number of threads follows the machine; a training that goes on does its steps with the numbers written down."""

import json
from pathlib import Path

import pytest
import torch

from stage1_vqvae import train as training
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from vq_prior.cli import main
from vq_prior.core.errors import ArtifactError
from vq_prior.core.identity import file_sha256
from vq_prior.core.processes import threads
from vq_prior.core.processes.threads import Cores, Lately, StepThreads, ThreadChoice, candidates


class Machine(Cores):
    """Two cores on which time passes as it is told; beside a neighbour, two threads wait for each other."""

    def __init__(self, *, tells: bool = True) -> None:
        self.now, self.busy, self.tells = 0.0, False, tells
        self._waited, self._idle, self.used, self.now_running = 0.0, 0.0, {1: 0.0, 2: 0.0}, 1

    def clock(self) -> float:
        return self.now

    def waited(self) -> float | None:
        return self._waited if self.tells else None

    def idle(self) -> float | None:
        return self._idle if self.tells else None

    def others(self) -> int | None:
        return self.now_running if self.tells else None

    def work(self, choice: ThreadChoice, seconds: float) -> None:
        """Do units of work for about so many seconds."""
        until = self.now + seconds
        while self.now < until:
            number = choice.number
            unit = {1: 0.125, 2: 0.5 if self.busy else 0.1}[number]
            with choice.unit():
                self.now += unit
            self._waited += 0.6 * unit if self.busy and number == 2 else 0.0
            self._idle += unit * (2 - number - self.busy)
            self.used[number] += unit


@pytest.fixture(autouse=True)
def _threads_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "set_threads", lambda _number: None)
    monkeypatch.setattr(threads, "LATELY", Lately(Machine(tells=False)))


@pytest.mark.parametrize("tells", [True, False])
def test_the_number_follows_a_neighbour_who_comes_and_goes(tells: bool) -> None:
    machine = Machine(tells=tells)
    choice = ThreadChoice({1, 2}, machine, machine.clock)
    machine.work(choice, 100)
    assert machine.used[1] < (0.0 if tells else 3.0) + 1e-9
    machine.busy, machine.used = True, {1: 0.0, 2: 0.0}
    machine.work(choice, 300)
    assert machine.used[1] > (0.9 if tells else 0.85) * 300
    assert choice.number == 1
    machine.busy, machine.used = False, {1: 0.0, 2: 0.0}
    machine.work(choice, 300)
    assert machine.used[2] > (0.95 if tells else 0.7) * 300
    assert choice.number == 2


@pytest.mark.parametrize("same", [True, False])
def test_a_number_of_other_bits_is_never_tried_and_asked_about_once_when_it_would_be(same: bool) -> None:
    machine, asked = Machine(), []
    choice = ThreadChoice({1, 2}, machine, machine.clock, same_bits=lambda: bool(asked.append(machine.busy) or same))
    machine.work(choice, 100)
    assert asked == []  # on an idle machine the number in force is the best there is
    machine.busy, machine.used = True, {1: 0.0, 2: 0.0}
    machine.work(choice, 300)
    assert asked == [True]
    assert (machine.used[1] > 0) is same


def test_a_neighbour_from_the_start_costs_little() -> None:
    machine = Machine()
    machine.busy = True
    choice = ThreadChoice({1, 2}, machine, machine.clock)
    machine.work(choice, 30)
    assert machine.used[2] < 2.5


@pytest.mark.parametrize(
    ("seconds", "used", "idle", "wanted"),
    [
        (10, 9.0, 10.5, 2),
        (10, 9.0, 0.5, 1),
        (10, 17.0, 1.0, 2),
        (10, 5.0, 0.0, 1),
        (0.1, 0.1, 0.0, 2),
        (10, 9.0, None, 2),
    ],
)
def test_the_first_number_is_what_there_were_cores_for(seconds, used, idle, wanted) -> None:
    machine, cpu = Machine(tells=idle is not None), [0.0]
    lately = Lately(machine, machine.clock, lambda: cpu[0])
    machine.now, machine._idle, cpu[0] = seconds, idle or 0.0, used
    assert lately.fitting({1, 2}) == wanted


def test_who_used_the_cores_and_is_gone_is_not_counted() -> None:
    machine = Machine()
    lately = Lately(machine, machine.clock, lambda: 0.0)
    machine.now, machine.now_running = 10.0, 0
    assert lately.fitting({1, 2}) == 2


def test_the_numbers_of_a_large_machine() -> None:
    assert [sorted(candidates(most)) for most in (1, 2, 3, 16)] == [[1], [1, 2], [1, 2, 3], [1, 8, 15, 16]]


def test_this_system_tells_what_it_can() -> None:
    cores = Cores()
    told = (cores.waited(), cores.idle())
    if Path("/proc/self/schedstat").exists():
        assert all(value is not None and value >= 0 for value in told)
        assert cores.others() is not None


def test_steps_are_written_ahead_and_done_alike_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(threads, "set_threads", used.append)
    path = tmp_path / "threads.jsonl"
    steps = StepThreads(path, 4)
    assert steps._choice is not None
    for done in range(6):
        if done == 3:
            steps._choice.number = 1
        with steps.step(done):
            assert json.loads(path.read_text().splitlines()[-1])["threads"] == (1 if done >= 3 else 4)
    path.write_text(path.read_text() + '{"step": 5, "thr')
    used.clear()
    again = StepThreads(path, 2)  # on another machine
    for done in range(1, 6):
        with again.step(done):
            pass
    assert used == [1, 4, 4, 1, 1, 1]  # the first for what is done before a step
    assert again.written == [(0, 4), (3, 1)]
    with StepThreads(tmp_path / "none.jsonl", 1).step(0):
        pass
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("line", ["{}", '{"step": 3, "threads": 0}', "[]", '{"step": 0, "threads": 1}'])
def test_a_damaged_file_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "threads.jsonl"
    path.write_text(f'{{"step": 0, "threads": 2}}\n{line}\n')
    with pytest.raises(ArtifactError, match=r"threads\.jsonl is damaged"):
        StepThreads(path, 2)


def test_a_training_that_goes_on_uses_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(threads, "set_threads", used.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def settings(name: str) -> TrainVQVAE:
        network = ModelSettings(width=16, num_residual_blocks=1)
        return TrainVQVAE("digits", tmp_path / name, steps=6, batch_size=8, checkpoint_every=2, model=network)

    units = [0]

    def third(self: ThreadChoice, _seconds: float) -> None:
        units[0] += 1
        self.number = 1 if units[0] >= 3 else self.number

    monkeypatch.setattr(ThreadChoice, "took", third)
    whole = training.train_vqvae(settings("whole"))
    assert (tmp_path / "whole/vqvae-training/threads.jsonl").read_text() == (
        '{"step": 0, "threads": 2}\n{"step": 3, "threads": 1}\n'
    )
    assert json.loads((whole / "training.json").read_text())["measured"]["threads_from_step"] == {"0": 2, "3": 1}
    units[0], update, left = 0, training.update, list(range(5))

    def cut(t: training.Training, learning_rate: float) -> None:
        if not left:
            raise KeyboardInterrupt  # nothing after this moment is written, as if the process were gone
        left.pop()
        update(t, learning_rate)

    monkeypatch.setattr(training, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        training.train_vqvae(settings("cut"))
    monkeypatch.setattr(training, "update", update)
    used.clear()
    again = training.train_vqvae(settings("cut"))
    assert used == [2, 1, 1, 1, 2]  # before, what comes before steps, the two after the checkpoint, and after it
    for name in ("model.safetensors", "training.json"):
        assert file_sha256(again / name) == file_sha256(whole / name)


def test_a_number_that_is_given_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    before = torch.get_num_threads()
    small = ["--steps", "2", "--batch-size", "8", "--model.width", "16", "--data", "digits"]
    assert main(["train-vqvae", *small, "--out", str(tmp_path / "run"), "--threads", str(before + 1)]) == 0
    assert torch.get_num_threads() == before  # it is the training's own
    assert not (tmp_path / "run/vqvae-training/threads.jsonl").exists()
    assert json.loads((tmp_path / "run/vqvae-training/config.json").read_text())["settings"]["threads"] == before + 1
    assert main(["train-vqvae", *small, "--out", str(tmp_path / "run")]) == 0
    wrong = ["train-vqvae", *small, "--out", str(tmp_path / "no"), "--threads", "2", "--reproducible"]
    assert main(wrong) == 2
    assert "--reproducible computes with one thread; leave out --threads 2" in capsys.readouterr().err
