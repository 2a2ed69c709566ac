"""Every sampler, as a case of one loop; and the command line that draws and completes.

    python sample.py                        draw four boards with the newest checkpoint, or the
                                            weights that ship
    python sample.py --puzzle 53..7....     solve a puzzle; --trace shows it pass after pass

The loop (`refine`): draft all unknown tokens, commit some, forget the rest, repeat. A sampler is
    a Draft: how noise becomes tokens and how sure of each the model is; and
    a rule: which tokens of the draft are committed.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C while torch is imported ends it without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fmlm import Model, flow_map, inverse_decoding_time, one_hot, token_times
from harness import commands, speed, terminal
from harness.attempts import attempts, tries_of
from harness.checkpoints import completes, load_checkpoint, newest_checkpoint, task_of
from harness.measure import check_tokens, usual
from harness.samplers import Sampler, choose_sampler
from harness.tasks import name_of


# --------------------------------------------------------------------------------------------------
# 1. The loop
# --------------------------------------------------------------------------------------------------


class Draft(NamedTuple):
    """How a draft is made."""

    times: Sequence[float]  # [0, 1]: one jump of the flow map; [0, 0]: the a-priori posterior
    noise: float = 1  # its size at the start; 0 for a [MASK], which is the zero vector at time 0
    fresh: bool = True  # new noise in every round, or always the first
    move: Callable = flow_map  # from one time to the next
    draw: str = "argmax"  # how tokens are read off the last posterior, or "sample"
    sure: str = "max"  # how sure they are: the largest probability, or that of the one "drawn"
    temperature: float = 1  # of the posterior that is drawn from and judged: p^(1/temperature)


class Pass(NamedTuple):
    """One network pass, as `trace` records it, (B, L) each: the tokens drafted, how sure they are
    (those that were committed before: how sure they were), and which were committed."""

    draft: Tensor
    confidence: Tensor
    committed: Tensor


Rule = Callable[[Tensor, Tensor, int], Tensor]  # (confidence, unknown, rounds left) -> (B, L) bool


def refine(model: Model, tokens: Tensor, known: Tensor, rounds: int, how: Draft, rule: Rule,
           generator: Generator | None = None, trace: list | None = None,
           finish: bool = True) -> Tensor:
    """Draft, commit, forget, at most `rounds` times; the last round commits everything.

    tokens: (B, L) int64; known: (B, L) bool, tokens that are given and come back bit for bit; what
    the other entries of `tokens` hold is not read. model: also has `vocab_size`. generator: the
    only source of randomness, on the device of the tokens. trace: a list, receives one `Pass` a
    network pass. finish: False leaves the last round of several out, and the tokens that were not
    committed before it are those of the last draft. Returns (B, L) tokens.
    NFE = rounds * (len(times) - 1), less for a sequence that is all committed before.
    Raises ValueError for tokens or known of the wrong shape, type or value, or for no passes.
    """
    check_tokens(model, tokens, known)
    if how.draw not in ("argmax", "sample") or how.sure not in ("max", "drawn"):
        raise ValueError(f'draw must be "argmax" or "sample", not {how.draw!r}, and sure "max" or '
                         f'"drawn", not {how.sure!r}')
    if rounds < 1 or len(how.times) < 2:
        raise ValueError("a sampler needs at least one network pass: NFE must be 1 or more")
    x0, sure = None, torch.ones(tokens.shape, device=tokens.device)
    for rounds_left in range(rounds, 0 if finish else min(1, rounds - 1), -1):
        if known.all():
            break
        x1 = one_hot(tokens.where(known, 0), model.vocab_size)
        if how.fresh or x0 is None:
            x0 = torch.randn(x1.shape, generator=generator, device=x1.device) * how.noise
        x = torch.where(known[..., None], x1, x0)
        passes = [(tokens.where(known, drawn), sure.where(known, confidence))
                  for drawn, confidence in drafts(model, x, known, how, generator)]
        tokens, sure = passes[-1]
        committed = ~known & rule(sure, ~known, rounds_left) if rounds_left > 1 else ~known
        if trace is not None:
            trace += [Pass(*each, torch.zeros_like(known)) for each in passes[:-1]]
            trace.append(Pass(*passes[-1], committed))
        known = known | committed
    return tokens


@torch.no_grad()
def drafts(model: Model, x: Tensor, known: Tensor, how: Draft,
           generator: Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The draft after every network pass from x (B, L, V): tokens and how sure they are, (B, L)."""
    asked = ~known.all(1)  # a finished sequence costs no more passes
    for start, end in zip(how.times, how.times[1:]):
        s, t = (token_times(torch.full_like(x[:, 0, 0], time), known) for time in (start, end))
        delta = torch.ones_like(x)  # of a finished sequence, which is not read
        delta[asked] = model(x[asked], s[asked], t[asked]).exp()
        x = how.move(x, delta, s, t)
        if how.temperature != 1:
            delta = (delta.log() / how.temperature).softmax(-1)
        confidence, drawn = delta.max(-1)
        if how.draw == "sample":
            u = torch.rand(known.shape, generator=generator, device=x.device)
            drawn = sample_words(delta, u)
        if how.sure == "drawn":
            confidence = delta.gather(-1, drawn[..., None])[..., 0]
        yield drawn, confidence


