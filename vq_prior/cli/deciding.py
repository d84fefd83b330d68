"""The plan of `vq-prior train` as it is made: measured, chosen, and told in words."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from stage1_vqvae.codecs import open_codec
from stage2_prior.run import written_steps
from stage2_prior.settings import filled
from stage2_prior.timing import PriorRates
from vq_prior.cli.choices import (
    AIM,
    DEFAULTS,
    LEAST_STEPS,
    MOST_IMAGES,
    RECIPES,
    Candidate,
    CodecChoice,
    PriorChoice,
    Rates,
    before_prior,
    choose_codec,
    choose_prior,
    ending,
    most_prior_steps,
)
from vq_prior.cli.measure import candidate, form_of, measured_on_codes, sizes_of, timed_seconds
from vq_prior.cli.plan import CodecPlan, Plan, PriorPlan
from vq_prior.cli.road import Road
from vq_prior.core.disk.records import public_name
from vq_prior.core.training.runs import read_run_config, run_config
from vq_prior.model.inputs import fetch_codec

WORTH = 50  # steps of the prior: fewer more would not change it


def first_plan(road: Road, folder: Path) -> Plan:
    """Return the plan of a run that begins, with the codec's part; every process must call it.

    Args:
        road: The run.
        folder: For what is written while measuring.

    Raises:
        UsageError: If the minutes are too few.
    """
    s = road.settings
    if s.from_model is not None:
        codec = CodecPlan("from", {}, {}, {}, f"the codec of {public_name(s.from_model)} stays, with its codes")
    elif s.minutes is None:
        codec = CodecPlan("defaults", {}, {}, {}, "no --minutes: the defaults of train-vqvae and train-prior")
    else:
        road.runtime.say(f"measuring what this machine does, for a plan of {s.minutes:g} minutes")
        choice = _chosen_codec(road, folder)
        codec = _codec_part(choice, s.minutes)
        for line in (*choice.passed, codec.why):
            road.runtime.say(f"plan: {line}")
    settings = run_config("train", s, {}).settings
    return Plan(1, settings, road.data.data_id, s.minutes, codec)


def _candidates(road: Road, folder: Path, minutes: float | None) -> Iterator[Candidate]:
    """Yield the recipes that suit the data, the best first, each measured when it is asked for."""
    settings = road.codec_settings({})
    modality, form = form_of(settings, road.data)
    for recipe in RECIPES:
        if recipe.suits(modality.name, form.shape) and (minutes is not None or recipe is DEFAULTS):
            seconds = timed_seconds(minutes)
            yield candidate(recipe, settings, road.data, road.open_seconds, folder, seconds=seconds)


def _chosen_codec(road: Road, folder: Path) -> CodecChoice:
    minutes = filled(road.settings.minutes)
    spent = road.spent()
    return choose_codec(_candidates(road, folder, minutes), sizes_of(road.data), minutes=minutes, spent=spent)


def _codec_part(choice: CodecChoice, minutes: float) -> CodecPlan:
    r, recipe = choice.candidate.rates, choice.candidate.recipe
    limit = (
        "its default number" if choice.steps == choice.candidate.default_steps else f"what {minutes:g} minutes allow"
    )
    why = (
        f"codec {recipe.name}: {recipe.why}; {choice.steps} steps of {_ms(r.codec_step)}, {limit}; "
        f"its prior will have about {choice.prior_steps} of {_ms(r.prior_step)}"
    )
    return CodecPlan(recipe.name, {"steps": choice.steps, **recipe.codec}, dict(recipe.prior), r.named(), why)


def prior_part(road: Road) -> PriorPlan:
    """Return the prior's part of a plan, chosen when the codes are there; every process must call it."""
    assert road.plan is not None
    minutes = road.plan.minutes
    if minutes is None:
        return PriorPlan(None, {}, MOST_IMAGES, {}, "no --minutes: the defaults of train-prior and evaluate")
    r, prior = _measured(road, minutes)
    most = _most_steps(road, prior)
    left = AIM * 60 * minutes - road.spent()
    choice = choose_prior(r, sizes_of(road.data), left=left, most_steps=most)
    why = _prior_why(choice, r, left, most)
    if choice.steps < LEAST_STEPS <= most:
        choice = PriorChoice(LEAST_STEPS, choice.eval_every, choice.num_images, choice.seconds)
        why = f"{minutes:g} minutes are over too soon: {LEAST_STEPS} steps of the prior are the least, it takes longer"
    road.runtime.say(f"plan: {why}")
    settings = {"steps": choice.steps, "eval_every": choice.eval_every}
    return PriorPlan(minutes, settings, choice.num_images, r.named(), why)


