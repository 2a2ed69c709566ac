"""AR, Duo, CANDI and S-FLM through train.py, its checkpoints, sample.py and sudoku.evaluate."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

import sample
import train
from baselines import ar, candi, duo, sflm
from fmlm import Draws
from harness import runs
from harness.checkpoints import BASELINES, OBJECTIVES, baseline, build, read_checkpoint
from harness.measure import likelihood_bound
from harness.options import parse
from harness.samplers import choose_sampler, samplers_for
from harness.tasks import load_task
from sudoku import evaluate

pytestmark = pytest.mark.usefixtures("cache")
TINY = ["sudoku4", "--batch", "8", "--width", "8", "--depth", "1", "--heads", "2", "--no-compile",
        "--no-table"]
SYSTEMS = sorted(set(BASELINES) - set(runs.TEACHERS))
every = pytest.mark.parametrize("objective", SYSTEMS)
# an MLFM judges what it drew, and its likelihood is that of an MDM: test_mlfm.py
others = pytest.mark.parametrize("objective", [name for name in SYSTEMS if name != "mlfm"])
PUZZLE = "1..4" + "." * 12


def sentence(capsys):
    words = capsys.readouterr().err.strip()
    assert "\n" not in words and "Traceback" not in words
    return words


def run_of(*arguments):
    options, task, _ = parse([*TINY, "--steps", "8", *arguments])
    return train.Run(options, task)


def steps(run, count):
    losses = []
    for _ in range(count):
        loss = run.loss(run.network, run.draw())
        loss.backward()
        run.update()
        losses.append(loss.item())
    return losses


@every
def test_a_run_resumed_goes_on_bit_for_bit(objective):
    whole = run_of("--objective", objective)
    expected = steps(whole, 8)
    first = run_of("--objective", objective)
    losses = steps(first, 4)
    state = first.state()
    second = run_of("--objective", objective)
    runs.restore(second, state, "run.pt")
    assert losses + steps(second, 4) == expected and all(map(math.isfinite, expected))
    for one, other in zip(whole.ema.model.parameters(), second.ema.model.parameters()):
        assert one.equal(other)


@every
def test_every_weight_learns_but_the_second_time(objective):
    """After a few steps: at first the heads are zero and what stands behind them waits."""
    run = run_of("--objective", objective, "--no-bf16")
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    steps(run, 8)
    still = {name for name, weight in run.model.named_parameters() if weight.equal(before[name])}
    assert all("time_t" in name for name in still)
    assert bool(still) == (objective != "ar")


@others
def test_train_save_resume_sample_and_solve_by_the_command_lines(objective, tmp_path, capsys):
    path = str(tmp_path / "run.pt")
    arguments = [*TINY, "--objective", objective, "--steps", "2", "--out", path]
    assert train.main(arguments) == 0
    assert train.main(["--resume", path, "--steps", "4", "--no-compile", "--no-table"]) == 0
    state = read_checkpoint(path)
    assert (state["objective"], state["step"]) == (objective, 4)
    capsys.readouterr()
    assert sample.main([path, "--puzzle", PUZZLE, "--json", "--seed", "3"]) == 0
    document = json.loads(capsys.readouterr().out)
    [board] = document["boards"]
    assert (board[0], board[3]) == ("1", "4") and len(board) == 16
    assert document["nfe"] == (14 if objective == "ar" else 4)  # the unknown cells; the default
    assert sample.main([path, "-n", "2", "--trace", "--nfe", "16"]) == 0
    shown = capsys.readouterr().out
    name = next(iter(samplers_for(objective)))
    assert f"of 2 valid, {name}, 16 network passes" in shown and "pass 2: " in shown


@pytest.mark.parametrize("objective", sorted(BASELINES))
def test_a_network_is_real_where_a_file_is_checked_before_its_system_is_imported(objective,
                                                                                monkeypatch):
    """As in every command that reads one: the check takes no memory, it is on the meta device, and
    nothing that the system makes on import may stay there."""
    for name in [name for name in sys.modules if name.startswith("baselines.")]:
        monkeypatch.delitem(sys.modules, name)
    info = dict(objective=objective, network=dict(vocab_size=4, width=8, depth=1, heads=2))
    build(info, load_task("sudoku4"), "meta")
    weights = build(info, load_task("sudoku4")).state_dict().values()
    assert not any(weight.is_meta for weight in weights)


@others
def test_the_table_has_a_systems_own_samplers_and_likelihood(objective, tmp_path, capsys):
    path = str(tmp_path / "run.pt")
    assert train.main([*TINY, "--objective", objective, "--steps", "2", "--out", path]) == 0
    capsys.readouterr()
    short = [] if objective == "ar" else ["--nfe", "2"]
    arguments = [path, "-n", "5", "--clues", "6", *short]
    assert evaluate.main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    document = document[0] if isinstance(document, list) else document
    nfe = 16 if objective == "ar" else 2
    names = [row["sampler"] for row in document["unconditional"]]
    assert names == list(samplers_for(objective)) == [row["sampler"] for row in document["puzzles"]]
    assert {row["nfe"] for row in document["unconditional"] + document["puzzles"]} == {nfe}
    passes = {row["passes"] for row in document["unconditional"]}
    assert passes == {nfe} or objective == "candi" and max(passes) <= nfe
    assert "kl" not in document
    kind = {"ar": "exact", "duo": "bound"}.get(objective)
    assert document.get("likelihood", {}).get("kind") == kind
    assert evaluate.main(arguments) == 0
    table = capsys.readouterr().out
    assert (f"likelihood {kind} " if kind else f"no likelihood: {objective} has none") in table


def test_a_fresh_networks_likelihood_is_that_of_uniform_tokens():
    """16 log 4 = 22.18: exactly for AR, in the mean for Duo's bound."""
    task = load_task("sudoku4")
    for objective, error in (("ar", 1e-3), ("duo", 1.5)):
        model = baseline(objective).network(task, dict(width=8, depth=1, heads=2))
        mean, spread = likelihood_bound(task, model, objective, Generator().manual_seed(0), 2000)
        assert mean == pytest.approx(16 * math.log(4), abs=error) and spread < error


