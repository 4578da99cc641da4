"""What the README says of the benchmarks is what their files hold, and what these hold follows from the gaps."""

import argparse
import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rdcurve.sampler import products

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
README = (BENCHMARKS.parent / "README.md").read_text()
MODELS = ("vae10", "gan10", "vae100")


@pytest.fixture
def needed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gap_against_gradients

    return gap_against_gradients.needed


def recorded(name):
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("gap", "gradients", "how"),
    [(2.0, 500, "at most"), (0.5, 1200, "interpolated"), (0.1, 6000, "extrapolated")],
)
def test_gradients_for_a_gap_on_a_power_law(needed, gap, gradients, how):
    """Gaps of 600 / n: known at any n."""
    assert needed([(n, 600 / n) for n in (500, 1000, 2000)], gap) == (pytest.approx(gradients), how)


def test_gradients_count_from_the_last_budget_that_missed(needed):
    """A small gap by luck at a small budget is no answer, and a negative one is a small one."""
    gradients, how = needed([(500, 0.4), (1000, 0.8), (2000, -0.1)], 0.5)
    assert how == "interpolated"
    assert 1000 < gradients < 2000


@pytest.mark.parametrize("model", MODELS)
def test_readme_gives_the_gradients_that_were_measured(needed, model):
    found = recorded(f"gap_against_gradients_{model}")
    budgets = [row for row in found["by_budget"] if row["method"] == "fast"]
    (row,) = (row for row in found["by_gap"] if row["method"] == "fast" and row["gap"] == 0.5)
    gradients, how = needed([(each["gradients"], each["largest"]) for each in budgets], 0.5)
    assert (row["gradients"], row[""]) == (pytest.approx(gradients, rel=1e-4), how)
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {model.upper()}, to"))
    published = {10: 1.2e6, 100: 32e6}[int(model[3:])]  # 60,000 and 1,600,000 temperatures of 20 leapfrog steps
    assert f"| {gradients:,.0f} {'(extrapolated) ' if how == 'extrapolated' else ''}|" in line
    (tenth,) = (row for row in found["by_gap"] if row["method"] == "fast" and row["gap"] == 0.1)
    assert (
        f"| {published / gradients:,.0f} times | {row['both with preruns']:,.0f} times | "
        f"{published / tenth['gradients']:,.0f} times{' (extrapolated)' if tenth[''] == 'extrapolated' else ''} |"
    ) in line
    seen = {f"{each['largest']:.2f} ± {each['se']:.2f} at {each['gradients']:,}" for each in budgets}
    assert set(re.findall(r"[\d.]+ ± [\d.]+ at [\d,]+\d", line)) <= seen
    assert len(re.findall("±", line)) >= 1


def test_goals_are_met_even_if_every_gap_is_two_standard_errors_larger(needed):
    """200 times fewer gradients than published for codes of 10, 1,000 times for 100, half a nat."""
    times = []
    for model in MODELS:
        budgets = [row for row in recorded(f"gap_against_gradients_{model}")["by_budget"] if row["method"] == "fast"]
        assert all(row["seeds"] >= 3 for row in budgets)
        gradients, _ = needed([(row["gradients"], row["largest"] + 2 * row["se"]) for row in budgets], 0.5)
        published, goal = {10: (1.2e6, 200), 100: (32e6, 1000)}[int(model[3:])]
        times.append(published / gradients)
        assert times[-1] > goal, model
    said = "Were every gap two standard errors larger, these would be {:.0f}, {:.0f} and {:,.0f} times fewer."
    assert said.format(*times) in README.replace("\n", " ")


def test_readme_says_what_chains_buy():
    """At one cost, chains times gradients, the gap of any split lies within three errors of that of any other."""
    splits = {32: (500, "vae10_32_chains"), 16: (1000, "vae10"), 8: (2000, "vae10_8_chains")}
    found = []
    for chains, (gradients, name) in splits.items():
        table = recorded(f"gap_against_gradients_{name}")
        assert table["same"]["chains"] == chains
        (row,) = (row for row in table["by_budget"] if (row["method"], row["gradients"]) == ("fast", gradients))
        assert row["seeds"] == 3
        found.append((row["largest"], row["se"]))
    (a, da), (b, db), (c, dc) = found
    assert (
        f"{a:.2f} ± {da:.2f} nats with 32 chains of 500 gradients, {b:.2f} ± {db:.2f} with 16 of 1,000, "
        f"{c:.2f} ± {dc:.2f} with 8 of 2,000"
    ) in README.replace("\n", " ")
    for (one, se), (other, other_se) in combinations(found, 2):
        assert abs(one - other) < 3 * (se**2 + other_se**2) ** 0.5


