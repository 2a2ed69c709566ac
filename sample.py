"""Every sampler of FMLM+, masked diffusion and MLFM, as cases of one loop; and the command line that draws and solves.

    python sample.py                        draw four boards from the newest checkpoint, or from the shipped weights
    python sample.py --puzzle 53..7....     solve a puzzle; --trace shows the refinement round after round

The loop (`refine`): draft all unknown tokens, commit some, forget the rest, repeat. A sampler is a choice of
  - path:    the times a draft goes through, [0, 1] for one jump of the flow map, [0, 0] for the a-priori posterior;
  - noise:   1 for a flow, 0 for masked diffusion (a [MASK] is the zero vector at time 0); fresh in every round, or kept;
  - move:    what carries a draft from one time to the next: `flow_map`, or `bridge_step` for MLFM;
  - draw:    how tokens are read off the draft, "argmax" or "sample"; `judge`, how sure they are: "max" or "drawn";
  - commit:  which tokens of the draft are kept.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fmlm import Model, bridge_step, flow_map, inverse_decoding_time, token_times
from sudoku import boards as sudoku, speed
from sudoku.checkpoints import WITHOUT_CONTEXT, load_checkpoint, newest_checkpoint
from sudoku.commands import Parser, command, device

BATCH = 100  # sequences at a time: bounds the memory, and a CPU's caches hold what a layer computes


# ---------------------------------------------------------------------------------------------------------------------
# 1. The loop
# ---------------------------------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """One network pass, as `trace` records it, (B, L) each: the tokens drafted, how sure they are (those that were
    committed before: how sure they were), which were committed, and which, committed before, were given back to noise."""

    draft: Tensor
    confidence: Tensor
    committed: Tensor
    reopened: Tensor


Commit = Callable[[Tensor, Tensor, int], Tensor]  # (confidence (B, L), unknown (B, L), rounds left) -> (B, L) bool


def most_confident(confidence: Tensor, unknown: Tensor, rounds_left: int, budget: int | Tensor | None = None) -> Tensor:
    """The uniform budget: the ceil(unknown / rounds left) unknown tokens of highest confidence, (B, L) bool; or `budget`."""
    budget = -(-unknown.sum(1, keepdim=True) // rounds_left) if budget is None else budget
    rank = torch.where(unknown, confidence, -1.0).argsort(1, descending=True).argsort(1)
    return rank < budget


@torch.no_grad()
def refine(model: Model, tokens: Tensor, known: Tensor, rounds: int, path: list[float], commit: Commit, noise: float = 1,
           fresh: bool = True, move: Callable = flow_map, draw: str = "argmax", judge: str = "max", reopen: bool = False,
           generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """Draft, commit, forget, at most `rounds` times; the last round commits everything. NFE = rounds * (len(path) - 1),
    less for a sequence of which all tokens are committed before.
    With `reopen`, a committed token is only as safe as it was sure: `commit` chooses anew among all generated tokens.

    tokens: (B, L) int64; known: (B, L) bool, tokens that are given and come back bit for bit; what the other entries of
    `tokens` hold is not read. model: also has `vocab_size`. generator: the only source of randomness, on the device
    of the tokens. trace: a list, receives one `Pass` a network pass. Returns (B, L) tokens.
    Raises ValueError for tokens or known of the wrong shape or type, for no rounds, or for an unknown `draw` or `judge`.
    """
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(f"tokens must be (B, L) int64, got {tuple(tokens.shape)} {tokens.dtype}")
    if known.shape != tokens.shape or known.dtype != torch.bool:
        raise ValueError(f"known must be bool of the shape of tokens, {tuple(tokens.shape)}, "
                         f"got {tuple(known.shape)} {known.dtype}")
    if (known & ((tokens < 0) | (tokens >= model.vocab_size))).any():
        raise ValueError(f"known tokens must lie in 0 ... {model.vocab_size - 1}")
    if rounds < 1 or len(path) < 2:
        raise ValueError("a sampler needs at least one network pass: NFE must be 1 or more")
    if draw not in ("argmax", "sample") or judge not in ("max", "drawn"):
        raise ValueError(f'draw must be "argmax" or "sample", not {draw!r}, and judge "max" or "drawn", not {judge!r}')
    rand = lambda: torch.rand(tokens.shape, generator=generator, device=tokens.device)
    x0, sure, free = None, torch.ones(tokens.shape, device=tokens.device), ~known
    for rounds_left in range(rounds, 0, -1):
        unknown = ~known
        asked = unknown.any(1)  # a finished sequence costs no more passes
        if not asked.any():
            break
        x1 = F.one_hot(tokens.where(known, 0), model.vocab_size).float()
        if fresh or x0 is None:
            x0 = torch.randn(x1.shape, generator=generator, device=x1.device) * noise
        x = torch.where(known[..., None], x1, x0)
        for i, (s, t) in enumerate(zip(path, path[1:])):
            s, t = (token_times(torch.full_like(x[:, 0, 0], time), known) for time in (s, t))
            delta = torch.zeros_like(x)
            delta[asked] = model(x[asked], s[asked], t[asked]).exp()
            x = move(x, delta, s, t)
            confidence, draft = delta.max(-1)
            if draw == "sample":  # inverse of the cumulative distribution
                draft = (delta.cumsum(-1) <= rand()[..., None]).sum(-1).clamp(max=model.vocab_size - 1)
            if judge == "drawn":
                confidence = delta.gather(-1, draft[..., None])[..., 0]
            draft, confidence, kept = tokens.where(known, draft), sure.where(known, confidence), known
            if i == len(path) - 2:
                choice = free if reopen else unknown
                kept = ~choice | (commit(confidence, choice, rounds_left) if rounds_left > 1 else choice)
            if trace is not None:
                trace.append(Pass(draft, confidence, kept & unknown, known & ~kept))
        tokens, known, sure = draft.where(kept, tokens), kept, confidence
    return tokens


# ---------------------------------------------------------------------------------------------------------------------
# 2. The samplers
# ---------------------------------------------------------------------------------------------------------------------


def steps_from_0_to_1(steps: int) -> list[float]:
    return [i / steps for i in range(steps + 1)] if steps > 0 else []


def rounds_at_most_tokens(rounds: int, tokens: Tensor) -> int:
    if rounds < 1:
        raise ValueError("a sampler needs at least one network pass: NFE must be 1 or more")
    if rounds > tokens.shape[-1]:
        raise ValueError(f"{rounds} rounds make no sense for {tokens.shape[-1]} tokens: each round commits at least one")
    return rounds


def flow_map_sampler(model: Model, tokens: Tensor, known: Tensor, steps: int, tau: bool = False,
                     generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """Noise to data in `steps` jumps z <- X_{s,t}(z); the last returns delta_{s,1}, argmax decodes (2602.16813).

    One round of the loop. For an FLM, whose network ignores t, delta_{s,t} = D_s and each jump is an Euler step.
    `tau`: steps that are uniform in the decoding time tau(t), not in t.
    """
    path = steps_from_0_to_1(steps)
    if tau:
        path = inverse_decoding_time(torch.tensor(path, dtype=torch.float64), model.vocab_size).tolist()
    return refine(model, tokens, known, 1, path, most_confident, generator=generator, trace=trace)


def block_diffusion(model: Model, tokens: Tensor, known: Tensor, block_length: int, steps: int,
                    generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """The flow map on all unknown tokens, of which one block after another is kept, from left to right.

    Every pass is one that training has seen: all generated tokens share (s, t). NFE = ceil(L / block_length) * steps.
    """
    length = tokens.shape[-1]
    if not 1 <= block_length <= length:
        raise ValueError(f"block_length must lie in 1 ... {length}, got {block_length}")
    blocks = -(-length // block_length)

    def commit(confidence: Tensor, unknown: Tensor, rounds_left: int) -> Tensor:
        return unknown & (torch.arange(length, device=unknown.device) < (blocks - rounds_left + 1) * block_length)

    return refine(model, tokens, known, blocks, steps_from_0_to_1(steps), commit, generator=generator, trace=trace)


def posterior_refinement(model: Model, tokens: Tensor, known: Tensor, rounds: int, threshold: float | None = None,
                         flow_steps: int = 1, fresh: bool = True, reopen: bool = False,
                         generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """Posterior Refinement (2606.24773): draft the whole sequence with delta_{0,1}, commit what is sure *given the
    draft* (p_max >= threshold) and at least the uniform budget, give the rest fresh noise, repeat.

    NFE = rounds * flow_steps, less where all tokens are committed before. `fresh` = False keeps the first noise.
    `threshold`: by default 1 - 0.05 / rounds, since who has more rounds to wait can ask for more; the published 0.999 is
    that of 50 rounds (python -m sudoku.refinement compares). `reopen` (not in the paper): as many tokens are kept as
    ever, but the surest of all that were generated, so that a later, surer draft takes the place of an early doubtful one.
    """
    rounds = rounds_at_most_tokens(rounds, tokens)
    threshold = 1 - 0.05 / rounds if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")

    def commit(confidence: Tensor, unknown: Tensor, rounds_left: int) -> Tensor:
        budget = -(-unknown.sum(1, keepdim=True) * (rounds - rounds_left + 1) // rounds) if reopen else None
        return (confidence >= threshold) | most_confident(confidence, unknown, rounds_left, budget)

    return refine(model, tokens, known, rounds, steps_from_0_to_1(flow_steps), commit, fresh=fresh, reopen=reopen,
                  generator=generator, trace=trace)


def a_priori_confidence(model: Model, tokens: Tensor, known: Tensor, rounds: int, draw: str = "argmax",
                        generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """The foil: delta_{0,0} for delta_{0,1}, each token's marginal given the context alone; the uniform budget only."""
    return refine(model, tokens, known, rounds_at_most_tokens(rounds, tokens), [0, 0], most_confident, draw=draw,
                  generator=generator, trace=trace)


