#!/usr/bin/env bash
# PyAV 18.1.0 (the FFmpeg in its wheel): `AudioResampler(layout="mono")`.
#
# Two equal channels, mixed to one, keep their size if the result is of integers, and become 1.414 times as large if it is
# of floats, whatever the type of the input. FFmpeg weighs each channel by 0.707, and scales the weights so that nothing
# can clip only where the result can clip. Seen here, for a sine of size 0.300 in both channels:
#
#     float -> float mono 0.424
#     float -> int16 mono 0.300
#     int16 -> float mono 0.424
#     int16 -> int16 mono 0.300
#
# It costs whoever mixes in one type for training and in another when the model is used: every sound is 3 dB louder, and
# loud ones leave [-1, 1]. Libraries that decode to float mono by FFmpeg inherit it.
#
# Here: there is no sound yet. Whoever adds a kind of sound (docs/design.md) reads all channels and takes their mean.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install -q --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$folder/environment/bin/python" - <<'PYTHON'
import av
import numpy as np

sine = (0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype(np.float32)
stereo = {"float": np.stack([sine, sine]), "int16": np.round(np.stack([sine, sine]) * 32767).astype(np.int16)}
FORMATS, FULL = {"float": "fltp", "int16": "s16p"}, {"float": 1, "int16": 32767}


def size_of_mono(given: str, wanted: str) -> float:
    frame = av.AudioFrame.from_ndarray(stereo[given], format=FORMATS[given], layout="stereo")
    frame.sample_rate = 48_000
    resampler = av.AudioResampler(format=FORMATS[wanted], layout="mono", rate=48_000)
    mixed = [part.to_ndarray() for part in resampler.resample(frame) + resampler.resample(None)]
    return float(np.abs(np.concatenate(mixed, axis=-1).astype(np.float64)).max()) / FULL[wanted]


seen = {(given, wanted): size_of_mono(given, wanted) for given in FORMATS for wanted in FORMATS}
for (given, wanted), size in seen.items():
    print(f"{given} -> {wanted} mono {size:.3f}")
assert all(abs(size - (0.424 if wanted == "float" else 0.300)) < 0.002 for (_, wanted), size in seen.items())
PYTHON
