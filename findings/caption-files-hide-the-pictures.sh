#!/usr/bin/env bash
# datasets 5.2.0: `load_dataset(FOLDER)` on pictures with a caption file beside each (001.png, 001.txt, ...).
#
# One kind of file is chosen for the whole folder, and where there are as many texts as pictures it is the texts: the
# pictures are not in the data set, and nothing says so. Seen here, for six PNGs and six caption files of each kind:
#
#     pictures alone: columns ['image'], 6 rows
#     with .txt:      columns ['text'], 6 rows
#     with .json:     columns ['caption'], 6 rows
#
# It costs whoever loads or uploads a folder in the layout that many trainers of picture models expect: a table of texts,
# on the Hub too. `load_dataset("imagefolder", data_dir=FOLDER)` reads the pictures.
#
# Here: folders are read by stage1_vqvae/data/folders.py, which takes what is a picture by its name, and says how many other
# files it left aside.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
cd "$folder"
HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 environment/bin/python - <<'PYTHON'
from pathlib import Path

from datasets import load_dataset
from PIL import Image

CAPTIONS = {"alone": None, "txt": "a grey picture\n", "json": '{"caption": "a grey picture"}\n'}
seen = {}
for name, caption in CAPTIONS.items():
    folder = Path(name)
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number,) * 3).save(folder / f"{number:03d}.png")
        if caption:
            (folder / f"{number:03d}.{name}").write_text(caption)
    table = load_dataset(str(folder.resolve()), cache_dir="cache", split="train")
    seen[name] = (table.column_names, len(table))
    print(f"{'pictures alone' if name == 'alone' else 'with .' + name}: columns {table.column_names}, {len(table)} rows")
assert seen == {"alone": (["image"], 6), "txt": (["text"], 6), "json": (["caption"], 6)}
PYTHON