def confidence(model: Model, tokens: Tensor, known: Tensor, steps: int, draw: str = "argmax",
               generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """MDM, most confident first: a-priori confidence with the noise turned off, that is, on [MASK] tokens."""
    return refine(model, tokens, known, rounds_at_most_tokens(steps, tokens), [0, 0], most_confident, noise=0, draw=draw,
                  generator=generator, trace=trace)


def ancestral(model: Model, tokens: Tensor, known: Tensor, steps: int,
              generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """MDM, ancestral (MDLM, arXiv 2406.07524): every [MASK] is revealed with probability (a_s - a_t)/(1 - a_t), which
    for the linear schedule is 1 / steps left, and is drawn from its marginal."""
    def commit(confidence: Tensor, unknown: Tensor, rounds_left: int) -> Tensor:
        return torch.rand(unknown.shape, generator=generator, device=unknown.device) < 1 / rounds_left

    return refine(model, tokens, known, steps, [0, 0], commit, noise=0, draw="sample", generator=generator, trace=trace)


def token_promotion(model: Model, tokens: Tensor, known: Tensor, rounds: int, threshold: float = 0.8, steps: int = 4,
                    sigma: float = 1.0, generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """MLFM (2606.27617): from [MASK] over the bridge to a draft in `steps` passes of the SDE, draw every token, keep
    those whose probability is >= threshold and at least the surest one, return the rest to [MASK], repeat.

    NFE = rounds * steps, less where all tokens are kept before; the last round keeps all. sigma: that of the training.
    Raises ValueError for a threshold outside [0, 1] or sigma <= 0.
    """
    if not 0 <= threshold <= 1 or not sigma > 0:
        raise ValueError(f"threshold must lie in [0, 1] and sigma be more than 0, got {threshold} and {sigma}")

    def move(x: Tensor, delta: Tensor, s: Tensor, t: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        return bridge_step(x, delta, s, t, noise, sigma)

    def commit(confidence: Tensor, unknown: Tensor, rounds_left: int) -> Tensor:
        return (confidence >= threshold) | most_confident(confidence, unknown, rounds_left, budget=1)

    return refine(model, tokens, known, rounds_at_most_tokens(rounds, tokens), steps_from_0_to_1(steps), commit, noise=0,
                  move=move, draw="sample", judge="drawn", generator=generator, trace=trace)


class Sampler(NamedTuple):
    """A sampler of the command lines: what to call with (model, tokens, known, nfe), and the objectives it suits."""

    run: Callable[..., Tensor]
    objectives: tuple[str, ...]

    def complete(self, model: Model, given: Tensor, nfe: int, generator: Generator | None = None,
                 traces: list | None = None) -> Tensor:
        """Complete `given` (n, L), -1 where unknown, BATCH at a time; appends the trace of each batch to `traces`."""
        boards = []
        for part in given.split(BATCH):
            trace: list[Pass] = []
            boards.append(self.run(model, part.clamp(min=0), part >= 0, nfe, generator=generator, trace=trace))
            if traces is not None:
                traces.append(trace)
        return torch.cat(boards)


SAMPLERS = {  # the first that suits an objective is its default
    "posterior": Sampler(posterior_refinement, ("fmlm+",)),
    "posterior-reopened": Sampler(lambda *a, **k: posterior_refinement(*a, reopen=True, **k), ("fmlm+",)),
    "a-priori": Sampler(a_priori_confidence, ("fmlm+",)),
    "a-priori-sampled": Sampler(lambda *a, **k: a_priori_confidence(*a, draw="sample", **k), ("fmlm+",)),
    "flow-map-tau": Sampler(lambda *a, **k: flow_map_sampler(*a, tau=True, **k), ("flm", "fmlm")),
    "flow-map": Sampler(flow_map_sampler, ("flm", "fmlm", "fmlm+")),
    "block": Sampler(lambda model, tokens, known, nfe, **k: block_diffusion(
        model, tokens, known, -(-tokens.shape[-1] // rounds_at_most_tokens(nfe, tokens)), 1, **k), ("fmlm+",)),
    "confidence": Sampler(confidence, ("mdm",)),
    "confidence-sampled": Sampler(lambda *a, **k: confidence(*a, draw="sample", **k), ("mdm",)),
    "ancestral": Sampler(ancestral, ("mdm",)),
    "promotion": Sampler(lambda model, tokens, known, nfe, **k: token_promotion(
        model, tokens, known, min(max(1, nfe // 4), tokens.shape[-1]), steps=min(nfe, 4), **k), ("mlfm",)),
}


def choose_sampler(objective: str, name: str | None = None) -> tuple[str, Sampler]:
    """The sampler of that name, or the objective's default. ValueError where the two do not suit."""
    suits = [key for key, sampler in SAMPLERS.items() if objective in sampler.objectives]
    name = name or suits[0]
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: choose from {', '.join(SAMPLERS)}")
    if name not in suits:
        raise ValueError(f"the sampler {name!r} does not suit a model trained as {objective}: use {' or '.join(suits)}")
    return name, SAMPLERS[name]


# ---------------------------------------------------------------------------------------------------------------------
# 3. The command line
# ---------------------------------------------------------------------------------------------------------------------


@command("sample.py")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="sample.py", description="Draw Sudoku boards, or solve puzzles, with a trained checkpoint.")
    parser.add_argument("checkpoint", nargs="?", help="default: the newest trained here, of the puzzle's size, else the shipped 9x9 weights")
    parser.add_argument("-n", type=int, default=4, help="boards to draw (default 4)")
    parser.add_argument("--sampler", metavar="NAME", help=f"{', '.join(SAMPLERS)}; default: what suits the checkpoint")
    parser.add_argument("--nfe", type=int, default=4, help="network passes for each board, at most (default 4)")
    parser.add_argument("--puzzle", metavar="STRING", help="solve this: row after row, . or 0 for an empty cell")
    parser.add_argument("--puzzles", metavar="FILE", help="solve one puzzle a line")
    parser.add_argument("--trace", action="store_true", help="show the first board pass after pass")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--bench", action="store_true", help="time the sampler by batch and NFE, from nothing but noise")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16: faster where the processor has it")
    parser.add_argument("--compile", action="store_true", help="half a minute to start, then faster: for thousands of boards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.n < 1 or options.nfe < 1 or not 0 <= options.seed < 2**32:
        raise ValueError("-n and --nfe must be 1 or more, and --seed from 0 to 2^32 - 1")
    if options.puzzle is not None and options.puzzles is not None or options.trace and options.json:
        raise ValueError("give --puzzle or --puzzles, and --trace or --json, not both")
    lines = [options.puzzle or ""] if options.puzzles is None else sudoku.read_lines(options.puzzles)
    path = options.checkpoint or newest_checkpoint(sudoku.shape_of(lines))
    model, info = load_checkpoint(path, options.device, options.compile)
    name, sampler = choose_sampler(info["objective"], options.sampler)
    shape, errors = sudoku.SHAPES[info["task"]], []
    if options.bench:
        with torch.autocast(options.device.type, torch.bfloat16, enabled=options.bf16):
            speed.sampling(sampler.run, model, shape.cells, options.device)
        return 0
    solving = options.puzzle is not None or options.puzzles is not None
    if solving and info["objective"] in WITHOUT_CONTEXT:
        raise ValueError(f"a model trained as {info['objective']} knows no context, so it cannot solve puzzles: use fmlm+")
    if options.puzzles is not None:
        puzzles, errors = sudoku.parse_lines(shape, lines, options.puzzles)
    else:
        puzzles = [sudoku.parse(shape, options.puzzle)] if solving else [[-1] * shape.cells] * options.n
    given = torch.tensor(puzzles, device=options.device)
    generator, traces = Generator(options.device).manual_seed(options.seed), []
    start = time.perf_counter()
    with torch.autocast(options.device.type, torch.bfloat16, enabled=options.bf16):
        boards = sampler.complete(model, given, options.nfe, generator, traces)
    seconds = time.perf_counter() - start
    right = sudoku.valid(shape, boards) & ((boards == given) | (given < 0)).all(1)
    passes = max(map(len, traces))
    if options.json:
        count = {"puzzles": len(puzzles), "solved": int(right.sum())} if solving else {"valid": int(right.sum())}
        texts = [sudoku.to_string(shape, board) for board in boards.tolist()]
        print(json.dumps(count | {"nfe": passes, "boards": texts}))
    else:
        known, color = given[0] >= 0, sys.stdout.isatty() and "NO_COLOR" not in os.environ
        for number, record in enumerate(traces[0] if options.trace else [], 1):
            if known.all():  # others of its batch go on
                break
            draft, confidence, committed, reopened = (part[0] for part in record)
            known = known & ~reopened
            print(f"pass {number}: {int(committed.sum())} committed, {int((~known & ~committed).sum())} back to noise\n"
                  f"{sudoku.pretty_draft(shape, draft, confidence, committed, known, color)}\n")
            known = known | committed
        if options.trace:
            print("5 known   [5] committed now   back to noise: 5' p >= 0.9   5~ p >= 0.5   5? less\n")
        for puzzle, board, good in zip(puzzles, boards.tolist(), right.tolist()):
            verdict = ("solved" if solving else "valid") if good else "not valid"
            solutions = sudoku.count_solutions(shape, puzzle) if solving else 1
            if solutions != 1:
                verdict += "; this puzzle has " + ("no solution" if not solutions else
                           "2 or more solutions" + ("; the board found is one of them" if good else ""))
            print(f"{sudoku.pretty(shape, board)}\n{verdict}\n")
        print(f"{int(right.sum())} of {len(puzzles)} {'solved' if solving else 'valid'}, {name}, "
              f"{passes} network passes, {seconds:.2f} s")
    for error in errors:
        print(f"sample.py: {error}", file=sys.stderr)
    return 2 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
