"""`vq-prior app`: a page in the browser that draws, reconstructs, completes and paints with a MODEL, and examines it;
or one on which a person chooses between the samples of two.

A Space on the Hub serves the same page (docs/space). Nothing of a visitor's is kept: uploads and drawn files go after
an hour.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stage1_vqvae.modalities.sheets import to_picture
from vq_prior.core.disk.locks import releasing
from vq_prior.core.errors import EnvironmentFault, UsageError, VQPriorError, in_one_line
from vq_prior.core.spec import by
from vq_prior.judge.doctor import doctor
from vq_prior.judge.gallery import middles
from vq_prior.judge.preference import open_study
from vq_prior.judge.preference_page import preference_page
from vq_prior.model.given_images import images_of
from vq_prior.model.inputs import fetch_once
from vq_prior.model.pipeline import VQPriorPipeline
from vq_prior.settings import App, Doctor

MOST_IMAGES, MOST_CODES, AT_ONCE = 64, 512, 8
MOST_WAITING, MOST_BYTES, KEPT_SECONDS = 32, "20mb", 3600
SHOWN, CELL, TILE = 128, 40, 32
EVERY_CLASS = "every class in turn"
BUTTONS: list[Any] = ["download", "download_all"]

Codes = list[np.ndarray]


@releasing
def app(settings: App) -> None:
    """Serve the page of a MODEL, or of a comparison of two, until it is stopped.

    Raises:
        UsageError: If a setting is out of range or goes with another page, or two models cannot be compared.
        ArtifactError: If a model is missing or damaged.
    """
    _check(settings)
    if settings.model is not None:
        pipe = VQPriorPipeline.from_pretrained(settings.model)
        if torch.cuda.is_available():
            pipe.to("cuda")
        blocks, what = page(pipe, settings.model), str(settings.model)
    else:
        blocks, what = _comparison(settings)
    where = serve(blocks, host=settings.host, port=settings.port or None, wait=False)
    print(f"serving {what} at {where} until stopped (Ctrl-C)", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        blocks.close(verbose=False)


def _check(settings: App) -> None:
    if not 0 <= settings.port <= 65_535:
        raise UsageError(f"port must be between 0 and 65535, got {settings.port}; 0 takes a free one")
    if (settings.model is None) == (settings.compare is None):
        raise UsageError("app needs either --model MODEL or --compare A B")
    for name in ("votes", "seed"):
        if settings.compare is None and getattr(settings, name) is not None:
            raise UsageError(f"--{name} goes with --compare A B alone")


def _comparison(settings: App) -> tuple[gr.Blocks, str]:
    """Return the page of a preference study and what to call it."""
    assert settings.compare is not None
    a, b = (fetch_once(model) for model in settings.compare)
    votes = settings.votes or Path("votes.json")
    names = (str(settings.compare[0]), str(settings.compare[1]))
    study = open_study((a, b), names, votes=votes, seed=settings.seed)
    if torch.cuda.is_available():
        for pipe in (study.a, study.b):
            pipe.to("cuda")
    print(f"{study.number} votes in {votes}; each vote is written there", flush=True)
    return preference_page(study), f"{names[0]} against {names[1]}"


def serve(blocks: gr.Blocks, *, host: str | None = None, port: int | None = None, wait: bool = True) -> str:
    """Serve a page of `page` with its limits and return where; without a host, where Gradio's environment says."""
    try:
        _, where, _ = blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=MOST_BYTES,
            share=False,
            show_error=True,
            footer_links=[],
            run_history=False,
            quiet=True,
            prevent_thread_lock=not wait,
        )
    except OSError as error:
        raise EnvironmentFault(f"cannot listen at {host} port {port}: {in_one_line(error)}") from error
    return where


def page(pipe: VQPriorPipeline, model: Path) -> gr.Blocks:
    """Return the page of a pipeline.

    Args:
        pipe: Of pictures.
        model: The MODEL it was loaded from, which the doctor examines.
    """
    name = _name(model)
    seconds_kept = (KEPT_SECONDS, KEPT_SECONDS)
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=seconds_kept, fill_width=True) as blocks:
        gr.Markdown(f"# {name}\n\n{_description(pipe)}")
        with gr.Tab("Generate"):
            _generate_tab(pipe)
        with gr.Tab("Reconstruct"):
            _reconstruct_tab(pipe)
        with gr.Tab("Complete"):
            _complete_tab(pipe)
        if len(pipe.codec.spec.levels[-1].grid) == 2:
            with gr.Tab("Paint with codes"):
                _paint_tab(pipe)
        with gr.Tab("Doctor"):
            _doctor_tab(model)
    blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=1)
    return blocks


