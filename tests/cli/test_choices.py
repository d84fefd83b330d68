"""What `train --minutes` chooses, a function of what was measured."""

from dataclasses import replace

import pytest

from vq_prior.cli.choices import (
    AIM,
    FEWEST_IMAGES,
    LEAST_STEPS,
    MOST_IMAGES,
    RECIPES,
    Candidate,
    Rates,
    Sizes,
    before_prior,
    choose_codec,
    choose_prior,
    ending,
    evaluation,
    measured_every,
)
from vq_prior.core.errors import UsageError

# Of 32x32 pictures on two cores, about.
RATES = Rates(
    open=3.0,
    read=1e-4,
    encode=2e-4,
    decode=3e-4,
    codec_begin=0.0,
    codec_step=0.06,
    prior_begin=3.0,
    prior_step=0.1,
    measure=1.0,
    choose=5.0,
    draw=0.008,
    fit_step=0.012,
    judge=5e-4,
)
SIZES = Sizes(num_train=47_500, num_held_out=2500, labelled=True, num_fitted=47_500, fit_steps=800)
BEST, _, PLAIN, SMALL = RECIPES
SHARES = (1.0, 1.0, 0.5, 0.25)


def candidates(rates=RATES):
    """The recipes, the smaller ones with shorter steps."""
    for recipe, share in zip(RECIPES, SHARES, strict=True):
        yield Candidate(
            recipe, replace(rates, codec_step=rates.codec_step * share, prior_step=rates.prior_step * share), 3000
        )


def whole_seconds(choice, minutes, spent=0.0):
    """The seconds of the whole road if everything takes what was measured."""
    r = choice.candidate.rates
    left = 60 * minutes * AIM - spent - before_prior(r, SIZES) - choice.steps * r.codec_step
    prior = choose_prior(r, SIZES, left=left, most_steps=10**6)
    assert prior.steps >= LEAST_STEPS
    return 60 * minutes * AIM - left + prior.seconds["prior"] + prior.seconds["end"], prior


@pytest.mark.parametrize("minutes", [3, 5, 10, 20, 60])
def test_the_whole_fits_the_minutes_and_uses_them(minutes):
    choice = choose_codec(candidates(), SIZES, minutes=minutes, spent=10.0)
    seconds, prior = whole_seconds(choice, minutes, spent=10.0)
    assert 0.93 * AIM < seconds / (60 * minutes) <= AIM + 1e-6
    assert choice.steps * choice.candidate.rates.codec_step <= 0.3 * 60 * minutes
    assert choice.steps <= 3000
    assert FEWEST_IMAGES <= prior.num_images <= MOST_IMAGES


def test_more_minutes_mean_no_less_of_anything():
    chosen = [choose_codec(candidates(), SIZES, minutes=minutes, spent=0.0) for minutes in (3, 6, 12, 24, 48)]
    images = [whole_seconds(choice, m)[1].num_images for choice, m in zip(chosen, (3, 6, 12, 24, 48), strict=True)]
    assert [choice.steps for choice in chosen] == sorted(choice.steps for choice in chosen)
    assert images == sorted(images)
    assert images[-1] == MOST_IMAGES
    assert chosen[-1].candidate.recipe is BEST
    assert chosen[-1].steps == 3000


def test_a_slow_machine_takes_a_smaller_recipe_and_says_why():
    slow = replace(RATES, codec_step=0.6, prior_step=1.0)
    choice = choose_codec(candidates(slow), SIZES, minutes=8, spent=0.0)
    assert choice.candidate.recipe is PLAIN
    assert len(choice.passed) == 2
    assert choice.passed[0].startswith("sharp would have ")
    assert choose_codec(candidates(slow), SIZES, minutes=4.5, spent=0.0).candidate.recipe is SMALL


def test_a_recipe_that_is_not_needed_is_not_measured():
    asked = []

    def measured():
        for one in candidates():
            asked.append(one.recipe)
            yield one

    choose_codec(measured(), SIZES, minutes=20, spent=0.0)
    assert asked == [BEST]