@pytest.mark.parametrize("model", MODELS)
def test_tables_of_gaps_follow_from_the_runs(monkeypatch, model):
    """Seeds pooled: the mean gap of all at each beta, the largest of these; and the gradients from it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gap_against_gradients

    found = recorded(f"gap_against_gradients_{model}")
    for name, table in zip(("by_budget", "by_gap"), gap_against_gradients.summary(found["cells"]), strict=True):
        for row, said in zip(table, found[name], strict=True):
            assert row.keys() == said.keys()
            for key, value in row.items():
                assert value == (said[key] if isinstance(value, str) else pytest.approx(said[key], rel=1e-3)), key
    for row in found["by_budget"]:  # and the pooling by hand
        same = (row["method"], row["gradients"])
        runs = [cell["gap"] for cell in found["cells"].values() if (cell["method"], cell["gradients"]) == same]
        assert len(runs) == row["seeds"]
        means = [sum(gaps) / len(gaps) for gaps in zip(*runs, strict=True)]
        assert row["largest"] == pytest.approx(max(means), rel=1e-3)


def test_results_of_other_code_are_not_mixed_in_silently(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    args = argparse.Namespace(output=tmp_path / "cells.json")
    common.Cells(args, {}, any_code=False).put("a", {"value": 1.0})
    assert common.Cells(args, {}, any_code=False).values["a"]["value"] == 1.0
    monkeypatch.setattr(common, "code", lambda: "other")
    with pytest.raises(SystemExit, match="holds results of other code"):
        common.Cells(args, {}, any_code=False)
    assert common.Cells(args, {}).values["a"]["value"] == 1.0


def test_tf32_is_emulated_as_a_gpu_rounds(monkeypatch):
    """10 bits of fraction, to the nearest, half to even, of either sign; values of a layer stay, its gradient moves."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from tf32_acceptance import emulated, rounded

    step = 2.0**-10
    ties = torch.tensor([1.0, 1 + step / 2, 1 + 1.5 * step, 1 + 0.49 * step, 1 + 0.51 * step, 2 - step / 4])
    wanted = torch.tensor([1.0, 1.0, 1 + 2 * step, 1.0, 1 + step, 2.0])
    for sign in (1, -1):
        assert torch.equal(rounded(sign * ties), sign * wanted)
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(rounded(values)), rounded(values))
    assert 0.9 * step / 2 < ((rounded(values) - values) / values).abs().max() <= step / 2

    torch.manual_seed(0)
    layer, found = torch.nn.Linear(50, 40).requires_grad_(False), []
    x, along = torch.randn(3, 50, requires_grad=True), torch.randn(3, 40)
    for on in (False, True, False):
        with emulated(on):
            y = layer(x)
            found.append((y.detach(), torch.autograd.grad(y, x, along)[0]))
    (value, exact), (same, coarse), after = found
    assert torch.equal(value, same)
    assert torch.equal(coarse, rounded(along) @ rounded(layer.weight))
    assert 1e-5 < (coarse - exact).norm() / exact.norm() < 1e-2
    assert torch.equal(after[1], exact)


def test_readme_gives_the_acceptance_with_tf32_gradients():
    """At the top of each curve; and nowhere is it lower by more than a hundredth."""
    rows = recorded("tf32_acceptance")["results"]
    assert all(row["TF32"] > row["float32"] - 0.01 for row in rows)
    for top in {row["curve"]: row for row in rows}.values():
        said = f"{top['TF32']:.3f} instead of {top['float32']:.3f} for {top['curve'].upper()}"
        assert said in README.replace("\n", " ")