def sample_words(p: Tensor, u: Tensor) -> Tensor:
    """Words of law p (..., V) from uniforms u (...), by the inverse of the cumulative distribution;
    where rounding leaves u above all of it, the last word that has any probability."""
    below = p.cumsum(-1)
    return torch.minimum((below <= u[..., None]).sum(-1), (below < below[..., -1:]).sum(-1))


# --------------------------------------------------------------------------------------------------
# 2. The samplers
# --------------------------------------------------------------------------------------------------

A_PRIORI, MASKED = Draft([0, 0], draw="sample"), Draft([0, 0], noise=0, draw="sample")


def surest(confidence: Tensor, among: Tensor, count: Tensor | int) -> Tensor:
    """The `count` tokens, an int or (B, 1), of highest confidence among these: (B, L) bool."""
    return torch.where(among, confidence, -torch.inf).argsort(1, descending=True).argsort(1) < count


def ceil_divide(number: Tensor | int, by: int) -> Tensor | int:
    return -(-number // by)


def uniform_budget(confidence: Tensor, unknown: Tensor, rounds_left: int) -> Tensor:
    """The ceil(unknown / rounds left) unknown tokens of highest confidence (2606.24773)."""
    return surest(confidence, unknown, ceil_divide(unknown.sum(1, keepdim=True), rounds_left))


def uniform_times(steps: int, tau_of: int | None = None) -> list[float]:
    """So many jumps of one length from 0 to 1, in t, or in tau(t) of so many words."""
    times = [i / steps for i in range(steps + 1)] if steps > 0 else []
    if tau_of:
        times = inverse_decoding_time(torch.tensor(times, dtype=torch.float64), tau_of).tolist()
    return times


def clock(model: Model) -> int | None:
    """`tau_of` the words of a network that is told tau; None, t, for all others."""
    return model.vocab_size if getattr(model, "decided", None) is not None else None


def at_most_tokens(rounds: int, tokens: Tensor) -> int:
    """ValueError unless there are 1 to L rounds: each commits at least one token."""
    if not 1 <= rounds <= tokens.shape[-1]:
        raise ValueError(f"{rounds} rounds (NFE) make no sense for {tokens.shape[-1]} tokens: at "
                         "least 1, and each commits at least one token")
    return rounds


def check_threshold(threshold: float) -> float:
    if not threshold >= 0:
        raise ValueError(f"threshold must be a probability, or inf for never, got {threshold}")
    return threshold


def flow_map_sampler(model: Model, tokens: Tensor, known: Tensor, steps: int, tau: bool = False,
                     **options) -> Tensor:
    """Noise to data in `steps` jumps z <- X_{s,t}(z); the last returns delta_{s,1} (2602.16813).

    One round of the loop. For an FLM, whose network ignores t, delta_{s,t} = D_s and each jump is
    an Euler step. `tau`: steps that are uniform in the decoding time tau(t), not in t.
    `options`, of all samplers: generator and trace, as for `refine`.
    """
    how = Draft(uniform_times(steps, model.vocab_size if tau else None))
    return refine(model, tokens, known, 1, how, uniform_budget, **options)


def block_diffusion(model: Model, tokens: Tensor, known: Tensor, block_length: int, steps: int,
                    **options) -> Tensor:
    """The flow map on all unknown tokens, of which one block after another is kept, left to right.

    Every pass is one that training has seen: all generated tokens share (s, t). After a block the
    rest gets fresh noise, as in Posterior Refinement; the published code restores the first noise,
    which was drawn independently of the block and by then is correlated with it.
    NFE = ceil(L / block_length) * steps. Raises ValueError for a block_length outside 1 ... L.
    """
    length = tokens.shape[-1]
    if not 1 <= block_length <= length:
        raise ValueError(f"block_length must lie in 1 ... {length}, got {block_length}")
    blocks, place = ceil_divide(length, block_length), torch.arange(length, device=tokens.device)

    def rule(confidence: Tensor, unknown: Tensor, rounds_left: int) -> Tensor:
        return unknown & (place < (blocks - rounds_left + 1) * block_length)

    how = Draft(uniform_times(steps, clock(model)))
    return refine(model, tokens, known, blocks, how, rule, **options)


def posterior_refinement(model: Model, tokens: Tensor, known: Tensor, rounds: int,
                         threshold: float | None = None, flow_steps: int = 1, fresh: bool = True,
                         early: bool = False, gumbel: float = 0, finish: bool = True,
                         generator: Generator | None = None, **options) -> Tensor:
    """Posterior Refinement (2606.24773): draft the whole sequence with delta_{0,1}, commit what is
    sure *given the draft* (p_max >= threshold) and at least the uniform budget, give the rest fresh
    noise, repeat. NFE = rounds * flow_steps, less where all tokens are committed before.

    threshold: published 0.999; math.inf never commits more than the budget. Default (ours):
    1 - 0.05 / rounds, since who has more rounds to wait can ask for more. `fresh` = False keeps the
    first noise. Ours are:
    `early`: the budget is large first, for from nothing the tokens of one draft fit each other.
    `gumbel`: MaskGIT's choice temperature (2202.04200), which falls linearly with the rounds left:
    the budget is ranked by log p_max + temperature * Gumbel noise, and the threshold is math.inf.
    The surest tokens are the commonest; text that begins with them has no entropy.
    `finish`: False gives up before the last round, which commits what is left, sure or not, if the
    threshold may leave nothing to it.
    Raises ValueError for a negative threshold or gumbel.
    """
    rounds = at_most_tokens(rounds, tokens)
    if threshold is None:
        threshold = math.inf if gumbel else 1 - 0.05 / rounds
    check_threshold(threshold)
    if not 0 <= gumbel < math.inf:
        raise ValueError(f"gumbel is a temperature, at least 0, not {gumbel}")

    def rule(confidence: Tensor, unknown: Tensor, rounds_left: int) -> Tensor:
        rank, count = confidence, ceil_divide(unknown.sum(1, keepdim=True), rounds_left)
        if gumbel:
            rank = with_gumbel(confidence, gumbel * rounds_left / rounds, generator)
        if early:
            count = scheduled(many_first, unknown, rounds_left, rounds)
        return (confidence >= threshold) | surest(rank, unknown, count)

    how = Draft(uniform_times(flow_steps, clock(model)), fresh=fresh)
    return refine(model, tokens, known, rounds, how, rule, generator=generator,
                  finish=finish or threshold > 1, **options)


def with_gumbel(confidence: Tensor, temperature: float, generator: Generator | None) -> Tensor:
    """log p + temperature * Gumbel noise: i is highest with probability ~ p_i^(1/temperature)."""
    u = torch.rand(confidence.shape, generator=generator, device=confidence.device)
    return confidence.log() - temperature * (-u.log()).log()


def few_first(done: float) -> float:
    """The share of the tokens that is open after this share of the rounds (MaskGIT, 2202.04200)."""
    return math.cos(math.pi / 2 * done)


def many_first(done: float) -> float:
    """The same (ours); the power was chosen on boards (sudoku/FINDINGS.md)."""
    return 1 - done ** 0.7


def scheduled(open_after: Callable[[float], float], unknown: Tensor, rounds_left: int,
              rounds: int) -> Tensor:
    """A budget: of n tokens at the start n open_after(r / R) are left after round r of R. Who is
    ahead shares what is left alike. (B, L) bool to (B, 1) int."""
    now, then = (open_after(1 - left / rounds) for left in (rounds_left, rounds_left - 1))
    return (unknown.sum(1, keepdim=True) * (1 - then / now)).ceil().long()


def left_to_right(model: Model, tokens: Tensor, known: Tensor, rounds: int,
                  threshold: float = 0.999, how: Draft = Draft([0, 1]), **options) -> Tensor:
    """What is sure, and where that is less than the cosine budget the *leftmost* tokens (ours).

    In a text what comes first decides the rest: to commit the surest first, as Posterior Refinement
    does, commits padding and full stops, and all must agree later with what these left open. Where
    the draft is delta_{0,1} (default) this is Posterior Refinement in another order; `how` gives
    its foils the same rule. threshold: of p_max. NFE = rounds, less where all is committed before.
    Raises ValueError for rounds outside 1 ... L and for a negative threshold.
    """
    rounds, threshold = at_most_tokens(rounds, tokens), check_threshold(threshold)
    places = torch.arange(tokens.shape[-1], 0, -1, device=tokens.device)

    def rule(confidence: Tensor, unknown: Tensor, rounds_left: int) -> Tensor:
        sure = confidence >= threshold
        order = places + sure * len(places)
        return sure | surest(order, unknown, scheduled(few_first, unknown, rounds_left, rounds))

    return refine(model, tokens, known, rounds, how, rule, **options)


def a_priori_confidence(model: Model, tokens: Tensor, known: Tensor, rounds: int,
                        draw: str = "argmax", **options) -> Tensor:
    """The foil: delta_{0,0}, each token's marginal given the context alone; the uniform budget."""
    rounds, how = at_most_tokens(rounds, tokens), Draft([0, 0], draw=draw)
    return refine(model, tokens, known, rounds, how, uniform_budget, **options)


def mdm_confidence(model: Model, tokens: Tensor, known: Tensor, steps: int, draw: str = "argmax",
                   **options) -> Tensor:
    """MDM, most confident first: a-priori confidence on [MASK] tokens, that is, without noise."""
    rounds, how = at_most_tokens(steps, tokens), Draft([0, 0], noise=0, draw=draw)
    return refine(model, tokens, known, rounds, how, uniform_budget, **options)


def mdm_gumbel(model: Model, tokens: Tensor, known: Tensor, steps: int, temperature: float = 12,
               generator: Generator | None = None, **options) -> Tensor:
    """MDM by MaskGIT's rule (2202.04200): tokens are drawn from their marginals, and ranked by the
    probability of what was drawn, with a choice temperature that falls with the steps left (12:
    text/RESULTS.md); the uniform budget. NFE = steps. Raises ValueError for steps outside 1 ... L.
    """
    steps = at_most_tokens(steps, tokens)

    def rule(confidence: Tensor, unknown: Tensor, steps_left: int) -> Tensor:
        rank = with_gumbel(confidence, temperature * steps_left / steps, generator)
        return uniform_budget(rank, unknown, steps_left)

    return refine(model, tokens, known, steps, MASKED._replace(sure="drawn"), rule,
                  generator=generator, **options)


def mdm_ancestral(model: Model, tokens: Tensor, known: Tensor, steps: int,
                  generator: Generator | None = None, **options) -> Tensor:
    """MDM, ancestral (MDLM, 2406.07524): every [MASK] is revealed with probability
    (a_s - a_t)/(1 - a_t), which for the linear schedule is 1 / steps left, and drawn from its
    marginal."""
    def rule(confidence: Tensor, unknown: Tensor, steps_left: int) -> Tensor:
        u = torch.rand(unknown.shape, generator=generator, device=unknown.device)
        return u < 1 / steps_left

    return refine(model, tokens, known, steps, MASKED, rule, generator=generator, **options)


# --------------------------------------------------------------------------------------------------
# 3. By name
# --------------------------------------------------------------------------------------------------


def blocks_of_one_pass(model: Model, tokens: Tensor, known: Tensor, nfe: int, **options) -> Tensor:
    length = ceil_divide(tokens.shape[-1], at_most_tokens(nfe, tokens))
    return block_diffusion(model, tokens, known, length, 1, **options)


def drafts_of(flow_steps: int, model: Model, tokens: Tensor, known: Tensor, nfe: int,
              **options) -> Tensor:
    """Posterior Refinement in as many whole rounds of so many flow steps as fit into nfe, a pass a
    step; below one round, one round of nfe steps, which is the flow map."""
    rounds = min(max(1, nfe // flow_steps), tokens.shape[-1])
    return posterior_refinement(model, tokens, known, rounds, flow_steps=min(nfe, flow_steps),
                                **options)


SAMPLERS = {  # the first that suits an objective is its default
    "posterior": Sampler(posterior_refinement, ("fmlm+",), gives_up=True),
    "posterior-early": Sampler(partial(posterior_refinement, early=True), ("fmlm+",),
                               gives_up=True),
    "posterior-gumbel": Sampler(partial(posterior_refinement, gumbel=8), ("fmlm+",)),
    "posterior-4": Sampler(partial(drafts_of, 4), ("fmlm+",)),
    "posterior-8": Sampler(partial(drafts_of, 8), ("fmlm+",)),
    "posterior-left": Sampler(left_to_right, ("fmlm+",)),
    "a-priori": Sampler(a_priori_confidence, ("fmlm+", "flm+")),
    "a-priori-sampled": Sampler(partial(a_priori_confidence, draw="sample"), ("fmlm+", "flm+")),
    "a-priori-left": Sampler(partial(left_to_right, how=A_PRIORI), ("fmlm+", "flm+")),
    "flow-map-tau": Sampler(partial(flow_map_sampler, tau=True), ("flm", "fmlm", "fmlm+")),
    "flow-map": Sampler(flow_map_sampler, ("flm", "fmlm", "fmlm+", "flm+")),
    "block": Sampler(blocks_of_one_pass, ("fmlm+",)),
    "confidence": Sampler(mdm_confidence, ("mdm",), chance=False),
    "confidence-sampled": Sampler(partial(mdm_confidence, draw="sample"), ("mdm",)),
    "confidence-left": Sampler(partial(left_to_right, how=MASKED), ("mdm",)),
    "confidence-gumbel": Sampler(mdm_gumbel, ("mdm",)),
    "ancestral": Sampler(mdm_ancestral, ("mdm",)),
}


# --------------------------------------------------------------------------------------------------
# 4. The command line
# --------------------------------------------------------------------------------------------------


@commands.command("sample.py")
def main(arguments: list[str] | None = None) -> int:
    options = terminal.parser(list(SAMPLERS)).parse_args(arguments)
    lines = terminal.lines_given(options)
    path = options.checkpoint or newest_checkpoint(*filter(None, [name_of(lines or [])]))
    model, info = load_checkpoint(path, options.device, options.compile)
    name, sampler = choose_sampler(info["objective"], options.sampler, options.threshold)
    task, solving = task_of(info), lines is not None
    if solving and not completes(info):
        raise ValueError(f"this {info['objective']} was trained without prompts and knows no "
                         "context, so it cannot solve puzzles: use fmlm+")
    given, errors = terminal.read_given(task, lines, options)
    for error in errors:
        commands.say(f"sample.py: {error}")
    given = torch.tensor(given, device=options.device)
    precise = speed.in_bf16(options.bf16, options.device)
    if options.bench:
        with precise:
            speed.sampling(sampler.run, model, given,
                           usual(info["objective"], len(task.coords), (1, 4, 16)))
        return 2 if errors else 0
    generator = Generator(options.device).manual_seed(options.seed)
    most = task.attempts if solving and sampler.chance else None
    tries = tries_of(info["objective"], task, options.attempts, options.check_rules,
                     options.believe, most)
    answer, start = None, time.perf_counter()
    with precise:
        nfe = options.nfe or usual(info["objective"], len(task.coords), [4])[0]
        if tries:
            answer = attempts(sampler, model, given, nfe, *tries, generator)
            tokens, passes = answer.tokens, int(answer.passes.max())
        else:
            tokens, _, used, trace = sampler.complete(model, given, nfe, generator)
            passes = int(used.max())
    seconds, right = time.perf_counter() - start, task.judge(tokens, given)
    if options.json:
        print(terminal.document(task, tokens, right, solving, passes, answer, options.check_rules))
    else:
        if options.trace:
            print(terminal.trace_of_attempts(task, given, answer) if answer
                  else terminal.trace(task, given, trace))
        print(terminal.verdicts(task, given, tokens, right, solving, answer, options.check_rules))
        print(f"{terminal.count(right, len(tokens), solving)}, {name}, {passes} network passes, "
              f"{seconds:.2f} s")
    return 2 if errors else 0


if __name__ == "__main__":
    commands.run(main)
