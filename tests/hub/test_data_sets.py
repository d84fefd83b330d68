"""Data sets of the Hub as DATA: pictures with captions beside them, configurations, and what is said of failures."""

import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hub.server import LoopbackHub, hub_environment
from PIL import Image

PROGRAM = """
import json, sys
from stage1_vqvae.data.sources import open_data

for name in sys.argv[1:]:
    try:
        data = open_data(name)
        rows = [part.encoded(row) for part in (data.train, data.validation) for row in range(len(part))]
        print(json.dumps([name, len(rows), data.label_names, data.notes]))
    except Exception as error:
        print(json.dumps([name, type(error).__name__, str(error)]))
"""


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def table(first: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [picture(first + n) for n in range(4)], "label": [0, 1, 0, 1]}), file)
    return file.getvalue()


def test_data_sets_of_the_hub(tmp_path, child_environment):
    captioned = {f"{name}/{n}.{kind}": b"" for name in ("cat", "dog") for n in range(4) for kind in ("png", "txt")}
    for number, path in enumerate(captioned):
        captioned[path] = picture(number) if path.endswith("png") else f"a picture of a {path[:3]}".encode()
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("small", "large"))
    two = {"small/train.parquet": table(0), "large/train.parquet": table(9)}
    with LoopbackHub() as hub:
        hub.add_repo("owner/captioned", captioned, repo_type="dataset")
        hub.add_repo("owner/texts", {"a.txt": b"one", "b.txt": b"two"}, repo_type="dataset")
        hub.add_repo("owner/two", {"README.md": f"---\nconfigs:\n{configs}---\n".encode(), **two}, repo_type="dataset")
        hub.add_repo("owner/broken", {"train.parquet": b"PAR1 and no more"}, repo_type="dataset")
        hub.add_repo("owner/gated", {"README.md": b"x", "train.parquet": table(0)}, repo_type="dataset", gated=True)
        hub.add_repo("owner/private", {"README.md": b"x"}, repo_type="dataset", private=True)
        names = ["owner/captioned", "owner/texts", "owner/two", "owner/two:large", "owner/two:huge", "owner/broken"]
        names += ["owner/gated", "owner/private", "owner/none", "owner/two@gone"]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *names],
            env=child_environment(**hub_environment(hub, tmp_path)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    said = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    count, classes, notes = said["owner/captioned"]
    assert (count, classes) == (8, ["cat", "dog"])
    assert any("8 texts beside the pictures were fetched" in note for note in notes)
    assert said["owner/two:large"][:2] == [4, ["0", "1"]]
    wanted = {
        "owner/texts": ("NoValues", "has no column of image files"),
        "owner/two": ("UsageError", "has the configurations small, large; name one as owner/two:NAME"),
        "owner/two:huge": ("UsageError", "has the configurations small, large"),
        "owner/broken": ("ArtifactError", "ArrowInvalid: Parquet"),
        "owner/gated": ("ArtifactError", "owner/gated is gated; ask for access on its page and log in"),
        "owner/private": ("ArtifactError", "or it is private"),
        "owner/none": ("ArtifactError", "neither as a path nor on the Hub"),
        "owner/two@gone": ("ArtifactError", "the Hub has no such revision"),
    }
    for name, (kind, text) in wanted.items():
        assert said[name][0] == kind, said[name]
        assert text in said[name][1], said[name]