# ---- bad input

def test_a_sampler_or_option_of_another_system_is_refused(tmp_path, capsys):
    for objective, name in (("duo", "posterior"), ("fmlm+", "duo"), ("ar", "candi"),
                            ("sflm", "sflm-naive")):
        with pytest.raises(ValueError, match=f"{name}' does not suit a model trained as"):
            choose_sampler(objective, name)
    with pytest.raises(ValueError, match="unknown sampler 'best': choose from posterior.*duo"):
        choose_sampler("duo", "best")
    with pytest.raises(ValueError, match="--threshold is of Posterior Refinement"):
        choose_sampler("candi", None, 0.9)
    for words in (["--tau"], ["--lagrangian"], ["--teacher", "x.pt"]):
        with pytest.raises(ValueError, match="not for duo"):
            parse([*TINY, "--objective", "duo", *words])
    path = str(tmp_path / "run.pt")
    assert train.main([*TINY, "--objective", "duo", "--steps", "1", "--out", path]) == 0
    capsys.readouterr()
    assert train.main(["--resume", path, "--objective", "candi", "--steps", "2"]) == 2
    assert "is a run with objective duo, not candi" in sentence(capsys)
    start = [*TINY, "--objective", "candi", "--steps", "1", "--init", path]
    assert train.main([*start, "--out", str(tmp_path / "other.pt")]) == 2
    assert "trained as nothing: it takes none" in sentence(capsys)


def test_an_ar_asked_for_fewer_passes_than_tokens_is_refused(tmp_path, capsys):
    path = str(tmp_path / "run.pt")
    assert train.main([*TINY, "--objective", "ar", "--steps", "1", "--out", path]) == 0
    capsys.readouterr()
    assert sample.main([path, "--nfe", "15"]) == 2
    assert "takes a pass a token: 16 here" in sentence(capsys)
    assert sample.main([path, "--puzzle", PUZZLE, "--nfe", "13"]) == 2
    assert "takes a pass a token: 14 here" in sentence(capsys)


@every
def test_a_checkpoint_with_other_coordinates_is_damaged(objective, tmp_path):
    path = str(tmp_path / "run.pt")
    assert train.main([*TINY, "--objective", objective, "--steps", "1", "--out", path]) == 0
    state = read_checkpoint(path)
    [name] = [name for name in state["model"] if name.endswith("coords")]
    state["model"][name] = state["model"][name] + 1
    torch.save(state, path)
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)


def test_no_core_module_imports_the_baselines_and_their_names_are_none_of_fmlms(tmp_path):
    assert not set(BASELINES) & set(OBJECTIVES)
    for objective in BASELINES:
        assert train.loss_of(objective) is baseline(objective).LOSSES[objective]
    assert all(train.loss_of(objective) is train.LOSSES[objective] for objective in OBJECTIVES)
    for path in (train.__file__, sample.__file__, runs.__file__, evaluate.__file__):
        with open(path) as file:
            assert "import baselines" not in (text := file.read()) and "from baselines" not in text


# ---- all together

@pytest.mark.parametrize("module, nfe", [(ar, 3), (duo, 24), (candi, 24), (sflm, 6)])
def test_trained_for_seconds_each_draws_the_sequences_that_it_saw(module, nfe):
    """Loss, times and sampler speak of one process: three sequences, and a clue that leaves two.
    Duo is the slowest: after 200 steps the CPU decides whether its sum is above or below 0.85."""
    sequences = torch.tensor([[0, 0, 1], [1, 2, 1], [2, 2, 0]])
    coords = torch.stack([torch.arange(3), torch.zeros(3).long()], 1)  # two columns: a puzzle
    torch.manual_seed(0)
    task = SimpleNamespace(vocab_size=3, coords=coords)
    network = module.network(task, dict(width=32, depth=2, heads=2))
    generator = Generator().manual_seed(0)
    run = SimpleNamespace(draws=Draws(generator), model=network)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    loss = next(iter(module.LOSSES.values()))
    for _ in range(400 if module is duo else 200):
        rows = torch.randint(3, (128,), generator=generator)
        value, _ = loss(run, network, F.one_hot(sequences[rows], 3).float(), None)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    sampler = next(iter(module.SAMPLERS.values())).run
    tokens, known = sequences[1].expand(400, 3), torch.zeros(400, 3, dtype=torch.bool)
    for clue, shares in ((False, [1 / 3] * 3), (True, [0, 1 / 2, 1 / 2])):
        known[:, 1] = clue
        drawn = sampler(network, tokens, known, nfe, generator=generator)
        each = [float((drawn == sequence).all(1).float().mean()) for sequence in sequences]
        assert sum(each) > 0.85 and each == pytest.approx(shares, abs=0.15)
