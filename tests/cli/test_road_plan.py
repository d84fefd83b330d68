"""`plan.json` and `clock.json` of a RUN: what is written comes back, and nothing else is taken."""

import json
import time
from dataclasses import replace

import pytest

from vq_prior.cli.clock import Clock
from vq_prior.cli.plan import CodecPlan, Plan, PriorPlan, read_plan, write_plan
from vq_prior.core.errors import ArtifactError

PLAN = Plan(
    1,
    {"data": "digits", "seed": 3},
    "d" * 64,
    20.0,
    CodecPlan(
        "residual", {"steps": 900, "quantizer": {"depth": 2}}, {"model": {"depth_blocks": 1}}, {"open": 1.5}, "a"
    ),
    (PriorPlan(20.0, {"steps": 500, "eval_every": 100}, 700, {"prior_step": 0.125}, "b"),),
)


def test_a_plan_comes_back_as_it_was_written(tmp_path):
    assert read_plan(tmp_path) is None
    for plan in (replace(PLAN, prior=()), PLAN, PLAN.and_then(replace(PLAN.prior[0], minutes=30.0)), without_limit()):
        write_plan(tmp_path, plan)
        assert read_plan(tmp_path) == plan
    write_plan(tmp_path, replace(PLAN, codec=replace(PLAN.codec, measured={"open": 1 / 3})))
    assert read_plan(tmp_path).codec.measured == {"open": 0.333333}


def without_limit():
    return replace(PLAN, minutes=None, prior=(replace(PLAN.prior[0], minutes=None),))


def test_the_minutes_of_a_plan_are_those_of_its_last_part():
    assert replace(PLAN, prior=()).allowed() == 20.0
    assert PLAN.and_then(replace(PLAN.prior[0], minutes=30.0)).allowed() == 30.0
    assert without_limit().allowed() is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda plan: plan.update(colour=1), "unknown key 'colour'"),
        (lambda plan: plan.pop("data_id"), "lacks the key 'data_id'"),
        (lambda plan: plan.update(format_version=2), "format version 2"),
        (lambda plan: plan["codec"]["settings"].update(stepz=1), r"codec.settings has an unknown key 'stepz'"),
        (lambda plan: plan["codec"]["settings"].update(steps="many"), r"codec.settings.steps must be"),
        (lambda plan: plan["codec"]["prior"].update(model={"width": 3}), r"codec.prior.model has an unknown key"),
        (lambda plan: plan["prior"][0]["settings"].update(steps=1.5), r"prior\[0\].settings.steps must be"),
        (lambda plan: plan["prior"][0].update(num_images=-1), r"prior\[0\].num_images must be at least 0, got -1"),
        (lambda plan: plan["prior"][0]["measured"].update(draw=True), r"measured.draw must be a number"),
    ],
)
def test_what_does_not_belong_in_a_plan_is_named(tmp_path, change, named):
    write_plan(tmp_path, PLAN)
    entries = json.loads((tmp_path / "plan.json").read_text())
    change(entries)
    (tmp_path / "plan.json").write_text(json.dumps(entries))
    with pytest.raises(ArtifactError, match=named):
        read_plan(tmp_path)


def test_seconds_before_a_kill_count(tmp_path):
    began = time.monotonic()
    first = Clock(tmp_path, began - 100)
    first.start()  # and is never stopped: what was written by then is what is left of it
    again = Clock(tmp_path, time.monotonic())
    assert 100 <= again.seconds() < 100 + time.monotonic() - began + 0.01
    again.start()
    time.sleep(0.05)
    again.stop()
    spent = Clock(tmp_path, time.monotonic()).seconds()
    assert spent == pytest.approx(again.seconds(), abs=time.monotonic() - began)
    assert spent > 100.05
    first.stop()


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}', '{"format_version": 1, "seconds": -1}'])
def test_a_damaged_clock_is_named(tmp_path, text):
    (tmp_path / "clock.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"clock\.json"):
        Clock(tmp_path, 0.0)