def _name(model: Path) -> str:
    """Return what to call a MODEL: the Hub id, or the folder's name (of RUN/model, the run's)."""
    if not model.exists():
        return str(model)
    folder = model.absolute()
    return folder.parent.name if folder.name == "model" else folder.name


def _description(pipe: VQPriorPipeline) -> str:
    spec = pipe.codec.spec
    grids = ", ".join(f"{by(level.grid, 'x')} of {level.num_codes} codes" for level in spec.levels)
    size = by(spec.shape, "x")
    return f"Images of {size}, as grids of codes ({grids}), drawn token by token by a transformer."


def _shown_error(error: Exception) -> gr.Error:
    return gr.Error(str(error), duration=None, print_exception=False)


class _DrawForm:
    """The widgets of a draw, and what they ask for."""

    def __init__(self, pipe: VQPriorPipeline) -> None:
        self.pipe, sampling = pipe, pipe.index.sampling
        self.names = list(pipe.index.label_names)
        self.label = gr.Dropdown([EVERY_CLASS, *self.names], value=EVERY_CLASS, label="Class", visible=bool(self.names))
        self.count = gr.Slider(1, MOST_IMAGES, value=16, step=1, label="Images")
        self.seed = gr.Number(0, minimum=0, maximum=2**32 - 1, precision=0, label="Seed")
        own = sampling.temperature
        self.measured = fmean(own) if isinstance(own, tuple) else own  # where it stands, every level has its own
        self.temperature = gr.Slider(0.1, 2, value=self.measured, step=0.05, label="Temperature")
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
            labels = str(label)
        return {
            "num_images": int(count),
            "labels": labels,
            "seed": int(seed),
            "temperature": None if temperature == self.measured else temperature,
            "top_p": None if top_p == 1 else top_p,
            "guidance_scale": guidance if self.names else None,
            "batch_size": AT_ONCE,
            "output_type": "pt",
        }


def _generate_tab(pipe: VQPriorPipeline) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            form = _DrawForm(pipe)
            button = gr.Button("Draw", variant="primary", elem_id="draw")
        with gr.Column(scale=3):
            gallery = gr.Gallery(show_label=False, columns=6, format="png", buttons=BUTTONS, elem_id="drawn")
            progress = gr.Markdown(elem_id="progress")

    def draw(*values: Any) -> Iterator[tuple[list[tuple[Image.Image, str]], str]]:
        """Show the images so far, batch by batch."""
        shown: list[tuple[Image.Image, str]] = []
        try:
            request = form.request(*values)
            for batch in pipe.stream(**request):
                labels = [form.names[label] for label in batch.labels] if batch.labels else [""] * len(batch.drawn)
                shown += zip(map(enlarged, pictures_of(pipe, batch.drawn)), labels, strict=True)
                yield shown, f"{len(shown)} of {request['num_images']} images"
        except VQPriorError as error:
            raise _shown_error(error) from None

    gr.on([button.click], draw, form.widgets(), [gallery, progress], api_name="draw")


def _shown_image(caption: str, name: str) -> gr.Image:
    """Return a picture under its caption: Gradio's own label would lie over it."""
    with gr.Column(scale=2, min_width=200):
        gr.Markdown(caption)
        return gr.Image(show_label=False, format="png", interactive=False, buttons=["download"], elem_id=name)


def enlarged(image: Image.Image, side: int = SHOWN) -> Image.Image:
    """Return a small picture at a size that a screen shows, each pixel a square."""
    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), resample=Image.Resampling.NEAREST)


