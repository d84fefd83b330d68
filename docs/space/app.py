"""The page of `vq-prior app` for a MODEL of vq-prior on the Hub; MODEL_ID names it."""

import os
from pathlib import Path

from vq_prior import VQPriorPipeline
from vq_prior.app import page, serve

MODEL_ID = os.environ.get("MODEL_ID", "")
if not MODEL_ID:
    raise SystemExit("error: MODEL_ID is not set; give it as owner/name in the Space's settings, under Variables")

demo = page(VQPriorPipeline.from_pretrained(MODEL_ID), Path(MODEL_ID))

if __name__ == "__main__":
    serve(demo)