def test_readme_gives_the_fractions_of_the_peak_that_were_measured():
    """Of whole steps; the floor is 0.75 of a core's peak."""
    wall, cpu = (
        {row["chains"]: row[f"fraction_of_peak_{clock}"]["median"] for row in recorded("step_cost")["results"][1::3]}
        for clock in ("wall", "cpu")
    )
    text = README.replace("\n", " ")
    said = f"run at {wall[2000]:.2f} of what this machine's float32 matrix products reach with 2,000 chains and at "
    assert f"{said}{wall[400]:.2f} with 400" in text
    assert f"in CPU seconds at {cpu[2000]:.2f} and {cpu[400]:.2f}." in text
    assert min(cpu.values()) >= 0.75


def test_readme_gives_the_times_and_errors_that_were_measured():
    summary = recorded("certified_curve")["summary"]
    cpu = {step: summary[step]["cpu_seconds"]["median"] for step in ("all", "prerun", "ais", "bdmc")}
    memory = max(summary[step]["peak_mib"]["median"] for step in ("prerun", "ais", "bdmc"))
    for text in (
        f"takes {round(summary['all']['seconds']['median'], -1):,.0f} s",
        "({all:,.0f} CPU seconds: prerun {prerun:.0f}, AIS {ais:.0f}, BDMC {bdmc:.0f})".format(**cpu),
        f"{memory:.0f} MiB",
    ):
        assert text in README.replace("\n", " "), text


def test_readme_gives_the_time_of_a_curve_of_100_dimensions():
    """Of its benchmark, and how far that curve is certified."""
    found = recorded("certified_curve_vae100")
    minutes = found["summary"]["all"]["seconds"]["median"] / 60
    memory = max(found["summary"][step]["peak_mib"]["median"] for step in ("prerun", "ais", "bdmc"))
    curve = found["cells"]["result 0"]
    assert (found["same"]["curve"], found["same"]["n_images"], curve["temperatures"]) == ("vae100", 50, 5000)
    text = README.replace("\n", " ")
    assert f"takes {minutes:.0f} minutes on two cores, beside tests, and {memory:,.0f} MiB" in text
    assert f"certified at {curve['certified']} of {curve['recorded']} β" in text
    assert f"its largest gap is {curve['gap_max']:.2f} ± {curve['gap_max_se']:.2f}" in text


def test_readme_gives_the_error_of_log_weights():
    found = max(abs(error) for row in recorded("log_weight_error")["results"] for error in row["ours"])
    assert f"log w of 60,000 temperatures is off by {found:.3f} nats at most" in README.replace("\n", " ")


def test_readme_says_what_the_certificate_tells():
    """Mean and largest error of log Z, where it is certified and where it is not."""
    (vae, none), (certified, other) = (recorded(f"real_images_{name}")["by_verdict"] for name in ("vae10", "gan10"))
    assert not none["images x betas x seeds"]
    mean, largest = "mean |d log Z|", {}
    for name in ("vae10", "gan10"):
        largest[name] = max(row["largest |d log Z|"] for row in recorded(f"real_images_{name}")["by_beta"])
    assert (
        f"differs there by {vae[mean]:.2f} nats on average, {largest['vae10']:.2f} at most; GAN10 by "
        f"{certified[mean]:.2f} where it is certified, by {other[mean]:.2f} ({largest['gan10']:.1f} at most) where it "
        "is not"
    ) in README.replace("\n", " ")


def test_readme_gives_the_cost_of_a_step():
    """In proportion to the images, as the chains; hardly to the code; memory flat in the temperatures."""
    found = recorded("scaling")
    step = {(row["varied"], row["value"]): 1e3 * row["wall"]["median"] for row in found["steps"]}
    assert f"({step['images', 25]:.0f} ms for 25 × 16, {step['images', 100]:.0f} ms for 100 × 16)" in README
    assert 3 < step["images", 100] / step["images", 25] < 4.1
    assert 3 < step["chains", 64] / step["chains", 16] < 4.1
    assert step["code size", 100] < 1.3 * step["code size", 2]
    assert all(row["more_mib"]["median"] < 10 for row in found["runs"])


