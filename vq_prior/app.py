"""`vq-prior app`: a page in the browser that draws, reconstructs, completes and paints with a MODEL, and examines it.

A Space on the Hub serves the same page (docs/space). Nothing of a visitor's is kept: uploads and drawn files go after
an hour.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stage1_vqvae.evaluate import transform_of
from vq_prior.core import metrics
from vq_prior.core.components import label_index
from vq_prior.core.errors import UsageError, VQPriorError
from vq_prior.core.media import to_picture, to_pixels
from vq_prior.doctor import doctor
from vq_prior.given_images import images_of
from vq_prior.inputs import settle
from vq_prior.pipeline import VQPriorPipeline
from vq_prior.settings import App, Doctor

MOST_IMAGES, MOST_CODES, AT_ONCE = 64, 512, 8
MOST_WAITING, MOST_BYTES, KEPT_SECONDS = 32, "20mb", 3600
SHOWN, CELL, TILE = 128, 40, 32
EVERY_CLASS = "every class in turn"

Codes = list[np.ndarray]


def app(settings: App) -> None:
    """Serve the page of a MODEL until it is stopped.

    Raises:
        UsageError: If the model is not one of pictures, or the port is out of range.
        ArtifactError: If it is missing or damaged.
    """
    if not 0 <= settings.port <= 65_535:
        raise UsageError(f"port must be between 0 and 65535, got {settings.port}; 0 takes a free one")
    pipe = VQPriorPipeline.from_pretrained(settings.model)
    transform_of(pipe.codec)
    if torch.cuda.is_available():
        pipe.to("cuda")
    serve(page(pipe, settings.model), host=settings.host, port=settings.port or None)


def serve(blocks: gr.Blocks, *, host: str | None = None, port: int | None = None) -> None:
    """Serve a page of `page` with its limits; without a host, where Gradio's environment variables say."""
    blocks.launch(
        server_name=host,
        server_port=port,
        max_file_size=MOST_BYTES,
        share=False,
        show_error=True,
        footer_links=[],
        run_history=False,
    )


def page(pipe: VQPriorPipeline, model: Path) -> gr.Blocks:
    """Return the page of a pipeline.

    Args:
        pipe: Of pictures.
        model: The MODEL it was loaded from, which the doctor examines.
    """
    name = Path(model).absolute().name if Path(model).exists() else str(model)
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as blocks:
        gr.Markdown(f"# {name}\n\n{_description(pipe)}")
        with gr.Tab("Generate"):
            _generate_tab(pipe)
        with gr.Tab("Reconstruct"):
            _reconstruct_tab(pipe)
        if len(pipe.codec.spec.levels) == 1:
            with gr.Tab("Complete"):
                _complete_tab(pipe)
        with gr.Tab("Paint with codes"):
            _paint_tab(pipe)
        with gr.Tab("Doctor"):
            _doctor_tab(model)
    blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=1)
    return blocks


def _description(pipe: VQPriorPipeline) -> str:
    spec = pipe.codec.spec
    grids = ", ".join(f"{'x'.join(map(str, level.grid))} of {level.num_codes} codes" for level in spec.levels)
    size = "x".join(map(str, spec.shape))
    return f"Images of {size}, as grids of codes ({grids}), drawn token by token by a transformer."


def _told(error: Exception) -> gr.Error:
    return gr.Error(str(error), duration=None, print_exception=False)


class _Asked:
    """The widgets of a draw, and what they ask for."""

    def __init__(self, pipe: VQPriorPipeline) -> None:
        self.pipe, sampling = pipe, pipe.index.sampling
        self.names = list(pipe.index.label_names)
        self.label = gr.Dropdown([EVERY_CLASS, *self.names], value=EVERY_CLASS, label="Class", visible=bool(self.names))
        self.count = gr.Slider(1, MOST_IMAGES, value=16, step=1, label="Images")
        self.seed = gr.Number(0, minimum=0, maximum=2**32 - 1, precision=0, label="Seed")
        self.temperature = gr.Slider(0.1, 2, value=sampling.temperature, step=0.05, label="Temperature")
        self.top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p")
        self.guidance = gr.Slider(
            1, 5, value=sampling.guidance_scale, step=0.1, label="Guidance", visible=bool(self.names)
        )

    def widgets(self) -> list[Any]:
        return [self.label, self.count, self.seed, self.temperature, self.top_p, self.guidance]

    def request(
        self, label: str, count: float, seed: float, temperature: float, top_p: float, guidance: float
    ) -> dict[str, Any]:
        """Return what a call of the pipeline takes.

        Raises:
            UsageError: If more images are asked for than one request may.
        """
        if not 1 <= count <= MOST_IMAGES:
            raise UsageError(f"images must be between 1 and {MOST_IMAGES}, got {count:g}")
        labels = None
        if self.names and label != EVERY_CLASS:
            labels = label_index(str(label), tuple(self.names), len(self.names))
        return {
            "num_images": int(count),
            "labels": labels,
            "seed": int(seed),
            "temperature": temperature,
            "top_p": None if top_p == 1 else top_p,
            "guidance_scale": guidance if self.names else None,
            "batch_size": AT_ONCE,
        }


