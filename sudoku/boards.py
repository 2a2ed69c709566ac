"""All about Sudoku boards: rules, generator, puzzles, symmetries, the train/test split, text.

A board is a row of tokens, int64 (B, L) with L = size², row-major; a token is the digit minus one,
0..size-1. A puzzle is the same with -1 for an empty cell. No function here knows of a model.
"""

import contextlib
import io
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import trange

from harness.commands import say
from harness.files import written

CACHE = Path(__file__).parent / ".cache"  # generated boards and puzzles; safe to delete at any time
VERSION = "1"  # change it when a generator or the split changes: older files are then ignored
HELD_OUT_ONE_IN = {6: 9, 9: 10}  # by size: one orbit hash in so many is held out, see held_out
ATTEMPTS = 50  # removal orders make_puzzles tries on one board
ORDERS, BACK = 20, 2  # of few_puzzle: removal orders, and the clues given back before each


# ---- shapes and rules

@dataclass(frozen=True)
class Shape:
    """A Sudoku whose boxes have box_rows x box_cols cells: as many digits, rows, columns and boxes
    each."""
    box_rows: int
    box_cols: int

    @property
    def size(self) -> int:
        return self.box_rows * self.box_cols  # the vocabulary, V

    @property
    def cells(self) -> int:
        return self.size ** 2  # the sequence length, L

    @property
    def name(self) -> str:
        return f"sudoku{self.size}"

    def coords(self) -> Tensor:
        """Row, column and box of each cell: (L, 3) int64, each 0..size-1."""
        cell = torch.arange(self.cells)
        row, col = cell // self.size, cell % self.size
        # box_rows boxes lie side by side in a band
        box = row // self.box_rows * self.box_rows + col // self.box_cols
        return torch.stack([row, col, box], dim=1)


SHAPES = {"sudoku4": Shape(2, 2), "sudoku6": Shape(2, 3), "sudoku9": Shape(3, 3)}

# How many solved boards there are. 9x9: Felgenhauer & Jarvis, "Enumerating possible Sudoku
# grids" (2005).
BOARD_COUNT = {"sudoku4": 288, "sudoku6": 28_200_960, "sudoku9": 6_670_903_752_021_072_936_960}


@lru_cache
def _units(shape: Shape) -> list[list[int]]:
    """The cells of every row, then of every column, then of every box: 3·size lists of size
    cells."""
    coords = shape.coords().tolist()
    return [[cell for cell, place in enumerate(coords) if place[kind] == k]
            for kind in range(3) for k in range(shape.size)]


@lru_cache
def _peers(shape: Shape) -> list[list[int]]:
    """For each cell, the other cells that may not hold its digit."""
    return [sorted({other for unit in _units(shape) if cell in unit for other in unit} - {cell})
            for cell in range(shape.cells)]


def _check_boards(shape: Shape, boards: Tensor) -> None:
    """Shape and dtype only: looking at the values would make a GPU wait."""
    if boards.dtype != torch.int64 or boards.ndim != 2 or boards.shape[1] != shape.cells:
        raise ValueError(f"boards of {shape.name} are an int64 tensor of shape (B, {shape.cells}), "
                         f"not {boards.dtype} of shape {tuple(boards.shape)}")


def valid(shape: Shape, boards: Tensor) -> Tensor:
    """Whether every row, column and box holds every digit once: (B, L) -> (B,) bool, on the boards'
    device.

    A value that is no digit (-1, say) makes its board invalid. ValueError for another shape or
    dtype.
    """
    _check_boards(shape, boards)
    units = boards[:, torch.tensor(_units(shape), device=boards.device)]  # (B, 3·size, size)
    digits = torch.arange(shape.size, device=boards.device)
    return (units.sort(dim=-1).values == digits).all(dim=-1).all(dim=-1)


# ---- search: one solver makes boards, counts solutions and digs puzzles

def _place(peers: list[list[int]], candidates: list[int], cell: int, digit: int) -> bool:
    """Put a digit (one bit) in a cell, in place, and follow every cell left with one candidate.
    False on a clash."""
    candidates[cell] = digit
    todo = [cell]
    while todo:
        cell = todo.pop()
        digit = candidates[cell]
        for peer in peers[cell]:
            before = candidates[peer]
            if before & digit:
                left = before ^ digit
                if not left:
                    return False
                candidates[peer] = left
                if not left & (left - 1):  # a single bit: this cell is decided now
                    todo.append(peer)
    return True