def _reconstruct_tab(pipe: VQPriorPipeline) -> None:
    num_levels = len(pipe.codec.spec.levels)
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            upload = gr.File(label="A picture", file_count="single", elem_id="upload")
            some = pipe.codec.separable and num_levels > 1
            first = gr.Slider(1, max(2, num_levels), value=num_levels, step=1, label="Levels", visible=some)
            quality = gr.Markdown(elem_id="reconstruction")
        seen = _shown_image("As the codec sees it", "seen")
        copy = _shown_image("From its codes", "copy")
        overlay = _shown_image("Its codes", "codes")

    def reconstruct(file: str | None, first_levels: float = num_levels) -> tuple[Any, Any, Any, str]:
        if not file:
            return None, None, None, ""
        try:
            images = images_of(file, pipe.codec)
        except VQPriorError as error:
            raise _shown_error(_of_upload(error, file)) from None
        codes = pipe.codec.encode(images.to(pipe.device))[: int(first_levels)]
        decoded = pipe.codec.decode(codes).cpu()
        text = f"{_nearness(pipe, images, decoded)}, {sum(level[0].numel() for level in codes)} codes"
        pictures = pictures_of(pipe, torch.cat([images.cpu(), decoded]))
        finest = codes[-1][0].cpu().numpy()
        finest = finest.reshape(-1, finest.shape[-1])  # the page is flat
        return enlarged(pictures[0], 256), enlarged(pictures[1], 256), over(pictures[1], finest), text

    shown = [seen, copy, overlay, quality]
    upload.change(reconstruct, [upload, first] if some else upload, shown, api_name="reconstruct")
    first.release(reconstruct, [upload, first], shown, api_visibility="private")


def pictures_of(pipe: VQPriorPipeline, values: Tensor) -> list[Image.Image]:
    """Return a picture of each value, as transparent as it is."""
    kind = pipe.codec.modality
    pixels = kind.values.to_stored(values) if kind.show.output == "images" else kind.show.pictures(values)
    # The page has 8 bits of each number.
    return [to_picture(each) for each in (pixels if pixels.dtype == np.uint8 else kind.show.pictures(values))]


def _nearness(pipe: VQPriorPipeline, values: Tensor, copies: Tensor) -> str:
    """Return how near a copy comes: of pictures in dB, else the error."""
    measures = pipe.codec.modality.quality.measures
    name = "psnr" if "psnr" in measures else "mse"
    unit = measures[name].unit or name
    return f"{float(measures[name].function(values, copies)):{measures[name].form}} {unit}"


def _of_upload(error: VQPriorError, file: str) -> VQPriorError:
    """Return the error without where the upload lies."""
    return UsageError(str(error).replace(str(file), Path(file).name))


def over(picture: Image.Image, codes: np.ndarray, chosen: tuple[int, int] | None = None) -> Image.Image:
    """Return a picture enlarged, its grid of code numbers [rows, columns] over it; the chosen cell is framed."""
    rows, columns = codes.shape
    size = (columns * CELL, rows * CELL)
    white = Image.new("RGBA", picture.size, "white")
    ground = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB").resize(size, Image.Resampling.NEAREST)
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
        with gr.Column(scale=1, min_width=220):
            upload = gr.File(label="A picture", file_count="single", elem_id="begun")
            keep = gr.Slider(0, 1, value=0.5, step=0.05, label="Kept from the top")
            form = _DrawForm(pipe)
            button = gr.Button("Complete", variant="primary", elem_id="complete")
        with gr.Column(scale=3):
            gallery = gr.Gallery(show_label=False, columns=6, format="png", buttons=BUTTONS, elem_id="completed")

    def complete(file: str | None, share: float, *values: Any) -> list[Image.Image]:
        if not file:
            raise _shown_error(UsageError("upload a picture first"))
        try:
            drawn = pipe.complete(file, share, **form.request(*values)).drawn
            return [enlarged(picture) for picture in pictures_of(pipe, drawn)]
        except VQPriorError as error:
            raise _shown_error(_of_upload(error, file)) from None

    button.click(complete, [upload, keep, *form.widgets()], gallery, api_name="complete")


def _paint_tab(pipe: VQPriorPipeline) -> None:
    painter = _Painter(pipe)
    gr.Markdown("Draw or upload an image, click a cell of its finest grid, choose a code, replace it, look.")
    codes, cell = gr.State([]), gr.State([0, 0])
    most = painter.num_codes - 1
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            seed = gr.Number(0, minimum=0, maximum=2**32 - 1, precision=0, label="Seed")
            draw = gr.Button("Draw one", elem_id="paint-draw")
            upload = gr.File(label="Or a picture", file_count="single", elem_id="paint-upload")
            code = gr.Number(0, minimum=0, maximum=most, precision=0, label=f"Code (0 to {most})", elem_id="code")
            replace = gr.Button("Replace the cell", variant="primary", elem_id="replace")
        grid = _shown_image("Click a cell", "grid")
        result = _shown_image("What its codes draw", "painted")
    gr.Markdown("The codes, each where its neighbours are the same code. Click one to choose it.")
    palette = gr.Gallery(
        show_label=False,
        value=painter.palette,
        columns=10,
        height=260,
        format="png",
        allow_preview=False,
        elem_id="palette",
    )
    started = [codes, cell, grid, result, code]
    draw.click(painter.begin, seed, started, api_visibility="private")
    upload.change(painter.take, upload, started, api_visibility="private")
    grid.select(painter.choose, codes, [cell, grid, code], api_visibility="private")
    replace.click(painter.put, [codes, cell, code], [codes, grid, result], api_visibility="private")
    palette.select(painter.pick, None, code, api_visibility="private")


