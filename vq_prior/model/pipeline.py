"""`VQPriorPipeline`: a trained codec and prior as one object that draws images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack
from warnings import warn

import torch
from torch import Tensor

from stage1_vqvae.codecs import open_codec
from stage2_prior.conditions import Conditioned
from stage2_prior.likelihood import Scores, score_codes
from stage2_prior.prior import CausalPrior, load_prior, save_prior
from stage2_prior.sampling import checked_given, given_from_prefix, sample_tokens
from stage2_prior.sampling_settings import Sampling, Temperature
from vq_prior.core.disk.artifacts import new_folder, write_manifest
from vq_prior.core.disk.records import keep_record
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.hub.shareable import Shareable
from vq_prior.core.processes.runtime import Precision
from vq_prior.core.processes.threads import using_threads
from vq_prior.core.spec import Codec
from vq_prior.core.training.randomness import MAX_SEED
from vq_prior.model.conditions import condition_values
from vq_prior.model.folder import assemble, index_of
from vq_prior.model.given_images import GivenImage, Keep, images_of, kept_rows
from vq_prior.model.index import read_index
from vq_prior.model.output import OUTPUT_TYPES, OutputType, PipelineOutput, joined, output_of
from vq_prior.model.request import check_request, class_of_each, require_null_prompt, require_whole, resolve_sampling
from vq_prior.model.share import push


class DrawSettings(TypedDict, total=False):
    """What a call of the pipeline takes beside the number of images; `VQPriorPipeline.__call__` says what each is."""

    labels: Sequence[str | int] | str | int | None
    unconditional: bool
    seed: int
    first_index: int
    batch_size: int | None
    temperature: Temperature | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    guidance_scale: float | None
    guidance_power: float | None
    precision: Precision
    output_type: OutputType


class VQPriorPipeline(Shareable):
    """A codec and a prior that was trained on its codes.

    Attributes:
        codec: Stage one, in eval mode.
        prior: Stage two, in eval mode.
        index: What MODEL's `config.json` says.
    """

    component = "model"

    def __init__(self, codec: Codec, prior: CausalPrior) -> None:
        self.codec, self.prior = codec.eval(), prior
        self.index = index_of(codec, prior)
        self._threads_agree: bool | None = (
            None  # whether the codec decodes the same bits with fewer threads; None: open
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "VQPriorPipeline":
        """Return the pipeline of a MODEL, a folder or a Hub id; every byte of its components is checked.

        Args:
            model: Folder, or `owner/name[@revision]` on the Hub; an existing path wins.
            revision: Branch, tag or commit on the Hub; None is its main branch.
            token: Access token of the Hub; None takes the stored one, False none.
            cache_dir: Where fetched files are kept; None takes the Hub client's default.
            local_files_only: Whether to stay off the network and take what the cache holds.

        Raises:
            ArtifactError: If a file is missing, damaged, or the components and the index do not belong together.
            EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
        """
        options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        return super().from_pretrained(model, revision=revision, **options)  # type: ignore[arg-type]

    @classmethod
    def _of_folder(cls, folder: Path) -> "VQPriorPipeline":
        index = read_index(folder)
        codec, prior = open_codec(folder / "vqvae"), load_prior(folder / "prior")
        for note in (*codec.notes, *prior.notes):
            print(note)
        pipeline = cls(codec, prior)
        for entry in ("spec", "codec_id", "label_names", "components", "sampling"):
            if getattr(pipeline.index, entry) != getattr(index, entry):
                raise ArtifactError(f"{folder / 'config.json'}: {entry} is not that of the components; assemble anew")
        return pipeline

    def _send(self, folder: Path, repo_id: str, **options: Any) -> str:
        return push(folder, repo_id, open_whole=lambda _: self, **options)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the MODEL folder of this pipeline, whole."""
        final = Path(folder)
        parts = final.parent / f".{final.name}.parts"
        with new_folder(parts, manifest=False) as staging:
            for name in ("vqvae", "prior"):
                (staging / name).mkdir()
            self.codec.save(staging / "vqvae")
            save_prior(self.prior, staging / "prior")
            keep_record(self.codec.loaded_from, staging / "vqvae")
            keep_record(self.prior.loaded_from, staging / "prior")
            for name in ("vqvae", "prior"):
                write_manifest(staging / name)
        try:
            assemble(parts / "vqvae", parts / "prior", final, overwrite=overwrite)
        finally:
            import shutil

            shutil.rmtree(parts)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.codec.parameters()).device

    def to(self, device: str | torch.device) -> "VQPriorPipeline":
        """Move both stages to a device and return the pipeline; raises `UsageError` on a dtype, of float32 alone."""
        if isinstance(device, torch.dtype):
            raise UsageError(
                f"a pipeline computes in float32, got {str(device)[6:]}; precision='bf16' in a call draws codes faster"
            )
        self.codec.to(device)
        self.prior.to(device)
        return self

    def __call__(
        self,
        num_images: int = 1,
        *,
        labels: Sequence[str | int] | str | int | None = None,
        unconditional: bool = False,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int | None = None,
        temperature: Temperature | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        guidance_scale: float | None = None,
        guidance_power: float | None = None,
        precision: Precision = "fp32",
        prefix: Tensor | None = None,
        output_type: OutputType = "pil",
        given: Tensor | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> PipelineOutput:
        """Return new images. Image i depends on (model, labels, seed, i, sampling settings, what is given) alone.

        Args:
            num_images: How many.
            labels: Classes by name or index; image i gets labels[i mod n]. None takes every class in turn.
            unconditional: Draw without a class, from a model that has classes.
            seed: Seed of the whole set.
            first_index: Index of the first image, to draw a part of a set.
            batch_size: Images drawn at once; None lets the device decide.
            temperature: Divides the logits; of several levels also one a level. None takes the model's measured value.
            top_k: Keep the k likeliest codes of each step.
            top_p: Then keep the smallest set whose probability reaches p, in (0, 1].
            min_p: Then drop codes less likely than this share of the likeliest, in [0, 1).
            guidance_scale: Classifier-free guidance; None takes the model's measured value, 1 is off.
            guidance_power: Lets guidance rise to that scale along the tokens; None keeps it constant.
            precision: Of the prior's matrix products; "bf16" is faster on machines that have it, to other images.
            prefix: First P tokens of each image, [num_images, P]; deprecated for `given`.
            output_type: "pil", "pt" or "np"; of other kinds than pictures "pil" is "np".
            given: Tokens of each image, [num_images, T] int64, taken as they are, and -1 where one is drawn;
                `prior.layout.given_of` makes them of whole levels. See also `complete`.
            condition: Values by name of the condition, one for all images or one for each; left out: without it.

        Raises:
            UsageError: If a setting is out of range, a label unknown, or the prior knows no null prompt.
        """
        arguments: dict[str, Any] = {name: value for name, value in locals().items() if name != "self"}
        return joined(list(self.stream(**arguments)))

    def stream(
        self,
        num_images: int = 1,
        *,
        prefix: Tensor | None = None,
        given: Tensor | None = None,
        condition: Mapping[str, Any] | None = None,
        **settings: Unpack[DrawSettings],
    ) -> Iterator[PipelineOutput]:
        """Yield the images of a call in batches of `batch_size`, each as soon as it is drawn.

        Args:
            num_images: How many in all.
            prefix: As of a call.
            given: As of a call.
            condition: As of a call.
            settings: Those of a call.

        Raises:
            UsageError: At once, before anything is drawn, if a call would raise it.
        """
        if prefix is not None:
            said = "prefix is deprecated; give the tokens as `given`, [num_images, T], -1 where one is drawn"
            warn(said, DeprecationWarning, stacklevel=3)
            if given is not None:
                raise UsageError("prefix cannot go with given; give the tokens as given alone")
            given = given_from_prefix(self.prior.layout, prefix, num_images)
        return self._stream(num_images, given=given, condition=condition, **settings)

    def _stream(
        self,
        num_images: int,
        *,
        given: Tensor | None,
        condition: Mapping[str, Any] | None = None,
        labels: Sequence[str | int] | str | int | None = None,
        unconditional: bool = False,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        **sampling_settings: Any,
    ) -> Iterator[PipelineOutput]:
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        sampling = resolve_sampling(self.index, Sampling(**sampling_settings), unconditional=unconditional)
        check_request(
            self.index,
            sampling,
            num_images=num_images,
            seed=seed,
            batch_size=batch_size,
            conditioned=self.prior.num_vectors > 0,
        )
        if unconditional:
            require_null_prompt(self.prior.unconditional)
        require_whole("first_index", first_index, 0, MAX_SEED)
        num_images, seed, first_index = int(num_images), int(seed), int(first_index)  # of numpy or torch, too
        names = self.index.label_names
        cycle = class_of_each(labels, len(names), names, unconditional=unconditional)
        indices = range(first_index, first_index + num_images)
        classes = [cycle[i % len(cycle)] for i in indices]
        size = batch_size or default_batch_size(self.device)
        known = checked_given(self.prior.layout, given, num_images)
        values = {} if unconditional else condition_values(self.prior, condition or {}, num_images)

        def batch(n: slice) -> PipelineOutput:
            rows = {name: each[n] for name, each in values.items()}
            images, codes = self.draw(
                classes[n], seed=seed, indices=indices[n], given=known[n], condition=rows, **sampling.words()
            )
            shown = classes[n] if names and not unconditional else None
            return output_of(self.codec, images, shown, codes, output_type)

        return (batch(slice(n, n + size)) for n in range(0, num_images, size))

    def complete(
        self, image: GivenImage, keep: Keep = "top half", *, num_images: int = 1, **settings: Unpack[DrawSettings]
    ) -> PipelineOutput:
        """Return images that begin as a given one does and go on as the prior draws.

        The codes of the rows of the grids that lie within the kept part are taken as they are, the others drawn
        (Chen et al. 2020, "Generative Pretraining from Pixels", figure 1). A completion is the sample of its index
        with these codes given: it depends on what a sample depends on, and on the image.

        Args:
            image: A PIL picture, the path of one, uint8 pixels [height, width, C] or a tensor [C, *shape] in [-1, 1];
                or several of them.
            keep: "top half", or the share of the image that is kept, from the top, in [0, 1].
            num_images: Completions of each image; those of one stand together.
            settings: Those of a call. Without labels, as there, the classes are taken in turn.

        Raises:
            UsageError: If a setting is out of range, or an image is none.
            ArtifactError: If a file is missing or no picture.
        """
        if num_images < 1:
            raise UsageError(f"num_images must be at least 1, got {num_images}")
        given = self.given_of(image, keep).repeat_interleave(num_images, dim=0)
        return self(len(given), given=given, **settings)

    def given_of(self, image: GivenImage, keep: Keep) -> Tensor:
        """Return [B, T] that give the kept part of one or several images, -1 in the rest; see `complete`."""
        rows = kept_rows(keep, self.index.spec.levels[0].grid[0])
        codes = self.codec.encode(images_of(image, self.codec).to(self.device))
        return self.prior.layout.given_rows(codes, rows)

    def prefix_of(self, image: GivenImage, keep: Keep) -> Tensor:
        """Return the tokens [B, P] of the kept part of one or several images; deprecated for `given_of`."""
        warn("prefix_of is deprecated; take given_of, [B, T], -1 where one is drawn", DeprecationWarning, stacklevel=2)
        given = self.given_of(image, keep)
        return given[:, : int((given[0] >= 0).sum())]

    def score(self, images: GivenImage, labels: Sequence[str | int] | str | int | None = None) -> Scores:
        """Return how likely the prior finds the codes of given images; high nats tell what it has not learnt.

        An image's scores do not depend on the other images or their number.

        Args:
            images: One or several, as for `complete`.
            labels: The class of each by name or index, or one class for all; None scores them without a class.

        Raises:
            UsageError: If labels are unknown, not as many as the images, or left out although the prior knows no
                null prompt.
            ArtifactError: If a file is missing or no picture.
        """
        names = self.index.label_names
        values = images_of(images, self.codec).to(self.device)
        classes = class_of_each(labels, len(names), names, unconditional=labels is None)
        if labels is None:
            require_null_prompt(self.prior.unconditional)
        if len(classes) not in (1, len(values)):
            raise UsageError(f"labels must be one, or one for each of the {len(values)} images, got {len(classes)}")
        of_each = torch.tensor(classes if len(classes) > 1 else classes * len(values))
        return score_codes(self.prior, self.codec.encode(values), of_each)

    @torch.inference_mode()
    def draw(
        self,
        classes: Sequence[int],
        *,
        seed: int,
        indices: Sequence[int],
        condition: Mapping[str, Tensor] | None = None,
        **sampling: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return one batch: images [B, C, *shape] in [-1, 1] and their codes of each level [B, *grid]."""
        rows = Conditioned(torch.tensor(list(classes), dtype=torch.int64), condition or {}).to(self.device)
        tokens = sample_tokens(self.prior, rows, seed=seed, indices=list(indices), **sampling)
        codes = self.prior.layout.to_codes(tokens)
        return self._decoded(codes, self.prior.decoder(sampling.get("precision", "fp32")).threads), codes

    def _decoded(self, codes: tuple[Tensor, ...], threads: int | None) -> Tensor:
        """Return the values of codes, decoded with so many threads where that was measured to change no bit."""
        most = torch.get_num_threads()
        if threads in (None, most) or self._threads_agree is False:
            return self.codec.decode(codes)
        with using_threads(threads):
            values = self.codec.decode(codes)
        if self._threads_agree is None:
            self._threads_agree = torch.equal(self.codec.decode(tuple(level[:1] for level in codes)), values[:1])
        return values if self._threads_agree else self.codec.decode(codes)


def default_batch_size(device: torch.device) -> int:
    """Return how many images are drawn at once on this kind of device."""
    return 64 if device.type == "cpu" else 256
