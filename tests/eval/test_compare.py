"""Statistics over runs: Welch's test against tabulated values, and refusals to compare what can't be compared."""

from __future__ import annotations

import json
import math

import pytest

from eval.compare import compare, main, student_t_survival, welch_test

BASE = {
    "partial": False,
    "legal": True,
    "data_sha256": "d",
    "tokenizer_sha256": "t",
    "num_bytes": 100,
    "bpb": 1.2,
    "val_loss_nats": 3.0,
}


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [  # one-sided critical values of Student's t
        (6.314, 1, 0.05),
        (2.132, 4, 0.05),
        (3.747, 4, 0.01),
        (1.812, 10, 0.05),
        (2.764, 10, 0.01),
        (3.169, 10, 0.005),
        (2.457, 30, 0.01),
        (1.660, 100, 0.05),
        (0.0, 7, 0.5),
        (-2.764, 10, 0.99),
    ],
)
def test_student_t_agrees_with_the_tables(t, degrees, p):
    assert student_t_survival(t, degrees) == pytest.approx(p, abs=1e-4)


def test_one_and_two_degrees_of_freedom_have_closed_forms():
    for t in (0.1, 1.0, 5.0, 40.0):
        assert student_t_survival(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-10)
        assert student_t_survival(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), rel=1e-9)


def test_welch_by_hand():
    """Samples of different spread: variances 1 and 4, three and four runs."""
    first, second = [1.0, 2.0, 3.0], [4.0, 6.0, 8.0, 6.0]
    result = welch_test(first, second, 0.0)
    a, b = 1 / 3, (8 / 3) / 4
    assert result.t == pytest.approx(4.0 / math.sqrt(a + b))
    assert result.degrees_of_freedom == pytest.approx((a + b) ** 2 / (a**2 / 2 + b**2 / 3))
    assert welch_test(second, first, 0.0).p == pytest.approx(1 - result.p)
    assert welch_test(first, second, 4.0).t == pytest.approx(0.0)


def test_samples_without_spread_are_not_tested():
    assert welch_test([1.0], [2.0, 3.0], 0.0) is None
    assert welch_test([1.0, 1.0], [2.0, 2.0], 0.0) is None


@pytest.fixture
def make_runs(tmp_path):
    def make(name, nats, section="post_ttt", **changes):
        paths = []
        for seed, value in enumerate(nats):
            folder = tmp_path / f"{name}{seed}"
            folder.mkdir()
            entry = BASE | {"val_loss_nats": value, "bpb": value / 2.5} | changes
            (folder / "report.json").write_text(json.dumps({section: entry, "post_quantization": BASE}))
            paths.append(folder)
        return paths

    return make


def test_a_clear_improvement_is_a_record(make_runs):
    result = compare(make_runs("a", [2.980, 2.981, 2.979]), make_runs("b", [3.000, 3.001, 2.999]))
    assert result.section == "post_ttt"
    assert result.improvement_nats == pytest.approx(0.02)
    assert result.improvement_bpb == pytest.approx(0.008)
    assert result.is_record
    assert result.better.p < result.better_by_margin.p < 0.01


def test_an_improvement_within_the_margin_is_none(make_runs):
    result = compare(make_runs("a", [2.9960, 2.9961, 2.9959]), make_runs("b", [3.0000, 3.0001, 2.9999]))
    assert result.better.p < 0.01
    assert result.better_by_margin.p > 0.5
    assert not result.is_record


def test_single_runs_are_compared_but_not_tested(make_runs, capsys):
    arguments = [str(make_runs("a", [2.9])[0]), "--vs", str(make_runs("b", [3.0])[0])]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "0.100000 nats" in out
    assert "not testable" in out
    assert "not met" in out


def test_json_output(make_runs, capsys):
    paths = [str(path) for path in make_runs("a", [2.9, 2.91])], [str(path) for path in make_runs("b", [3.0, 3.01])]
    assert main([*paths[0], "--vs", *paths[1], "--json", "--section", "post_ttt"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["first"]["num_runs"] == 2
    assert result["is_record"] is (result["better_by_margin"]["p"] < 0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partial": True}, "partial"),
        ({"legal": False}, "mixes legal results"),
        ({"data_sha256": "x"}, "another validation data"),
        ({"tokenizer_sha256": "x"}, "another tokenizer"),
        ({"num_bytes": 99}, "another bytes"),
    ],
)
def test_what_cannot_be_compared_is_refused(make_runs, capsys, changes, message):
    first, second = make_runs("a", [2.9]), make_runs("b", [3.0], **changes)
    assert main([str(first[0]), "--vs", str(second[0])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("albatross: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_furthest_common_section_is_taken(make_runs):
    first, second = make_runs("a", [2.9]), make_runs("b", [3.0], section="post_quantization_sliding")
    assert compare(first, second).section == "post_quantization"


def test_missing_reports_are_named(tmp_path, capsys):
    assert main([str(tmp_path), "--vs", str(tmp_path)]) == 2
    assert "no such report" in capsys.readouterr().err