def test_readme_gives_what_a_gpu_did():
    found, text = recorded("gpu"), README.replace("\n", " ")
    rows = {row["what"]: row for row in found["results"] if row["chains"] == 2000}
    assert f"on one {found['device']} all pass, and 2,000 chains" in text

    def of(recipe, how):
        row = rows[f"{recipe}, {how}"]
        return f"{row['gradients/s'] / 1e6:.2f}", f"{row['of float32 peak']:.2f}"

    paper, fast = "paper steps, 20 leapfrogs", "fast steps, 2 leapfrogs"
    together, coarse = "4 a graph", "4 a graph, TF32 gradients"
    rate, fraction = of(paper, together)
    said = f"take {rate} million gradients a second by the published recipe, {fraction} of what its float32 matrix"
    assert f"{said} products reach ({of(paper, 'kernel by kernel')[1]} where kernels" in text
    assert f"and {of(fast, together)[0]} million by the fast one" in text
    assert f"with TF32 gradients {of(paper, coarse)[0]} and {of(fast, coarse)[0]}." in text
    gained = rows[f"{fast}, {together}"]["gradients/s"] / rows[f"{fast}, each a graph"]["gradients/s"]
    assert "gains hardly one in a hundred" in text
    assert 1 < gained < 1.015


def test_readme_says_that_the_recipes_agree():
    found, text = recorded("recipes_vae10"), README.replace("\n", " ")
    assert f"in {sum(found['arguments']['seconds']) / 60:.0f} minutes of an {found['device']}" in text
    mean = max(abs(row["log Z, published less fast"]) for row in found["results"])
    one = max(row["largest of an image"] for row in found["results"])
    assert f"by {mean:.2f} nats at most on average over the images, {one:.2f} on any" in text
    windows = {row["where"]: row for row in found["windows"]}
    for where, row in windows.items():
        said = f"{row['difference']:.4f} ± {row['standard_error']:.4f} at {where}".replace("-", "−")
        assert said in text
    assert {row["verdict"] for row in windows.values()} == {found["verdict"]} == {"reproduced"}
    assert f"the same, within {windows['low']['most']:g}" in text
    published, fast = found["gradients_per_chain"].values()
    assert f"took {published / fast:,.0f} times as many gradients a chain" in text


class Multiplied(TorchDispatchMode):
    """FLOP of all matrix products inside."""

    flop = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.flop += 2 * left.numel() * right.shape[1]
        return func(*args, **(kwargs or {}))


def test_the_flop_of_a_gradient_are_those_that_are_multiplied(monkeypatch):
    """Else the fraction of the peak would be of other work. Products by packed weights are no `mm`, so without them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step_cost

    monkeypatch.setattr(products, "_AVAILABLE", False)
    target, _ = step_cost.random_target(step_cost.LATENT, 2, step_cost.HIDDEN)
    with Multiplied() as counted:
        target._of_tile(torch.randn(16, step_cost.LATENT), torch.zeros(16, dtype=torch.long), True)
    assert counted.flop == 16 * step_cost.flops_per_gradient()


def test_readme_says_what_hops_find():
    """The best known mode of an image, and the shares, from what each search found: both ways against one best."""
    file, readme, found = recorded("searches"), README.replace("\n", " "), {}
    for row in file["table"]:
        found[row["model"], row["hops"]] = row
        cases = [cell for cell in file["cells"].values() if cell["model"] == row["model"]]
        best = np.array([case["potential"] for case in cases]).min((0, 1))
        (case,) = (case for case in cases if case["hops"] == row["hops"])
        there, hits = np.array(case["potential"]) < best + 1, np.array(case["hits"])  # [search, image]
        assert row["images found by both"] == there.all(0).sum()
        assert row["share of starts"] == pytest.approx((hits.sum(0) * there.any(0)).mean() / (2 * row["starts"]))
        assert (hits <= row["starts"]).all()  # minima on the way are none
    models = ("gan2", "gan10")
    plain, hopping = ([found[model, hops] for model in models] for hops in (0, 12))
    assert {row["starts"] * (1 + row["hops"]) for row in found.values()} == {156}
    assert [row["images found by both"] for row in (*plain, *hopping)] == [19, 19, 20, 20]
    shares = [f"{row['share of starts']:.0%}".replace("%", " %") for row in (*plain, *hopping)]
    assert "in {} and {} of cases, one that hops in {} and {}.".format(*shares) in readme
    times = [b["CPU seconds"] / a["CPU seconds"] for a, b in zip(plain, hopping, strict=True)]
    assert "hops take {:.1f} and {:.1f} times the CPU time".format(*times) in readme
