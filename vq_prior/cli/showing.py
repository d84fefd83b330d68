"""The end of `vq-prior train`: samples as one picture, their measures, and the page; what is there whole is kept."""

from pathlib import Path
from typing import Any

import torch

from stage1_vqvae.modalities.sheets import sheet_bytes
from vq_prior.core.config import read_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.errors import ArtifactError
from vq_prior.settings import Evaluate, Report

SAMPLES, EVALUATION, PAGE = FINALS = ("samples.png", "evaluation.json", "report.html")
IMAGES_OF_EACH, MOST_CLASSES, WITHOUT_CLASSES = 10, 10, 64
END_OF_PNG = b"IEND\xaeB`\x82"


def is_whole(path: Path) -> bool:
    """Return whether one of `FINALS` is there and not torn."""
    if not path.is_file():
        return False
    if path.suffix == ".json":
        try:
            read_json(path)
        except ArtifactError:
            return False
        return True
    end = path.read_bytes()[-64:].rstrip()
    return end.endswith(END_OF_PNG if path.suffix == ".png" else b"</html>")


def draw_measure_tell(out: Path, *, seed: int, num_images: int, of_data: dict[str, Any]) -> None:
    """Write what is missing of RUN/samples.png, RUN/evaluation.json and RUN/report.html.

    Args:
        out: RUN, with its model.
        seed: Of samples and measurement.
        num_images: Samples that are measured; 0 measures nothing.
        of_data: The data as `evaluate` takes them.
    """
    from vq_prior.judge.evaluate import evaluate
    from vq_prior.judge.report import report

    model = out / "model"
    if not is_whole(out / SAMPLES):
        draw_samples(model, out / SAMPLES, seed=seed)
    if num_images and not is_whole(out / EVALUATION):
        (out / PAGE).unlink(missing_ok=True)  # which shows it
        evaluate(Evaluate(model=model, out=out / EVALUATION, num_images=num_images, seed=seed, **of_data))
    if not is_whole(out / PAGE):
        report(Report(run=out))


def draw_samples(model: Path, path: Path, *, seed: int) -> None:
    """Write one picture of samples: a row of ten of each class, of the first ten, or 64 where there are no classes."""
    from vq_prior.model.pipeline import VQPriorPipeline

    pipeline = VQPriorPipeline.from_pretrained(model)
    if pipeline.prior.layout.given_levels:
        print(f"no {path.name}: this prior does not draw every level; see generate --given")
        return
    classes = range(min(len(pipeline.index.label_names), MOST_CLASSES))
    if len(classes) > 1:
        of_each = [
            pipeline(IMAGES_OF_EACH, labels=number, seed=seed, first_index=number * IMAGES_OF_EACH, output_type="pt")
            for number in classes
        ]
        drawn, columns = torch.cat([each.drawn for each in of_each]), IMAGES_OF_EACH
    else:
        drawn, columns = pipeline(WITHOUT_CLASSES, seed=seed, output_type="pt").drawn, 8
    write_atomic(path, sheet_bytes(pipeline.codec.modality.show.sheet(drawn, columns=columns)))
