#!/usr/bin/env bash
# tifffile 2026.3.3 and Pillow 13.0.0: a mask of booleans in a TIFF.
#
# tifffile writes booleans as one bit a pixel and calls the file "white is zero". It reads its own file back as it was;
# Pillow keeps to the tag, and every True comes back False. Pillow's own masks are "black is zero", which both read alike.
# Seen here, for a mask of which a quarter is True:
#
#     written by tifffile: tifffile reads 0.25 True, Pillow 0.75
#     written by Pillow: tifffile reads 0.25 True, Pillow 0.25
#
# It costs whoever writes masks with a scientific library and reads them with a picture library: object and background
# are exchanged, in all files alike, so nothing looks broken.
#
# Here: a mask that says it was written by tifffile is read as it was written, all others as the tag says
# (stage1_vqvae/modalities/pictures/tiff.py).
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install -q --disable-pip-version-check tifffile==2026.3.3 pillow==13.0.0 numpy==2.4.6
cd "$folder"
environment/bin/python - <<'PYTHON'
import numpy as np
import tifffile
from PIL import Image

mask = np.zeros((8, 8), dtype=bool)
mask[:4, :4] = True
tifffile.imwrite("tifffile.tif", mask)
Image.fromarray(mask).save("Pillow.tif")
seen = {}
for writer in ("tifffile", "Pillow"):
    read = tifffile.imread(f"{writer}.tif"), np.asarray(Image.open(f"{writer}.tif"))
    seen[writer] = tuple(float(pixels.astype(bool).mean()) for pixels in read)
    print(f"written by {writer}: tifffile reads {seen[writer][0]:.2f} True, Pillow {seen[writer][1]:.2f}")
assert seen == {"tifffile": (0.25, 0.75), "Pillow": (0.25, 0.25)}
PYTHON