def _generate_tab(pipe: VQPriorPipeline) -> None:
    with gr.Row():
        with gr.Column(scale=1):
            asked = _Asked(pipe)
            button = gr.Button("Draw", variant="primary", elem_id="draw")
        with gr.Column(scale=3):
            gallery = gr.Gallery(
                label="Images", columns=8, format="png", buttons=["download", "download_all"], elem_id="drawn"
            )
            told = gr.Markdown(elem_id="progress")

    def draw(*values: Any) -> Iterator[tuple[list[tuple[Image.Image, str]], str]]:
        """Show the images so far, batch by batch."""
        shown: list[tuple[Image.Image, str]] = []
        try:
            request = asked.request(*values)
            for batch in pipe.stream(**request):
                labels = [asked.names[label] for label in batch.labels] if batch.labels else [""] * len(batch.images)
                shown += zip(map(enlarged, batch.images), labels, strict=True)
                yield shown, f"{len(shown)} of {request['num_images']} images"
        except VQPriorError as error:
            raise _told(error) from None

    gr.on([button.click], draw, asked.widgets(), [gallery, told], api_name="draw")


def enlarged(image: Image.Image, side: int = SHOWN) -> Image.Image:
    """Return a small picture at a size that a screen shows, each pixel a square."""
    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), resample=Image.Resampling.NEAREST)


def _reconstruct_tab(pipe: VQPriorPipeline) -> None:
    with gr.Row():
        with gr.Column(scale=1):
            upload = gr.File(label="A picture", file_count="single", elem_id="upload")
            told = gr.Markdown(elem_id="reconstruction")
        with gr.Column(scale=3), gr.Row():
            seen = gr.Image(label="As the codec sees it", format="png", interactive=False)
            copy = gr.Image(label="From its codes", format="png", interactive=False, elem_id="copy")
            overlay = gr.Image(label="Codes", format="png", interactive=False, elem_id="codes")

    def reconstruct(file: str | None) -> tuple[Any, Any, Any, str]:
        if not file:
            return None, None, None, ""
        try:
            images = images_of(file, pipe.codec)
        except VQPriorError as error:
            raise _told(_of_upload(error, file)) from None
        codes = pipe.codec.encode(images.to(pipe.device))
        decoded = pipe.codec.decode(codes).cpu()
        text = f"{float(metrics.psnr(images, decoded)):.2f} dB, {pipe.codec.spec.num_tokens} codes"
        pictures = [to_picture(to_pixels(one)[0]) for one in (images, decoded)]
        finest = codes[-1][0].cpu().numpy()
        return enlarged(pictures[0], 256), enlarged(pictures[1], 256), over(pictures[1], finest), text

    upload.change(reconstruct, upload, [seen, copy, overlay, told], api_name="reconstruct")


def _of_upload(error: VQPriorError, file: str) -> VQPriorError:
    """Return the error without where the upload lies."""
    return UsageError(str(error).replace(str(file), Path(file).name))