class _Painter:
    """What the painting tab does with the codes of one image, a grid [rows, columns] a level."""

    def __init__(self, pipe: VQPriorPipeline) -> None:
        self.pipe = pipe
        grid: tuple[int, ...] = pipe.codec.spec.levels[-1].grid
        self.rows, self.columns = grid
        self.num_codes = pipe.codec.spec.levels[-1].num_codes

    def begin(self, seed: float) -> tuple[Any, ...]:
        """Return what the tab shows of a new sample."""
        try:
            drawn = self.pipe(1, seed=int(seed), output_type="pt")
        except VQPriorError as error:
            raise _shown_error(error) from None
        return self._opened(drawn.codes)

    def take(self, file: str | None) -> tuple[Any, ...]:
        """Return what the tab shows of an upload."""
        if not file:
            return [], [0, 0], None, None, 0
        try:
            images = images_of(file, self.pipe.codec)
        except VQPriorError as error:
            raise _shown_error(_of_upload(error, file)) from None
        return self._opened(self.pipe.codec.encode(images.to(self.pipe.device)))

    def choose(self, grids: Codes, event: gr.SelectData) -> tuple[Any, ...]:
        """Return the cell that was clicked, the grid with its frame, and its code."""
        at = [min(self.rows - 1, event.index[1] // CELL), min(self.columns - 1, event.index[0] // CELL)]
        return at, self._shown(grids, at)[0], int(grids[-1][at[0], at[1]])

    def put(self, grids: Codes, at: list[int], code: float | None) -> tuple[Any, ...]:
        """Return the codes with another code in a cell, and what they draw."""
        if not grids:
            raise _shown_error(UsageError("draw or upload an image first"))
        if code is None or not 0 <= code < self.num_codes:
            raise _shown_error(UsageError(f"code must be between 0 and {self.num_codes - 1}, got {code}"))
        grids = [level.copy() for level in grids]
        grids[-1][at[0], at[1]] = int(code)
        return grids, *self._shown(grids, at)

    def pick(self, event: gr.SelectData) -> int:
        """Return the code of the tile that was clicked."""
        return int(event.index)

    def palette(self) -> list[tuple[Image.Image, str]]:
        """Return a picture of each code of the finest level, decoded where every cell around has that code too; coarser
        levels are 0.
        """
        numbers = torch.arange(min(self.num_codes, MOST_CODES))
        values = torch.cat([middles(self.pipe.codec, some) for some in numbers.split(MOST_IMAGES)])
        tiles = pictures_of(self.pipe, values)
        return [(enlarged(tile, TILE), str(number)) for number, tile in enumerate(tiles)]

    def _opened(self, codes: tuple[Tensor, ...]) -> tuple[Any, ...]:
        grids = [level[0].cpu().numpy() for level in codes]
        return grids, [0, 0], *self._shown(grids, [0, 0]), int(grids[-1][0, 0])

    def _shown(self, grids: Codes, at: list[int]) -> tuple[Any, Any]:
        codes = tuple(torch.from_numpy(np.asarray(level)[None]) for level in grids)
        (picture,) = pictures_of(self.pipe, self.pipe.codec.decode(codes))
        return over(picture, grids[-1], (at[0], at[1])), enlarged(picture, 320)


def _doctor_tab(model: Path) -> None:
    gr.Markdown(
        "What can be told of this model from what there is of it here: its parts, codes and data if they lie by."
    )
    button = gr.Button("Examine", elem_id="examine")
    findings = gr.Textbox(label="Findings", lines=24, max_lines=60, interactive=False, elem_id="findings")

    def examine() -> str:
        lines: list[str] = []
        try:
            doctor(Doctor(model=fetch_once(model)), say=lines.append)
        except VQPriorError as error:
            lines.append(f"error: {error}")
        return "\n".join(lines)

    button.click(examine, None, findings, api_name="doctor")
