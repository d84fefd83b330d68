"""The guide to a quantiser of one's own: its file passes its test, and the command line finds it by its line."""

import re
from pathlib import Path

from warm import Warm

from vq_prior.core.disk.code_store import CodeStore

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDE = (REPOSITORY / "docs" / "add-a-quantiser.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(?P<language>python|toml)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_worked_example_ends_in_a_green_test_and_a_codec(tmp_path, child_environment, warm):
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
    with Warm(child_environment(PYTHONPATH=str(package)), tmp_path) as with_package:

        def run(words, code=0, process=with_package):
            done = process.run(words, cwd=tmp_path)
            assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
            return done

        own_test = "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'package']))"
        assert "1 passed" in run(own_test).stdout
        small = ["--steps", "2", "--batch-size", "16", "--model.width", "16", "--out", "run"]
        name = ["--quantizer.name", "directions", "--quantizer.code-dim", "2"]
        run(["train-vqvae", "--data", "digits", *small, *name])
        extract = ["extract-codes", "--codec", "run", "--data", "digits", "--out"]
        run([*extract, "codes"])
        assert CodeStore.open(tmp_path / "codes").spec.levels[0].num_codes >= 32
        refused = run([*extract, "other"], code=3, process=warm)
        assert "directions" in refused.stderr