def over(picture: Image.Image, codes: np.ndarray, chosen: tuple[int, int] | None = None) -> Image.Image:
    """Return a picture enlarged, its grid of code numbers [rows, columns] over it; the chosen cell is framed."""
    rows, columns = codes.shape
    size = (columns * CELL, rows * CELL)
    ground = picture.convert("RGB").resize(size, resample=Image.Resampling.NEAREST)
    pen, font = ImageDraw.Draw(ground), ImageFont.load_default(size=12)
    for row in range(rows):
        for column in range(columns):
            corner = (column * CELL, row * CELL)
            pen.rectangle((*corner, corner[0] + CELL, corner[1] + CELL), outline=(128, 128, 128))
            middle = (corner[0] + CELL // 2, corner[1] + CELL // 2)
            number, black = str(codes[row, column]), (0, 0, 0)
            pen.text(middle, number, (255, 255, 255), font, anchor="mm", stroke_width=2, stroke_fill=black)
    if chosen is not None:
        left, top = chosen[1] * CELL, chosen[0] * CELL
        pen.rectangle((left, top, left + CELL, top + CELL), outline=(255, 64, 64), width=3)
    return ground


def _complete_tab(pipe: VQPriorPipeline) -> None:
    with gr.Row():
        with gr.Column(scale=1):
            upload = gr.File(label="A picture", file_count="single", elem_id="begun")
            keep = gr.Slider(0, 1, value=0.5, step=0.05, label="Kept from the top")
            asked = _Asked(pipe)
            button = gr.Button("Complete", variant="primary", elem_id="complete")
        gallery = gr.Gallery(label="Completions", columns=8, format="png", scale=3, elem_id="completed")

    def complete(file: str | None, share: float, *values: Any) -> list[Image.Image]:
        if not file:
            raise _told(UsageError("upload a picture first"))
        try:
            return [enlarged(image) for image in pipe.complete(file, share, **asked.request(*values)).images]
        except VQPriorError as error:
            raise _told(_of_upload(error, file)) from None

    button.click(complete, [upload, keep, *asked.widgets()], gallery, api_name="complete")


def _paint_tab(pipe: VQPriorPipeline) -> None:
    spec = pipe.codec.spec
    finest = len(spec.levels) - 1
    K = spec.levels[finest].num_codes
    gr.Markdown("Draw or upload an image, click a cell of its finest grid, choose a code, replace it, look.")
    codes, cell = gr.State([]), gr.State([0, 0])
    with gr.Row():
        with gr.Column(scale=1):
            seed = gr.Number(0, minimum=0, maximum=2**32 - 1, precision=0, label="Seed")
            draw = gr.Button("Draw one", elem_id="paint-draw")
            upload = gr.File(label="Or a picture", file_count="single", elem_id="paint-upload")
            code = gr.Number(0, minimum=0, maximum=K - 1, precision=0, label=f"Code (0 to {K - 1})", elem_id="code")
            replace = gr.Button("Replace the cell", variant="primary", elem_id="replace")
        grid = gr.Image(label="Click a cell", format="png", interactive=False, scale=2, elem_id="grid")
        result = gr.Image(label="Image", format="png", interactive=False, scale=2, elem_id="painted")
    palette = gr.Gallery(
        label="Codes, each where its neighbours are the same code; click one to choose it",
        value=partial(_palette, pipe, finest),
        columns=16,
        height=260,
        format="png",
        allow_preview=False,
        elem_id="palette",
    )

    def shown(grids: Codes, at: list[int]) -> tuple[Any, Any]:
        picture = to_picture(to_pixels(pipe.codec.decode(_tensors(grids)))[0])
        return over(picture, grids[finest], (at[0], at[1])), enlarged(picture, 320)

    def begin(number: float) -> tuple[Any, ...]:
        drawn = pipe(1, seed=int(number), output_type="pt")
        grids = [level[0].cpu().numpy() for level in drawn.codes]
        return grids, [0, 0], *shown(grids, [0, 0]), int(grids[finest][0, 0])

    def take(file: str | None) -> tuple[Any, ...]:
        if not file:
            return [], [0, 0], None, None, 0
        try:
            images = images_of(file, pipe.codec)
        except VQPriorError as error:
            raise _told(_of_upload(error, file)) from None
        grids = [level[0].cpu().numpy() for level in pipe.codec.encode(images.to(pipe.device))]
        return grids, [0, 0], *shown(grids, [0, 0]), int(grids[finest][0, 0])

    def choose(grids: Codes, event: gr.SelectData) -> tuple[Any, ...]:
        rows, columns = spec.levels[finest].grid
        at = [min(rows - 1, event.index[1] // CELL), min(columns - 1, event.index[0] // CELL)]
        return at, shown(grids, at)[0], int(grids[finest][at[0], at[1]])

    def put(grids: Codes, at: list[int], number: float | None) -> tuple[Any, ...]:
        if not grids:
            raise _told(UsageError("draw or upload an image first"))
        if number is None or not 0 <= number < K:
            raise _told(UsageError(f"code must be between 0 and {K - 1}, got {number}"))
        grids = [level.copy() for level in grids]
        grids[finest][at[0], at[1]] = int(number)
        return grids, *shown(grids, at)

    def pick(event: gr.SelectData) -> int:
        return int(event.index)

    started = [codes, cell, grid, result, code]
    draw.click(begin, seed, started, api_visibility="private")
    upload.change(take, upload, started, api_visibility="private")
    grid.select(choose, codes, [cell, grid, code], api_visibility="private")
    replace.click(put, [codes, cell, code], [codes, grid, result], api_visibility="private")
    palette.select(pick, None, code, api_visibility="private")


def _tensors(grids: Codes) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.asarray(level)[None]) for level in grids)


def _palette(pipe: VQPriorPipeline, finest: int) -> list[tuple[Image.Image, str]]:
    """Return what each code of the finest level draws where its neighbours are the same code, coarser levels at 0."""
    from vq_prior.report import middles

    level = pipe.codec.spec.levels[finest]
    numbers = torch.arange(min(level.num_codes, MOST_CODES))
    pixels = np.concatenate([middles(pipe.codec, some) for some in numbers.split(MOST_IMAGES)])
    return [(enlarged(to_picture(tile), TILE), str(number)) for number, tile in enumerate(pixels)]


def _doctor_tab(model: Path) -> None:
    gr.Markdown(
        "What can be told of this model from what there is of it here: its parts, codes and data if they lie by."
    )
    button = gr.Button("Examine", elem_id="examine")
    findings = gr.Textbox(label="Findings", lines=24, max_lines=60, interactive=False, elem_id="findings")

    def examine() -> str:
        lines: list[str] = []
        try:
            doctor(Doctor(model=settle(model)), say=lines.append)
        except VQPriorError as error:
            lines.append(f"error: {error}")
        return "\n".join(lines)

    button.click(examine, None, findings, api_name="doctor")
