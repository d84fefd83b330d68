#!/usr/bin/env bash
# Pillow 12.3.0: signed 16-bit and 32-bit integers in a compressed big-endian TIFF.
#
# Of compressed files Pillow gets numbers in the machine's own order, and then exchanges the bytes of signed ones as the
# file's header asks, a second time. Unsigned ones, and files without compression, come out right. Seen here, for the
# numbers -2, -1, 0, 1, 2 on a little-endian machine:
#
#     int16 > none: -2 -1 0 1 2
#     int16 > zlib: -257 -1 0 256 512
#     int32 > none: -2 -1 0 1 2
#     int32 > zlib: -16777217 -1 0 16777216 33554432
#
# It costs whoever reads elevations or other signed rasters with a picture library: nothing fails, and noise is trained on.
#
# Here: such a file is read with its numbers in the machine's order (stage1_vqvae/modalities/pictures/deep.py).
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install -q --disable-pip-version-check tifffile==2026.3.3 pillow==12.3.0 numpy==2.4.6
cd "$folder"
environment/bin/python - <<'PYTHON'
import numpy as np
import tifffile
from PIL import Image

wrong = []
for dtype in ("int16", "int32"):
    values = np.array([[-2, -1, 0, 1, 2]], dtype=dtype)
    for compression in (None, "zlib"):
        tifffile.imwrite("a.tif", values, byteorder=">", compression=compression)
        assert np.array_equal(np.squeeze(tifffile.imread("a.tif")), values[0])
        seen = np.asarray(Image.open("a.tif"))[0]
        print(f"{dtype} > {compression or 'none'}: {' '.join(map(str, seen))}")
        if not np.array_equal(seen, values[0]):
            wrong.append((dtype, compression))
assert wrong == [("int16", "zlib"), ("int32", "zlib")], wrong
PYTHON
