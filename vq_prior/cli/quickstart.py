"""`vq-prior quickstart`: the whole road on scikit-learn's handwritten digits, in about two minutes."""

import time

import torch

from stage1_vqvae.modalities.sheets import save_png
from stage1_vqvae.settings import ExtractCodes, TrainVQVAE
from stage2_prior.settings import TrainPrior
from vq_prior.settings import Quickstart, Report

IMAGES_OF_EACH = 10


def quickstart(settings: Quickstart) -> None:
    """Train both stages, join them into OUT/model, draw OUT/samples.png (ten of each digit), write OUT/report.html."""
    from stage1_vqvae.extract import extract_codes
    from stage1_vqvae.train import train_vqvae
    from vq_prior.cli.train_prior import train_prior
    from vq_prior.judge.report import report
    from vq_prior.model.pipeline import VQPriorPipeline

    out, seed, overwrite = settings.out, settings.seed, settings.overwrite
    started = time.monotonic()
    print("1/4  training the codec: images -> codes -> images", flush=True)
    train_vqvae(TrainVQVAE(data="digits", out=out, seed=seed, overwrite=overwrite))
    print("2/4  writing the codes of every image", flush=True)
    codec = str(out / "vqvae")
    extract_codes(ExtractCodes(codec=codec, data="digits", out=out / "codes", overwrite=overwrite))
    print("3/4  training the prior over the codes", flush=True)
    train_prior(TrainPrior(codes=out / "codes", out=out, codec=codec, seed=seed, overwrite=overwrite))
    print("4/4  drawing ten of each digit", flush=True)
    pipeline = VQPriorPipeline.from_pretrained(out / "model")
    rows = [
        pipeline(IMAGES_OF_EACH, labels=digit, seed=seed, first_index=digit * IMAGES_OF_EACH, output_type="pt").drawn
        for digit in range(len(pipeline.index.label_names))
    ]
    sheet = pipeline.codec.modality.show.sheet(torch.cat(rows), columns=IMAGES_OF_EACH)
    save_png(out / "samples.png", sheet)
    report(Report(run=out))
    print(f"done in {time.monotonic() - started:.0f} s: look at {out / 'samples.png'}, the model is {out / 'model'}")
    print(f"next: vq-prior generate --model {out / 'model'} --labels seven --num-images 16 --out sevens")
