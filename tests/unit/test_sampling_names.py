"""Names of samplers: one grammar in the configuration and in the sampler, and what each part of a name does."""

from __future__ import annotations

import pytest
from gaussian_case import Gaussian, translator
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flowkit.errors import ConfigError
from flowkit.flow.objective import Transport
from flowkit.flow.solvers import SOLVERS
from flowkit.sampling.sampler import Sampler, parse_sampler, sample
from flowkit.sections import SamplerName, Sampling

KNOWN = {
    "euler-1": Sampler("euler-1", "euler", 1),
    "midpoint-2": Sampler("midpoint-2", "midpoint", 2),
    "heun-9999": Sampler("heun-9999", "heun", 9999),
    "euler-4-shift3": Sampler("euler-4-shift3", "euler", 4, shift=3.0),
    "heun-4-shift0.5": Sampler("heun-4-shift0.5", "heun", 4, shift=0.5),
    "euler-4-guidance2.5": Sampler("euler-4-guidance2.5", "euler", 4, guidance=2.5),
    "euler-4-guidance0": Sampler("euler-4-guidance0", "euler", 4, guidance=0.0),
    "euler-4-mean8": Sampler("euler-4-mean8", "euler", 4, samples=8),
    "adaptive-3": Sampler("adaptive-3", "adaptive", tolerance=1e-3),
    "adaptive-9-guidance2-mean99": Sampler(
        "adaptive-9-guidance2-mean99", "adaptive", tolerance=1e-9, guidance=2.0, samples=99
    ),
    "midpoint-2-shift3-guidance1.5-mean4": Sampler(
        "midpoint-2-shift3-guidance1.5-mean4", "midpoint", 2, shift=3.0, guidance=1.5, samples=4
    ),
}
WRONG = [
    *(
        "heun",
        "heun-0",
        "heun-x",
        "heun-01",
        "heun-10000",
        "rk-4",
        "-5",
        "",
        "euler-1.5",
        "Euler-1",
        "euler-1 ",
    ),
    *("adaptive", "adaptive-0", "adaptive-10", "adaptive-3-shift2", "direct-2", "direct", "adaptive-1.5"),
    *(
        "euler-1-shift",
        "euler-1-shift-1",
        "euler-1-shift1e3",
        "euler-1-shift.5",
        "euler-1-guidance",
        "euler-1-x2",
    ),
    *("euler-1-mean1", "euler-1-mean0", "euler-1-mean100", "euler-1-mean2.5", "euler-1-mean"),
    *("euler-1-mean2-shift3", "euler-1-guidance2-shift3", "euler-1-mean2-guidance2", "euler-1-mean2-mean2"),
]
CONFIGURED = TypeAdapter(SamplerName)
FACTORS = st.from_regex(r"[0-9]{1,3}([.][0-9]{1,3})?", fullmatch=True)


@pytest.mark.parametrize("name", KNOWN)
def test_a_name_says_everything(name: str) -> None:
    assert parse_sampler(name) == KNOWN[name]
    assert CONFIGURED.validate_python(name) == name


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_name_is_refused_by_the_configuration_and_here(name: str) -> None:
    with pytest.raises(ConfigError, match=r"sampler is .*expected <solver>-<steps>") as caught:
        parse_sampler(name)
    assert repr(name) in str(caught.value)
    with pytest.raises(ValidationError):
        CONFIGURED.validate_python(name)


def test_steps_that_do_not_move_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'euler-2-shift0\.0'.*s > 0"):
        parse_sampler("euler-2-shift0.0")


@settings(max_examples=40, deadline=None)
@given(
    solver=st.sampled_from([f"{solver}-{{}}" for solver in SOLVERS]),
    steps=st.integers(1, 9999),
    shift=st.none() | FACTORS.filter(lambda text: float(text) > 0),
    guidance=st.none() | FACTORS,
    samples=st.none() | st.integers(2, 99),
)
def test_every_name_of_the_grammar_is_understood(
    solver: str, steps: int, shift: str | None, guidance: str | None, samples: int | None
) -> None:
    name = solver.format(steps)
    for word, value in (("shift", shift), ("guidance", guidance), ("mean", samples)):
        name += "" if value is None else f"-{word}{value}"
    assert CONFIGURED.validate_python(name) == name
    found = parse_sampler(name)
    assert (found.name, found.steps, found.samples) == (name, steps, samples or 1)
    assert found.shift == float(shift or 1)
    assert found.guidance == (None if guidance is None else float(guidance))


def test_default_samplers_are_understood() -> None:
    assert [parse_sampler(name).name for name in Sampling().samplers] == list(Sampling().samplers)


def test_guidance_of_the_name_goes_before_that_of_the_run() -> None:
    assert parse_sampler("euler-4").transport(3.0) == Transport("euler", 4, 3.0)
    assert parse_sampler("euler-4-shift3-guidance1").transport(3.0) == Transport(
        "euler", 4, 1.0, time_shift=3.0
    )
    assert parse_sampler("adaptive-5").transport(2.0) == Transport("adaptive", 1, 2.0, tolerance=1e-5)


def test_only_single_samples_of_a_flow_have_a_spread() -> None:
    names = ["euler-1", "adaptive-3", "heun-4-shift3-guidance2", "euler-1-mean2", "direct-1"]
    assert [parse_sampler(name).has_spread for name in names] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("euler-3", 3),
        ("midpoint-3", 6),
        ("heun-3", 5),
        ("heun-3-shift3", 5),
        ("heun-3-guidance2", 10),
        ("heun-3-guidance1", 5),
        ("heun-3-mean4", 20),
        ("heun-3-guidance2-mean4", 40),
    ],
)
def test_evaluations_are_counted_per_image(name: str, evaluations: int) -> None:
    network = Gaussian()
    source, _ = network.draw(7)
    batches = [(list("abcde"), source[:5]), (list("fg"), source[5:])]
    made = list(sample(translator(network), batches, parse_sampler(name), seed=0))
    assert [one.evaluations for one in made] == [5 * evaluations, 2 * evaluations]
    assert [list(one.keys) for one in made] == [list("abcde"), list("fg")]


def test_evaluations_of_the_adaptive_solver_are_those_that_were_made() -> None:
    network = Gaussian()
    source, _ = network.draw(5)
    calls: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    (made,) = sample(
        translator(network), [(list("abcde"), source)], parse_sampler("adaptive-4-mean2"), seed=0
    )
    assert made.evaluations == sum(calls) == len(calls), "one image at a time"
    assert made.evaluations > 2 * 5 * 13


def test_a_run_without_a_scale_in_the_name_takes_its_own() -> None:
    network = Gaussian()
    source, _ = network.draw(3)
    keys = list("abc")
    arguments = [("euler-2", 2.5), ("euler-2-guidance2.5", 1.0), ("euler-2-guidance2.5", 7.0)]
    model = translator(network)
    first, *others = (
        next(sample(model, [(keys, source)], parse_sampler(name), seed=0, guidance_scale=scale)).tokens_BTC
        for name, scale in arguments
    )
    assert all(first.equal(other) for other in others)
