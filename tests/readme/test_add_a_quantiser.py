"""The guide to a quantiser of one's own: its file passes its test, and the command line finds it by its line."""

import re
import subprocess
import sys
from pathlib import Path

from vq_prior.core.disk.code_store import CodeStore

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDE = (REPOSITORY / "docs" / "add-a-quantiser.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(?P<language>python|toml)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_worked_example_ends_in_a_green_test_and_a_codec(tmp_path, child_environment):
    blocks = [(match["language"], match["body"]) for match in BLOCK.finditer(GUIDE)]
    assert [language for language, _ in blocks] == ["python", "python", "toml"]
    package = tmp_path / "package"
    for _, body in blocks[:2]:
        name = re.match(r"# (\w+\.py)\n", body)
        package.mkdir(exist_ok=True)
        (package / name[1]).write_text(body)
    described = package / "my_quantiser-0.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: my-quantiser\nVersion: 0.1\n")
    entry = blocks[2][1].replace('[project.entry-points."', "[").replace('"]', "]").replace('"', "")
    (described / "entry_points.txt").write_text(entry)
    environment = child_environment(PYTHONPATH=f"{package}:{REPOSITORY}")

    def run(*words, code=0):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    assert "1 passed" in run("pytest", "-q", "-p", "no:cacheprovider", "package/test_my_quantiser.py").stdout
    small = ["--steps", "2", "--batch-size", "16", "--model.width", "16", "--out", "run"]
    name = ["--quantizer.name", "directions", "--quantizer.code-dim", "2"]
    run("vq_prior", "train-vqvae", "--data", "digits", *small, *name)
    run("vq_prior", "extract-codes", "--codec", "run", "--data", "digits", "--out", "codes")
    assert CodeStore.open(tmp_path / "codes").spec.levels[0].num_codes >= 32
    environment["PYTHONPATH"] = str(REPOSITORY)  # without the package
    refused = run("vq_prior", "extract-codes", "--codec", "run", "--data", "digits", "--out", "other", code=3)
    assert "directions" in refused.stderr