def test_too_few_minutes_name_the_least_that_would_do():
    with pytest.raises(UsageError, match=r"--minutes must be at least (\d+\.?\d*) for this data .* got 0\.5") as error:
        choose_codec(candidates(), SIZES, minutes=0.5, spent=10.0)
    least = float(str(error.value).partition("at least ")[2].partition(" ")[0])
    assert choose_codec(candidates(), SIZES, minutes=least, spent=10.0).steps >= LEAST_STEPS
    with pytest.raises(UsageError):
        choose_codec(candidates(), SIZES, minutes=least - 0.2, spent=10.0)


def test_where_the_evaluation_has_no_time_the_model_has():
    with pytest.raises(UsageError, match=r"at least") as error:
        choose_codec(candidates(), SIZES, minutes=0.5, spent=10.0)
    least = float(str(error.value).partition("at least ")[2].partition(" ")[0])
    choice = choose_codec(candidates(), SIZES, minutes=least, spent=10.0)
    assert choice.passed == ("there is no time for the evaluation",)
    seconds, prior = whole_seconds(choice, least, spent=10.0)
    assert prior.num_images == 0
    assert seconds <= 60 * least * AIM
    assert evaluation(RATES, SIZES, 0) == 0


def test_recipes_suit_their_data():
    assert [BEST.suits("pictures", shape) for shape in ((8, 8), (16, 16), (17, 9), (32, 32))] == [0, 0, 1, 1]
    assert not BEST.suits("series", (64,))
    assert all(recipe.suits(kind, (8, 8)) for recipe in (PLAIN, SMALL) for kind in ("pictures", "series"))
    assert not PLAIN.codec
    assert not PLAIN.prior


def test_few_rows_end_the_prior_early_and_are_all_compared():
    few = Sizes(num_train=300, num_held_out=15, labelled=False, num_fitted=300, fit_steps=800)
    choice = choose_prior(RATES, few, left=1000.0, most_steps=700)
    assert (choice.steps, choice.num_images) == (700, 300)


def test_measuring_takes_a_small_share_of_the_training():
    for rates in (RATES, replace(RATES, measure=10.0), replace(RATES, measure=0.001)):
        every = measured_every(rates)
        assert every % 100 == 0
        assert rates.measure <= 0.06 * every * rates.prior_step + 1e-9
    assert measured_every(replace(RATES, measure=0.001)) == 100


def test_a_run_that_goes_on_keeps_its_measurements_and_counts_from_where_it_is():
    more = choose_prior(RATES, SIZES, left=600.0, most_steps=10**6, done=1000, eval_every=300)
    fresh = choose_prior(RATES, SIZES, left=600.0, most_steps=10**6, eval_every=300)
    assert more.eval_every == 300
    assert more.steps == 1000 + fresh.steps
    assert choose_prior(RATES, SIZES, left=1.0, most_steps=10**6, done=1000, eval_every=300).steps == 1000
    assert choose_prior(RATES, SIZES, left=600.0, most_steps=900, done=1000, eval_every=300).steps == 1000


def test_every_part_of_the_end_is_counted():
    assert ending(RATES, SIZES, 600) - ending(RATES, SIZES, 500) == pytest.approx(
        evaluation(RATES, SIZES, 600) - evaluation(RATES, SIZES, 500)
    )
    for name in ("open", "read", "encode", "decode", "choose", "draw", "fit_step", "judge"):
        dearer = replace(RATES, **{name: 2 * getattr(RATES, name)})
        assert ending(dearer, SIZES, 500) > ending(RATES, SIZES, 500), name
    assert evaluation(RATES, SIZES, 500) - evaluation(RATES, replace(SIZES, labelled=False), 500) == pytest.approx(
        800 * RATES.fit_step  # no classifier is fitted to the samples
    )