def further_part(road: Road) -> PriorPlan | None:
    """Return one more part of the prior for minutes that were added; None where they change nothing, which is said."""
    assert road.plan is not None
    minutes, run = filled(road.settings.minutes), road.out / "prior-training" / "config.json"
    settings = read_run_config(run).settings
    planned, done = int(settings["steps"]), written_steps(road.out / "prior")
    if done is not None and done < planned:
        road.runtime.say(f"the prior stopped by itself at step {done}: more of them would only be learnt by heart")
        return None
    r, prior = _measured(road, minutes)
    most = _most_steps(road, prior)
    left = AIM * 60 * minutes - road.spent()
    every = int(settings["eval_every"])
    choice = choose_prior(r, sizes_of(road.data), left=left, most_steps=most, done=planned, eval_every=every)
    if choice.steps - planned < WORTH:
        why = f"{most} steps are enough for these data" if planned + WORTH > most else "they are over too soon"
        road.runtime.say(f"the prior has {planned} steps, and {minutes:g} minutes add none: {why}")
        return None
    why = f"codec and codes stay, and after {planned} steps of the prior: {_prior_why(choice, r, left, most)}"
    road.runtime.say(f"plan: {why}")
    return PriorPlan(minutes, {"steps": choice.steps, "eval_every": every}, choice.num_images, r.named(), why)


def _measured(road: Road, minutes: float) -> tuple[Rates, PriorRates]:
    folder = road.out / "vqvae" if road.settings.from_model is None else fetch_codec(road.settings.from_model)
    asked, seconds = road.prior_settings(), timed_seconds(minutes)
    return measured_on_codes(asked, open_codec(folder), road.data, road.open_seconds, seconds=seconds)


def _most_steps(road: Road, prior: PriorRates) -> int:
    steps, batch = filled(prior.settings.steps), filled(prior.settings.batch_size)
    return most_prior_steps(steps, prior.num_rows, batch, tuned=road.settings.from_model is not None)


def _prior_why(choice: PriorChoice, r: Rates, left: float, most: int) -> str:
    limit = "as many as these data bear" if choice.steps == most else f"what {left / 60:.1f} minutes allow"
    images = choice.num_images
    end = f"with {images} samples compared" if images else "without an evaluation (vq-prior evaluate makes it up)"
    return (
        f"{choice.steps} steps of the prior of {_ms(r.prior_step)}, measured every {choice.eval_every}, {limit}; "
        f"{choice.seconds['end']:.0f} s are kept for the end, {end}"
    )


def tell_plan(road: Road) -> None:
    """Print the plan, the one that is there or one that is made from rates measured now; nothing is written."""
    s = road.settings
    if road.plan is not None:
        lines = [road.plan.codec.why, *(part.why for part in road.plan.prior)]
        print("\n".join([f"plan of {road.out}:", *lines]))
    elif s.from_model is not None:
        plan = first_plan(road, road.out)
        print(f"plan: {plan.codec.why}; the prior is fine-tuned, its steps are chosen when the codes are there")
    else:
        with tempfile.TemporaryDirectory(prefix="vq-prior-") as temporary:
            for line in _foreseen(road, Path(temporary) / "codes"):
                print(f"plan: {line}")
    print("nothing was written (--dry-run)", flush=True)


def _foreseen(road: Road, folder: Path) -> Sequence[str]:
    minutes, sizes = road.settings.minutes, sizes_of(road.data)
    if minutes is not None:
        choice = _chosen_codec(road, folder)
        r = choice.candidate.rates
        left = AIM * 60 * minutes - road.spent() - before_prior(r, sizes) - choice.steps * r.codec_step
        of_prior = choice.candidate.prior_steps, sizes.num_train, choice.candidate.prior_batch
        most = most_prior_steps(*of_prior, tuned=False)
        prior = choose_prior(r, sizes, left=left, most_steps=most)
        return [*choice.passed, _codec_part(choice, minutes).why, _prior_why(prior, r, left, most)]
    (one,) = _candidates(road, folder, None)
    r, images = one.rates, sizes.most_images()
    codec, prior_steps = one.default_steps * r.codec_step, one.prior_steps
    whole = codec + before_prior(r, sizes) + r.prior_begin + prior_steps * r.prior_step + ending(r, sizes, images)
    return [
        f"codec {one.recipe.name}: {one.default_steps} steps of the codec of {_ms(r.codec_step)}",
        f"{prior_steps} steps of the prior of {_ms(r.prior_step)}, and {images} samples compared",
        f"about {whole / 60:.1f} minutes in all; --minutes chooses for a time that you name",
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
