"""The ready-made launch files are what Accelerate reads; the one for a machine without a GPU starts two processes."""

import shutil
import subprocess
import sys

import pytest

FILES = ("one_gpu", "many_gpus", "two_machines", "two_processes_cpu", "fsdp")


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_it(name, repository):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(repository / "scripts" / "launch" / f"{name}.yaml"))
    assert config.mixed_precision == "no"
    assert config.num_processes >= 1
    assert (config.distributed_type == "NO") == (name == "one_gpu")


def test_two_processes_on_a_machine_without_a_gpu(repository, tiny_run, tmp_path, child_environment):
    config = repository / "scripts" / "launch" / "two_processes_cpu.yaml"
    words = ["generate", "--model", tiny_run / "model", "--num-images", 4, "--out", tmp_path / "out"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", "vq_prior", *words]
    done = subprocess.run(
        list(map(str, launch)),
        env=child_environment(ACCELERATE_USE_CPU="1"),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert len(list((tmp_path / "out").glob("0*.png"))) == 4


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_scheduler_script_is_sound_bash(repository):
    subprocess.run(["bash", "-n", str(repository / "scripts" / "launch" / "slurm.sbatch")], check=True)