def _candidates(shape: Shape, puzzle: Sequence[int], forbid: int | None = None) -> list[int] | None:
    """The digits each cell may still hold, one bit a digit, when the clues are in; None if they
    clash.

    `forbid` names an empty cell and a digit, cell·size + digit, that must not go together.
    """
    peers, candidates = _peers(shape), [(1 << shape.size) - 1] * shape.cells
    if forbid is not None:
        candidates[forbid // shape.size] ^= 1 << forbid % shape.size
    for cell, digit in enumerate(puzzle):
        if digit >= 0 and not (candidates[cell] >> digit & 1
                               and _place(peers, candidates, cell, 1 << digit)):
            return None
    return candidates


def _search(shape: Shape, candidates: list[int] | None, limit: int,
            rng: random.Random | None = None, tries: float = math.inf) -> list[list[int]]:
    """Up to `limit` solutions, depth first, the cell with fewest candidates first; its digits in
    random order if rng. TimeoutError after so many tries."""
    if candidates is None:
        return []
    peers, found = _peers(shape), []
    stack = [(candidates, -1, 0)]  # a state, and the digit to try in it (none in the first)
    while stack and len(found) < limit:
        candidates, cell, digit = stack.pop()
        tries -= 1
        if tries < 0:
            raise TimeoutError("this puzzle takes longer to search than it was given")
        if digit:
            candidates = candidates.copy()
            if not _place(peers, candidates, cell, digit):
                continue
        undecided = [(c.bit_count(), i) for i, c in enumerate(candidates) if c & (c - 1)]
        if not undecided:
            found.append([c.bit_length() - 1 for c in candidates])
            continue
        cell = min(undecided)[1]
        digits = [1 << d for d in range(shape.size) if candidates[cell] >> d & 1]
        if rng is not None:
            rng.shuffle(digits)
        stack += [(candidates, cell, digit) for digit in digits]
    return found


def _check_puzzle(shape: Shape, puzzle: Sequence[int]) -> list[int]:
    puzzle = [int(value) for value in puzzle]
    if len(puzzle) != shape.cells or not all(-1 <= value < shape.size for value in puzzle):
        raise ValueError(f"a {shape.name} puzzle is {shape.cells} integers from -1 (empty) to "
                         f"{shape.size - 1}")
    return puzzle


def count_solutions(shape: Shape, puzzle: Sequence[int], limit: int = 2,
                    tries: float = math.inf) -> int:
    """min(number of solutions, limit); 0 if the clues clash. ValueError if it is not L integers, -1
    for empty. TimeoutError where so many tries do not tell: a few puzzles would take minutes."""
    candidates = _candidates(shape, _check_puzzle(shape, puzzle))
    return len(_search(shape, candidates, limit, tries=tries))


def solve(shape: Shape, puzzle: Sequence[int]) -> tuple[int, ...] | None:
    """A solution, None if there is none (whether it is the only one, count_solutions knows).
    ValueError likewise."""
    found = _search(shape, _candidates(shape, _check_puzzle(shape, puzzle)), limit=1)
    return tuple(found[0]) if found else None


# ---- boards

def random_boards(shape: Shape, n: int, seed: int) -> Tensor:
    """n solved boards, (n, L), the same for the same seed: randomized backtracking from the empty
    grid, then `augment`.

    The law: boards are independent, every board can come out, and the copies of a board under
    `augment` are equally likely. It is not exactly uniform: some orbits come out more often than
    their share of all boards.
    """
    if n < 0:
        raise ValueError(f"the number of boards must be 0 or more, not {n}")
    rng, empty = random.Random(seed), _candidates(shape, [-1] * shape.cells)
    progress = trange(n, desc=f"{shape.name} boards", disable=n < 5000, leave=False)
    boards = torch.tensor([_search(shape, empty, 1, rng)[0] for _ in progress], dtype=torch.int64)
    boards = boards.reshape(n, shape.cells)
    return augment(shape, boards, torch.Generator().manual_seed(seed))


def all_boards(shape: Shape) -> Tensor:
    """Every solved 4x4 board, (288, 16), in lexicographic order. ValueError for larger shapes."""
    if shape.size > 4:
        raise ValueError(f"{shape.name} has too many boards to list; draw some with random_boards")
    empty = _candidates(shape, [-1] * shape.cells)
    return torch.tensor(sorted(_search(shape, empty, limit=10 ** 6)))


# ---- puzzles

def _dig(shape: Shape, board: Sequence[int], clues: int, rng: random.Random,
         symmetric: bool = False) -> list[int]:
    """Empty cells in random order while the solution stays unique, down to `clues` clues or one
    pass over all cells; `symmetric`: a cell goes with the one opposite, or not at all.

    A cell may go if no solution has another digit there: that search mostly ends within a few
    steps. One that may not go now may not go later either, with fewer clues left, so one pass is
    enough. An empty cell of `board` stays empty.
    """
    puzzle = list(board)
    left = shape.cells - puzzle.count(-1)
    for cell in rng.sample(range(shape.cells), shape.cells):
        if left <= clues:
            break
        cells = {cell, shape.cells - 1 - cell} if symmetric else {cell}
        digits = {cell: puzzle[cell] for cell in cells if puzzle[cell] >= 0}
        for cell in digits:
            puzzle[cell] = -1
        if any(_search(shape, _candidates(shape, puzzle, forbid=cell * shape.size + digit), limit=1)
               for cell, digit in digits.items()):
            for cell, digit in digits.items():
                puzzle[cell] = digit
        else:
            left -= len(digits)
    return puzzle


def _check_solved(shape: Shape, board: Sequence[int]) -> list[int]:
    board = _check_puzzle(shape, board)
    if not valid(shape, torch.tensor([board])):
        raise ValueError("a puzzle is made from a solved board, and this one breaks a rule")
    return board


def make_puzzle(shape: Shape, board: Sequence[int], clues: int,
                rng: random.Random) -> list[int] | None:
    """A puzzle with exactly `clues` clues whose only solution is the board; None if this removal
    order ends above that.

    ValueError if the board is not solved or `clues` is not from 1 to L.
    """
    if not 1 <= clues <= shape.cells:
        raise ValueError(f"a {shape.name} puzzle has 1 to {shape.cells} clues, not {clues}")
    puzzle = _dig(shape, _check_solved(shape, board), clues, rng)
    return puzzle if shape.cells - puzzle.count(-1) == clues else None


def minimal_puzzle(shape: Shape, board: Sequence[int], rng: random.Random) -> list[int]:
    """A puzzle for the board from which no clue can be removed. ValueError if the board is not
    solved."""
    return _dig(shape, _check_solved(shape, board), 0, rng)


def symmetric_puzzle(shape: Shape, board: Sequence[int], rng: random.Random) -> list[int]:
    """A puzzle as newspapers print it: turned by 180 degrees its clues are in the same places, and
    no two opposite ones can be removed. ValueError if the board is not solved."""
    return _dig(shape, _check_solved(shape, board), 0, rng, symmetric=True)


def few_puzzle(shape: Shape, board: Sequence[int], rng: random.Random) -> list[int]:
    """A minimal puzzle of few clues (9x9: about 21 for 24): of ORDERS removal orders, each with
    BACK random clues given back to the best puzzle so far. ValueError if the board is not solved.
    """
    board = _check_solved(shape, board)
    best = _dig(shape, board, 0, rng)
    for _ in range(ORDERS):
        puzzle = list(best)
        for cell in rng.sample([cell for cell, digit in enumerate(best) if digit < 0], BACK):
            puzzle[cell] = board[cell]
        puzzle = _dig(shape, puzzle, 0, rng)
        if puzzle.count(-1) >= best.count(-1):
            best = puzzle
    return best


KINDS = {"minimal": minimal_puzzle, "symmetric": symmetric_puzzle, "few": few_puzzle}


def guesses(shape: Shape, puzzle: Sequence[int]) -> int:
    """How hard a puzzle is: how many digits a solver must guess, all of them right, who fills in
    what singles decide (a cell with one candidate; a digit with one place in a row, column or box)
    and guesses in the first cell of fewest candidates. 0: singles alone solve it. ValueError if it
    has no solution."""
    solution = solve(shape, puzzle)
    if solution is None:
        raise ValueError("this puzzle has no solution, so no number of guesses solves it")
    peers, candidates, made = _peers(shape), _candidates(shape, puzzle), 0
    while True:
        places = [[cell for cell in unit if candidates[cell] >> digit & 1]
                  for unit in _units(shape) for digit in range(shape.size)]
        undecided = [(c.bit_count(), cell) for cell, c in enumerate(candidates) if c & (c - 1)]
        if not undecided:
            return made
        single = [cells[0] for cells in places if len(cells) == 1
                  and candidates[cells[0]].bit_count() > 1]
        cell = single[0] if single else min(undecided)[1]
        made += not single
        _place(peers, candidates, cell, 1 << solution[cell])


def make_puzzles(shape: Shape, boards: Tensor, clues: int | str, seed: int) -> Tensor:
    """One puzzle a board: (n, L) -> (n, L) with -1 for empty. `clues`: so many, or one of KINDS.

    ValueError if 50 removal orders of one board all end above `clues`, and for another word.
    """
    if isinstance(clues, str) and clues not in KINDS:
        raise ValueError("clues is a number or " + " or ".join(f'"{kind}"' for kind in KINDS)
                         + f", not {clues!r}")
    _check_boards(shape, boards)
    rng, rows = random.Random(seed), boards.tolist()
    puzzles = []
    for i in trange(len(rows), desc=f"{shape.name} puzzles", disable=len(rows) < 1000, leave=False):
        if clues in KINDS:
            puzzle = KINDS[clues](shape, rows[i], rng)
        else:
            orders = (make_puzzle(shape, rows[i], clues, rng) for _ in range(ATTEMPTS))
            puzzle = next((p for p in orders if p is not None), None)
        if puzzle is None:
            raise ValueError(f"no {shape.name} puzzle with {clues} clues found in {ATTEMPTS} tries "
                             "for a board; "
                             "ask for more clues")
        puzzles.append(puzzle)
    return torch.tensor(puzzles, dtype=torch.int64).reshape(len(rows), shape.cells)


# ---- symmetry and the split

def symmetries(shape: Shape, n: int, generator: torch.Generator | None = None,
               device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """n random symmetries of boards: the cell that each cell is taken from, (n, L), and the new
    name of each digit, (n, size). Rows are shuffled within bands and bands as wholes, columns
    within stacks and stacks, and half of the boards transposed where boxes are square."""
    size = shape.size

    def shuffles(*counts: int) -> Tensor:  # uniform permutations: argsort of uniforms
        return torch.rand(n, *counts, generator=generator, device=device).argsort(dim=-1)

    def lines(group: int) -> Tensor:  # an order of the rows that keeps bands of `group` together
        order = shuffles(size // group).unsqueeze(-1) * group + shuffles(size // group, group)
        return order.reshape(n, size)

    digits = shuffles(size)
    cells = lines(shape.box_rows).unsqueeze(2) * size + lines(shape.box_cols).unsqueeze(1)
    if shape.box_rows == shape.box_cols:
        flip = torch.rand(n, 1, 1, generator=generator, device=device) < 0.5
        cells = torch.where(flip, cells.transpose(1, 2), cells)
    return cells.reshape(n, shape.cells), digits


def augment(shape: Shape, boards: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A random symmetric copy of each board, (B, L) -> (B, L), by `symmetries`.

    Each board gets its own symmetry. A cell marked by adding `size` to its digit is marked in the
    copy. No loop over the batch and no wait for the GPU, so the values are not looked at: solved
    boards only, no -1. ValueError for another shape or dtype.
    """
    _check_boards(shape, boards)
    cells, digits = symmetries(shape, len(boards), generator, boards.device)
    plain = boards % shape.size
    return (digits.gather(1, plain) + boards - plain).gather(1, cells)


def _mix(values: Tensor) -> Tensor:
    """A hash along the last axis: (..., n) int64 -> (...) int64. Wrapping arithmetic only: the same
    on every machine."""
    total = torch.zeros_like(values[..., 0])
    for value in values.unbind(-1):
        total = (total + value) * 0x5851F42D4C957F2D + 0x14057B7EF767814F
        total = total ^ (total >> 29)
    return total


def _mix_set(values: Tensor) -> Tensor:
    """The same, blind to the order along the last axis."""
    return _mix(values.sort(dim=-1).values)


def _line_invariant(grid: Tensor, group: int) -> Tensor:
    """(B, size, size) -> (B,): a hash that no shuffle of columns, rows within bands of `group`,
    bands or digits changes.

    Row a read against row b maps digits to digits. Shuffling columns leaves this permutation as it
    is, renaming digits conjugates it, and b against a is its inverse: none of these changes the
    lengths of its cycles.
    """
    size = grid.shape[1]
    where = grid.argsort(dim=-1)  # (B, row, digit) -> column
    every = (len(grid), size, size, size)
    # (B, a, b, digit) -> digit
    step = grid.unsqueeze(1).expand(every).gather(3, where.unsqueeze(2).expand(every))
    power, lengths = step, torch.zeros_like(step[..., 0])
    # Fixed points of the powers up to size // 2 count the cycles up to that length; one longer at
    # most has room.
    for k in range(size // 2):
        power = step.gather(3, power) if k else step
        fixed = (power == torch.arange(size, device=grid.device)).sum(dim=-1)
        lengths = lengths * (size + 1) + fixed  # (B, a, b): the cycle type of the pair, a number
    # Pairs of rows -> pairs of bands -> bands -> the board. The pair of a band with itself stands
    # out: it holds identities.
    pairs = rearrange(lengths, "n (p a) (q b) -> n p q (a b)", a=group, b=group)
    return _mix_set(_mix_set(_mix_set(pairs)))


def orbit(shape: Shape, boards: Tensor) -> Tensor:
    """A hash of what no symmetry in `augment` can change: (B, L) -> (B,) int64, 0 or more, the same
    on every machine.

    Symmetric copies of a board have equal hashes, so different hashes prove different orbits (equal
    ones prove nothing). Solved boards only. ValueError for another shape or dtype.
    """
    _check_boards(shape, boards)
    hashes = [torch.zeros(0, dtype=torch.int64, device=boards.device)]
    for part in boards.split(2048):  # 2048 boards of 9x9 need some 50 MB
        grid = part.reshape(-1, shape.size, shape.size)
        sides = torch.stack([_line_invariant(grid, shape.box_rows),
                             _line_invariant(grid.transpose(1, 2), shape.box_cols)], dim=1)
        # A transposition swaps the two sides.
        mixed = _mix_set(sides) if shape.box_rows == shape.box_cols else _mix(sides)
        hashes.append(mixed & (2 ** 63 - 1))
    return torch.cat(hashes)


def held_out(shape: Shape, boards: Tensor) -> Tensor:
    """Which boards belong to the test set: (B, L) -> (B,) bool.

    The split is by orbit, not by board: whatever augmentation does to a training board, it cannot
    make a test board of it. 9x9: one orbit hash in ten, 10% of the boards. 6x6 has 49 orbits, of
    very different sizes and with 40 hashes: one in ten would be 23% of the random boards, one in
    nine is 5 hashes and 9%. 4x4: nothing is held out, for there are two orbits, and the task is to
    learn the law of all 288 boards.
    """
    if shape.size == 4:
        _check_boards(shape, boards)
        return torch.zeros(len(boards), dtype=torch.bool, device=boards.device)
    return orbit(shape, boards) % HELD_OUT_ONE_IN[shape.size] == 0


# ---- data sets, cached on disk

def _digest(*words: object) -> int:
    """A number from words, 0..2^63-1, the same in every process (Python's own hash of a string is
    not)."""
    return int.from_bytes(blake2b(repr(words).encode(), digest_size=8).digest(), "big") >> 1


def _cached(name: str, make: Callable[[], Tensor], good: Callable[[Tensor], bool]) -> Tensor:
    """make(), or what an earlier call has left in CACHE, if its checksum holds and it is `good`.
    Where no file can be written: make()."""
    path = CACHE / f"{name}-{_digest(VERSION) % 16 ** 8:08x}.boards"  # a checksum, then a .npy file
    try:
        stored = path.read_bytes()
        if stored[:32] != blake2b(stored[32:], digest_size=32).digest():
            raise ValueError("the checksum does not hold")
        array = np.load(io.BytesIO(stored[32:]), allow_pickle=False)
        if good(tokens := torch.from_numpy(array.astype(np.int64)) - 1):
            return tokens
        raise ValueError("these are not the boards of that name")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception:  # a file can be damaged in many ways
        say(f"{path} is damaged, so what it held is made again")
    tokens, file = make(), io.BytesIO()
    np.save(file, (tokens + 1).to(torch.uint8).numpy(), allow_pickle=False)  # + 1: empty, -1, is 0
    with contextlib.suppress(OSError):
        CACHE.mkdir(parents=True, exist_ok=True)
        data = file.getvalue()
        with written(path, blake2b(data, digest_size=32).digest() + data) as part:
            os.replace(part, path)  # at once, so that no other process sees half a file
    return tokens


def _of_split(shape: Shape, split: str, n: int, boards: Tensor) -> bool:
    """Are these n solved boards of the split? A damaged file must not pass for data, still less mix
    the splits."""
    return (boards.shape == (n, shape.cells) and bool(valid(shape, boards).all())
            and (shape.size == 4 or bool((held_out(shape, boards) == (split == "test")).all())))


def load_boards(shape: Shape, split: str, n: int, seed: int = 0, cache: bool = True) -> Tensor:
    """n boards of the split "train" or "test", (n, L), generated on the first call and then read
    from the cache.

    4x4: both splits are the 288 boards in an order drawn from split and seed, repeated until there
    are n (so a multiple of 288 has every board equally often). 6x6 and 9x9: random boards on their
    side of `held_out`; one may occur twice. ValueError for another split or a negative n.
    """
    if split not in ("train", "test"):
        raise ValueError(f'the split is "train" or "test", not {split!r}')
    if n < 0:
        raise ValueError(f"the number of boards must be 0 or more, not {n}")

    def make() -> Tensor:
        if shape.size == 4:
            generator = torch.Generator().manual_seed(_digest(split, seed))
            order = torch.randperm(288, generator=generator)
            return all_boards(shape)[order[torch.arange(n) % 288]]
        held = 1 / HELD_OUT_ONE_IN[shape.size]
        share = held if split == "test" else 1 - held
        boards, part = torch.empty(0, shape.cells, dtype=torch.int64), 0
        while len(boards) < n:  # a little more than the share suggests; what is missing comes next
            count = int((n - len(boards)) / share * 1.1) + 10
            drawn = random_boards(shape, count, _digest(shape.name, split, seed, part))
            mine = held_out(shape, drawn) == (split == "test")
            boards, part = torch.cat([boards, drawn[mine]]), part + 1
        return boards[:n]

    good = lambda boards: _of_split(shape, split, n, boards)
    return _cached(f"{shape.name}-{split}-{n}-seed{seed}", make, good) if cache else make()


def load_puzzles(shape: Shape, clues: int | str, n: int, seed: int = 0,
                 split: str = "test") -> tuple[Tensor, Tensor]:
    """n boards of a split as puzzles with one solution each: puzzles (n, L) with -1 for empty,
    solutions (n, L). Cached.

    `clues` is a number or one of KINDS. ValueError where make_puzzles or load_boards raises it.
    """
    def make() -> Tensor:
        boards = load_boards(shape, split, n, seed)
        puzzles = make_puzzles(shape, boards, clues, _digest("puzzles", clues, seed))
        return torch.stack([puzzles, boards])

    def good(pair: Tensor) -> bool:
        shown = pair[0] >= 0
        return (pair.shape == (2, n, shape.cells) and _of_split(shape, split, n, pair[1])
                and bool(((pair[0] == pair[1]) | ~shown).all())
                and (clues in KINDS or bool((shown.sum(1) == clues).all())))

    puzzles, solutions = _cached(f"{shape.name}-{split}-puzzles-{clues}-{n}-seed{seed}", make, good)
    return puzzles, solutions


# ---- text

def _symbols(text: str) -> list[str]:
    """The cells of a puzzle string, without the spaces, line ends and separators that people
    print."""
    return [c for c in text if not c.isspace() and c not in "|+-"]


def shape_of(texts: Sequence[str]) -> Shape | None:
    """The shape whose number of cells one of these puzzle strings has, or comes closest to; None if
    all are empty."""
    cells = [count for text in texts if (count := len(_symbols(text)))]
    apart = lambda shape: min(abs(count - shape.cells) for count in cells)
    return min(SHAPES.values(), key=apart) if cells else None


def parse(shape: Shape, text: str) -> list[int]:
    """A row-major puzzle string, '.' or '0' for empty, as L integers with -1 for empty. Spaces and
    | + - are skipped.

    ValueError for a wrong number of cells, a character that is no digit, or clashing clues; places
    are counted from 1.
    """
    symbols, digits = _symbols(text), "123456789"[:shape.size]
    if len(symbols) != shape.cells:
        raise ValueError(f"the puzzle has {len(symbols)} cells and {shape.name} needs "
                         f"{shape.cells}; write '.' or '0' for an empty cell")
    for cell, symbol in enumerate(symbols):
        if symbol not in digits + ".0":
            raise ValueError(f"{symbol!r} at row {cell // shape.size + 1}, column "
                             f"{cell % shape.size + 1} is no digit from 1 to {shape.size}; write "
                             "'.' or '0' for an empty cell")
    puzzle = [digits.find(symbol) for symbol in symbols]  # find gives -1 for '.' and '0'
    for k, unit in enumerate(_units(shape)):
        clues = [puzzle[cell] for cell in unit if puzzle[cell] >= 0]
        for digit in clues:
            if clues.count(digit) > 1:
                kind = ("row", "column", "box")[k // shape.size]
                raise ValueError(f"the digit {digit + 1} appears twice in {kind} "
                                 f"{k % shape.size + 1}; correct one of the clues")
    return puzzle


def to_string(shape: Shape, board: Sequence[int]) -> str:
    """A board or puzzle, L integers, on one line, '.' for empty: what `parse` reads. ValueError if
    it is no puzzle."""
    return "".join("." if value < 0 else str(value + 1) for value in _check_puzzle(shape, board))


def pretty(shape: Shape, board: Sequence[int]) -> str:
    """A board or puzzle as a grid with the boxes set apart, which `parse` reads too. ValueError if
    it is no puzzle."""
    text = to_string(shape, board)
    parts = [" ".join(text[i:i + shape.box_cols]) for i in range(0, shape.cells, shape.box_cols)]
    rows = [" | ".join(parts[i:i + shape.box_rows]) for i in range(0, len(parts), shape.box_rows)]
    rule = "".join("+" if c == "|" else "-" for c in rows[0])
    bands = ["\n".join(rows[i:i + shape.box_rows]) for i in range(0, shape.size, shape.box_rows)]
    return f"\n{rule}\n".join(bands)


def pretty_draft(shape: Shape, draft: Tensor, confidence: Tensor, committed: Tensor, known: Tensor,
                 color: bool) -> str:
    """A draft of a board while it is refined, (L,) each: a known cell as 5, one committed now as
    [5], one sent back to noise as 5 with a mark for its confidence: ' from 0.9, ~ from 0.5, ?
    below. In color: bold, green, yellow to red."""
    def cell(i: int) -> str:
        digit, p = int(draft[i]) + 1, float(confidence[i])
        mark, shade = ("'", 33) if p >= 0.9 else ("~", 35) if p >= 0.5 else ("?", 31)
        text, code = (f" {digit} ", 1) if known[i] else (f"[{digit}]", 32) if committed[i] else (
            f" {digit}{mark}", shade)
        return f"\033[{code}m{text}\033[0m" if color else text

    rows = ["|".join("".join(map(cell, range(start, start + shape.box_cols)))
                     for start in range(row, row + shape.size, shape.box_cols))
            for row in range(0, shape.cells, shape.size)]
    rule = "+".join(["-" * 3 * shape.box_cols] * shape.box_rows)
    bands = ["\n".join(rows[i:i + shape.box_rows]) for i in range(0, shape.size, shape.box_rows)]
    return f"\n{rule}\n".join(bands)
