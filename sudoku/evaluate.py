"""The evaluation tables: python -m sudoku.evaluate CKPT... [--nfe 1 3 9 27 81] [--clues 40 35 30] [--json]

For every sampler that suits a checkpoint: valid boards in % by the number of network passes (NFE), with a 95% interval,
and how many different boards are among the valid ones. With --clues, the share of held-out puzzles solved exactly.
For 4x4, where the whole distribution is known: coverage of the 288 boards, the total variation distance between what was
drawn and the uniform law, and delta_{0,0} against the exact conditional marginals. The likelihood bound for all that
have a delta_{0,0}.
"""

from __future__ import annotations

import argparse
import json
import math
import sys

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import fmlm
from sample import BATCH, SAMPLERS, choose_sampler
from sudoku import boards as sudoku
from sudoku.checkpoints import WITHOUT_CONTEXT, load_checkpoint, newest_checkpoint
from sudoku.commands import Parser, clue_count, command, device

ASIDE = ("block", "posterior-reopened")  # shown on demand: not in the paper's tables


def interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share, in %: sensible at 0 and 100% too."""
    z, p = 1.96, successes / n
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * (middle - spread) / (1 + z * z / n), 100 * (middle + spread) / (1 + z * z / n)


def share(hits: Tensor) -> dict:
    low, high = interval(int(hits.sum()), len(hits))
    return {"percent": round(100 * float(hits.float().mean()), 2), "low": round(low, 2), "high": round(high, 2)}


def unconditional(shape: sudoku.Shape, model: fmlm.Denoiser, name: str, nfe: int, n: int, generator: Generator) -> dict:
    """Draw n boards from nothing: the share that is valid, and how many different valid boards there are."""
    boards = SAMPLERS[name].complete(model, torch.full((n, shape.cells), -1, device=generator.device), nfe, generator)
    good = sudoku.valid(shape, boards)
    distinct, times = boards[good].unique(dim=0, return_counts=True)
    row = {"sampler": name, "nfe": nfe, "n": n, **share(good), "distinct": len(distinct)}
    if shape.size == 4:  # 1/2 sum_k |share of board k - 1/288|, over all 288; what is not valid counts in full
        drawn = times.double() / n
        missing = (288 - len(distinct)) / 288 + float((drawn - 1 / 288).abs().sum()) + 1 - float(drawn.sum())
        row |= {"tv": round(missing / 2, 4)}
    return row


def puzzles(shape: sudoku.Shape, model: fmlm.Denoiser, name: str, nfe: int, n: int, clues: int | str,
            generator: Generator) -> dict:
    """Solve n held-out puzzles that have exactly one solution: the share for which that solution was found."""
    given, solutions = (part.to(generator.device) for part in sudoku.load_puzzles(shape, clues, n))
    solved = (SAMPLERS[name].complete(model, given, nfe, generator) == solutions).all(1)
    return {"sampler": name, "nfe": nfe, "n": n, "clues": clues, **share(solved)}


@torch.no_grad()
def posterior(model: fmlm.Denoiser, objective: str, boards: Tensor, context: Tensor, generator: Generator) -> Tensor:
    """log delta_{0,0} of a flow map (noise in the unknown cells) or of an MDM or MLFM (no noise), (B, L, V)."""
    x1 = F.one_hot(boards, model.vocab_size).float()
    noise = torch.randn(x1.shape, generator=generator, device=x1.device) * (objective not in ("mdm", "mlfm"))
    time = context.float()
    return torch.cat([model(*part) for part in zip(*(whole.split(BATCH) for whole in
                                                     (fmlm.interpolate(x1, noise, time), time, time)))])


def against_exact(shape: sudoku.Shape, model: fmlm.Denoiser, objective: str, generator: Generator, n: int = 200) -> dict:
    """4x4: mean KL(exact marginals || delta_{0,0}) in nats per unknown cell, by the number of clues, over n contexts each.

    Exact by enumeration: the share of each digit among those of the 288 boards that agree with the clues.
    """
    everything = sudoku.all_boards(shape).to(generator.device)
    one_hot = F.one_hot(everything, 4).float()
    result = {}
    for clues in range(shape.cells):
        boards = everything[torch.randint(288, (n,), generator=generator, device=everything.device)]
        order = torch.rand(boards.shape, generator=generator, device=boards.device).argsort(1).argsort(1)
        context = order < clues
        agrees = ((boards[:, None] == everything) | ~context[:, None]).all(-1).float()  # (n, 288)
        exact = torch.einsum("nk,klv->nlv", agrees, one_hot) / agrees.sum(1)[:, None, None]
        log_delta = posterior(model, objective, boards, context, generator)
        kl = fmlm.cross_entropy(log_delta, exact) + torch.xlogy(exact, exact).sum(-1)
        result[clues] = round(float(fmlm.token_mean(kl, ~context)), 4)
    return result


def likelihood_bound(shape: sudoku.Shape, model: fmlm.Denoiser, objective: str, generator: Generator,
                     n: int = 5000) -> tuple[float, float]:
    """The MDM bound on -log p(board), nats, on held-out boards: mean over n boards and its 95% half-width.

    A board with m of its L cells masked, m uniform on 1 ... L, counts L/m times the sum of its cross-entropies: the
    1/f weight with f integrated out, given m. The m are stratified, so only the spread at equal m counts as error.
    """
    boards = sudoku.load_boards(shape, "test", min(n, 2000)).to(generator.device)
    boards = boards[torch.arange(n, device=boards.device) % len(boards)]
    masked = (fmlm.stratified_uniform(n, generator, boards.device) * shape.cells).long().clamp(max=shape.cells - 1) + 1
    order = torch.rand(boards.shape, generator=generator, device=boards.device).argsort(1).argsort(1)
    context = order >= masked[:, None]
    log_delta = posterior(model, objective, boards, context, generator)
    entropies = fmlm.cross_entropy(log_delta, F.one_hot(boards, shape.size).float())
    nats = (entropies * ~context).sum(1) * shape.cells / masked
    first, second = nats[masked.argsort()][:n // 2 * 2].view(-1, 2).T  # neighbours in m: their difference is free of it
    return float(nats.mean()), 1.96 * math.sqrt(float((first - second).square().mean()) / 2 / n)


def evaluate(path: str, options: argparse.Namespace) -> dict:
    """Everything there is to say about one checkpoint, as one dictionary. Each figure draws from the seed alone, so that it is
    the same whatever else was asked, and two checkpoints are judged by the same draws."""
    model, info = load_checkpoint(path, options.device, options.compile)
    shape, objective = sudoku.SHAPES[info["task"]], info["objective"]
    draws = lambda: Generator(options.device).manual_seed(options.seed)
    names = options.sampler or [name for name in SAMPLERS if objective in SAMPLERS[name].objectives and name not in ASIDE]
    names = [choose_sampler(objective, name)[0] for name in names]
    default = {4: [1, 2, 4, 8, 16], 6: [1, 3, 9, 27], 9: [1, 3, 9, 27, 81]}[shape.size]
    document = {"checkpoint": str(path), "task": info["task"], "objective": objective, "steps": info.get("step"),
                "parameters": sum(weight.numel() for weight in model.parameters()), "seed": options.seed, "bf16": options.bf16}
    document["unconditional"] = [unconditional(shape, model, name, nfe, options.n, draws())
                                 for name in names for nfe in options.nfe or default]
    if objective in WITHOUT_CONTEXT:
        return document
    document["puzzles"] = [puzzles(shape, model, name, nfe, options.n, clues, draws())
                           for name in names for clues in options.clues or [] for nfe in options.nfe or [1, 2, 4, 8, 16]]
    bound, error = likelihood_bound(shape, model, objective, draws())
    document["likelihood"] = {"bound": round(bound, 3), "plus_minus": round(error, 3),
                              "limit": round(math.log(sudoku.BOARD_COUNT[shape.name]), 3)}
    if shape.size == 4:
        document["kl"] = against_exact(shape, model, objective, draws())
    return document


def report(document: dict) -> str:
    """The document as tables for a terminal."""
    lines = ["{checkpoint}: {task}, {objective}, {parameters:,} parameters, {steps} steps".format(**document)]
    tables = {"valid boards, %": document["unconditional"]}
    for row in document.get("puzzles", []):
        tables.setdefault(f"puzzles with {row['clues']} clues solved, %", []).append(row)
    for title, rows in tables.items():
        budgets = list(dict.fromkeys(row["nfe"] for row in rows))
        lines += ["", f"{title} of {rows[0]['n']:,} (95% interval)", f"{'NFE':<19}" + "".join(f"{nfe:>24}" for nfe in budgets)]
        for name in dict.fromkeys(row["sampler"] for row in rows):
            mine = [row for row in rows if row["sampler"] == name]
            lines.append(f"{name:<19}" + "".join("{percent:>7.1f} ({low:.1f} - {high:.1f})".format(**row).rjust(24) for row in mine))
            if "distinct" in mine[0]:
                lines.append(f"{'  distinct':<19}" + "".join(f"{row['distinct']:>24}" for row in mine))
            if "tv" in mine[0]:
                lines.append(f"{'  TV to uniform':<19}" + "".join(f"{row['tv']:>24.3f}" for row in mine))
    if "likelihood" in document:
        lines += ["", "likelihood bound {bound} +- {plus_minus} nats a board; no honest one is below log {0} = {limit}".format(
            f"{sudoku.BOARD_COUNT[document['task']]:,}", **document["likelihood"])]
    if "kl" in document:
        kl = document["kl"]
        lines += ["", "KL(exact marginals || delta_00), nats per unknown cell, by the number of clues: mean "
                  f"{sum(kl.values()) / len(kl):.4f}", "clues" + "".join(f"{clues:>7}" for clues in kl),
                  "KL   " + "".join(f"{value:>7.3f}" for value in kl.values())]
    return "\n".join(lines)


@command("sudoku.evaluate")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m sudoku.evaluate", description="Evaluate checkpoints on Sudoku.")
    parser.add_argument("checkpoints", nargs="*", metavar="CKPT", help="default: the newest trained here")
    parser.add_argument("--nfe", type=int, nargs="+", help="network passes for each board; default: by size")
    parser.add_argument("--clues", type=clue_count, nargs="+", help='also solve puzzles with so many clues, or "minimal"')
    parser.add_argument("--sampler", nargs="+", metavar="NAME", help=f"default: all that suit but {' and '.join(ASIDE)}, of {', '.join(SAMPLERS)}")
    parser.add_argument("-n", type=int, default=1000, help="boards, and puzzles of each kind (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16: faster where the processor has it")
    parser.add_argument("--compile", action="store_true", help="half a minute to start, then faster: for the large tables")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    if options.n < 1:
        raise ValueError(f"-n must be 1 or more, got {options.n}")
    with torch.autocast(options.device.type, torch.bfloat16, enabled=options.bf16):
        documents = [evaluate(path, options) for path in options.checkpoints or [newest_checkpoint()]]
    print(json.dumps(documents) if options.json else "\n\n".join(report(document) for document in documents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
