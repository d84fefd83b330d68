"""The command line: one line on failure, the documented codes, an instant --help."""

import os
import subprocess
import sys
import time

import pytest

from vq_prior.cli import COMMANDS, main, parse
from vq_prior.cli.recipes import RECIPES
from vq_prior.core.errors import UsageError


def test_help_lists_every_command_and_answers_at_once():
    def seconds() -> float:
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "vq_prior", "--help"], capture_output=True, text=True, check=True)
        assert all(name in done.stdout for name in COMMANDS)
        return time.monotonic() - started

    assert min(seconds() for _ in range(3)) < 0.7


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parse([command, "--help"])
    assert stop.value.code == 0
    assert f"vq-prior {command}" in capsys.readouterr().out


def test_help_whose_reader_is_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "vq_prior", "train-prior", "--help"], stdout=write, stderr=-1)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["gnerate"], "did you mean generate"),
        (["generate", "--modle", "x", "--out", "y"], "did you mean --model"),
        (["generate", "--model", "x"], "missing --out"),
        (["generate", "--model", "x", "--out", "y", "--top-k", "many"], "--top-k must be an integer, got 'many'"),
        (["generate", "--model", "x", "--out", "y", "--temperature", "hot"], "--temperature must be a number"),
        (["generate", "--model", "x", "--out", "y", "--seed"], "--seed"),
        (["generate", "--model", "x", "--out", "y", "stray"], "stray"),
        (["verify"], "missing PATH"),
        (["train-vqvae", "--data", "digits", "--out", "y", "--num-processes", "0"], "--num-processes"),
        (["train-vqvae", "--data", "digits", "--out", "y", "--quantizer.nam", "ema"], "--quantizer.name"),
        (["train-vqvae", "--recipe", "no-such"], "no-such"),
        (["train-vqvae", "--recipe", "a", "--config", "b"], "exclude each other"),
    ],
)
def test_a_wrong_word_is_named_in_one_line(words, named, capsys):
    assert main(words) == 2
    streams = capsys.readouterr()
    assert named in streams.err
    assert streams.err.startswith("error: ")
    assert streams.err.count("\n") == 1
    assert streams.out == ""


def test_a_flag_wins_over_a_saved_config_and_over_its_command(tmp_path, tiny_run):
    config = tiny_run / "vqvae-training" / "config.json"
    settings = parse(["train-vqvae", "--config", str(config), "--steps", "7"]).settings
    assert settings.steps == 7
    assert settings.data == "digits"
    with pytest.raises(UsageError, match="settings of train-vqvae, not of train-prior"):
        parse(["train-prior", "--config", str(config), "--codes", "x", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("command", "name", "flags"),
    [
        (command, name, flags)
        for command, flags in (("train-vqvae", ["--data", "d"]), ("train-prior", ["--codes", "c"]))
        for name in RECIPES[command].names()
    ],
)
def test_a_recipe_leaves_paths_to_the_user_and_yields_to_flags(command, name, flags):
    settings = parse([command, "--recipe", name, *flags, "--out", "o", "--batch-size", "3"]).settings
    assert settings.batch_size == 3
    assert settings.steps == RECIPES[command][name]().steps
    with pytest.raises(UsageError, match="missing --"):
        parse([command, "--recipe", name])


WHAT_PROCESSES_GET = """
import os
from accelerate.commands import launch
from vq_prior.cli import main
launch.launch_command = lambda _arguments: print(os.environ.get("TORCH_CPP_LOG_LEVEL"))
main(["train-vqvae", "--data", "digits", "--out", "x", "--num-processes", "2", *WORDS])
"""


@pytest.mark.parametrize(("words", "level"), [([], "FATAL"), (["--debug"], "None")])
def test_launched_processes_do_not_tell_of_peers_that_they_cannot_reach(words, level, warm, tmp_path):
    """One that joins while another ends by a signal would: five lines of gloo beside the one that says it all."""
    done = warm.run(WHAT_PROCESSES_GET.replace("WORDS", repr(words)), cwd=tmp_path)
    assert done.stdout.split() == [level], done.stderr


def test_launcher_words_keep_every_flag_but_num_processes():
    invocation = parse(["extract-codes", "--num-processes=2", "--codec", "a", "--data", "b", "--out", "c"])
    assert invocation.num_processes == 2
    assert invocation.words == ["--codec", "a", "--data", "b", "--out", "c"]


def test_version_and_env_print_versions(capsys):
    assert main(["--version"]) == 0
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert "vq-prior 0." in out
    assert "torch" in out


def outcome(done):
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def run_new(tmp_path, child_environment):
    """Run a program in a new process, with changes to its environment."""

    def run(*command, **changes):
        environment = child_environment(**changes)
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.mark.parametrize("words", [["env"], ["generate", "--model", "x"], ["verify", "nowhere"]])
def test_a_fork_of_the_tests_says_and_returns_what_a_new_process_does(words, tmp_path, warm, run_new):
    assert outcome(warm.run(words, cwd=tmp_path)) == outcome(run_new(sys.executable, "-m", "vq_prior", *words))


@pytest.mark.parametrize("offline", ["1", "0"])  # the second is not what the process imported under
def test_so_does_the_command_that_the_pages_find_on_path(offline, warm, run_new):
    path = f"{warm.shim()}{os.pathsep}{os.environ['PATH']}"
    new = run_new(sys.executable, "-m", "vq_prior", "verify", "nowhere", HF_HUB_OFFLINE=offline)
    assert outcome(run_new("vq-prior", "verify", "nowhere", PATH=path, HF_HUB_OFFLINE=offline)) == outcome(new)
    assert new.returncode == 3


def test_verify_of_a_file_says_that_artefacts_are_folders(tmp_path, capsys):
    (tmp_path / "codes.json").write_text("{}")
    assert main(["verify", str(tmp_path / "codes.json")]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path / 'codes.json'} is a file; every artefact of vq-prior is a folder"
