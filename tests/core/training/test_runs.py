import dataclasses
import json
from typing import Annotated

import pytest

from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError
from vq_prior.core.settings import Free, Once, Place
from vq_prior.core.training.runs import (
    RunLog,
    check_continues,
    flatten,
    open_run,
    read_run_config,
    require_free_space,
    run_config,
)


@dataclasses.dataclass
class Model:
    width: int = 64
    grid: tuple[int, ...] = (8, 8)


@dataclasses.dataclass
class Training:
    steps: int = 100
    batch_size: int = 32
    learning_rate: float = 3e-4
    num_workers: Annotated[int | None, Free()] = None
    checkpoint_every: Annotated[int, Free()] = 50
    data: Annotated[str, Place()] = "digits"
    model: Model = dataclasses.field(default_factory=Model)
    overwrite: Annotated[bool, Once()] = False
    dry_run: Annotated[bool, Once()] = False


def config_of(data_id="d1", **changes):
    return run_config("train-vqvae", Training(**changes), {"data": data_id})


def refusal(old, new, folder):
    with pytest.raises(UsageError) as caught:
        check_continues(old, new, folder, settings=Training())
    return str(caught.value)


def test_other_settings_are_listed_old_to_new(tmp_path):
    message = refusal(config_of(), config_of(batch_size=64, model=Model(width=128)), tmp_path)
    assert "batch-size 32 -> 64; model.width 64 -> 128" in message
    assert str(tmp_path) in message
    assert "--overwrite" in message


def test_other_data_is_refused_by_its_content(tmp_path):
    assert "the content of data d1 -> d2" in refusal(config_of(), config_of("d2"), tmp_path)


def test_steps_may_grow_but_not_shrink(tmp_path):
    check_continues(config_of(), config_of(steps=200), tmp_path, settings=Training())
    check_continues(config_of(), config_of(), tmp_path, settings=Training())
    assert "steps 100 -> 99" in refusal(config_of(), config_of(steps=99), tmp_path)


def test_what_the_result_does_not_depend_on_may_change(tmp_path):
    changed = config_of(num_workers=7, checkpoint_every=3, data="elsewhere", overwrite=True, dry_run=True)
    check_continues(config_of(), changed, tmp_path, settings=Training())


def test_a_run_continues_from_its_own_file(tmp_path):
    open_run(tmp_path / "run", config_of(), settings=Training(), overwrite=False, is_main=True)
    saved = read_run_config(tmp_path / "run" / "config.json")
    check_continues(saved, config_of(), tmp_path, settings=Training())  # tuples, None and floats survive the file
    assert flatten(saved.settings)["model.grid"] == [8, 8]
    assert not {"overwrite", "dry_run"} & saved.settings.keys()


def test_opening_creates_continues_refuses_and_overwrites(tmp_path):
    folder = tmp_path / "run"
    open_run(folder, config_of(), settings=Training(), overwrite=False, is_main=False)
    assert not folder.exists()
    open_run(folder, config_of(), settings=Training(), overwrite=False, is_main=True)
    (folder / "checkpoints").mkdir()
    open_run(folder, config_of(steps=300), settings=Training(), overwrite=False, is_main=True)
    assert read_run_config(folder / "config.json").settings["steps"] == 300
    assert (folder / "checkpoints").is_dir()
    before = (folder / "config.json").read_bytes()
    with pytest.raises(UsageError):
        open_run(folder, config_of(batch_size=1), settings=Training(), overwrite=False, is_main=True)
    assert (folder / "config.json").read_bytes() == before
    open_run(folder, config_of(batch_size=1), settings=Training(), overwrite=True, is_main=True)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.fault("F43")
def test_a_config_of_another_version_is_refused(tmp_path):
    document = {"format_version": 3, "command": "x", "settings": {}, "inputs": {}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="format version 3"):
        read_run_config(tmp_path / "config.json")


def logged_steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_log(folder, *, step, steps, at):
    log = RunLog(folder, step=step, steps=steps, is_main=True)
    for number in at:
        log.advance()
        log.write(number, {"loss": 1.0 / number})
    log.close()


def test_each_log_line_is_one_json_object_and_one_printed_line(tmp_path, capsys):
    write_log(tmp_path, step=0, steps=20, at=(10, 20))
    entry = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert (entry["step"], entry["loss"]) == (10, 0.1)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[0].startswith("step 10/20  loss 0.1  ")
    assert printed[0].endswith(" left")


def test_resuming_drops_the_lines_that_will_be_written_again(tmp_path, capsys):
    write_log(tmp_path, step=0, steps=40, at=(10, 20, 30))
    write_log(tmp_path, step=20, steps=40, at=(30, 40))
    assert logged_steps(tmp_path) == [10, 20, 30, 40]
    assert capsys.readouterr().out


@pytest.mark.parametrize("torn", ['{"step": 30, "lo', '{"step"', "\0\0\0\0", "{"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    write_log(tmp_path, step=0, steps=40, at=(10, 20))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write_log(tmp_path, step=30, steps=40, at=(40,))
    assert logged_steps(tmp_path) == [10, 20, 40]


def test_a_last_line_that_lacks_only_its_end_is_kept_apart_from_the_next(tmp_path):
    write_log(tmp_path, step=0, steps=40, at=(10,))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    write_log(tmp_path, step=10, steps=40, at=(20,))
    assert logged_steps(tmp_path) == [10, 20]


def test_only_the_main_process_writes_and_speaks(tmp_path, capsys):
    log = RunLog(tmp_path, step=0, steps=5, is_main=False)
    log.advance()
    log.write(1, {"loss": 1.0})
    log.say("hello")
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.fault("F7")
def test_a_full_disk_is_found_before_work_starts(tmp_path):
    require_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(EnvironmentFault, match="are free"):
        require_free_space(tmp_path / "not" / "yet", 2**62)
