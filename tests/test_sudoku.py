"""Boards, puzzles, symmetries and the split. Expected values: published counts and puzzles, and
arithmetic by hand."""

import itertools
import random

import pytest
import torch

from harness.tasks import load_task
from sudoku import boards as module
from sudoku.boards import (BOARD_COUNT, SHAPES, all_boards, augment, count_solutions, held_out,
                           load_boards, load_puzzles, make_puzzle, make_puzzles, minimal_puzzle,
                           orbit, parse, pretty, random_boards, shape_of, solve, to_string, valid)

pytestmark = pytest.mark.usefixtures("cache")

FOUR, SIX, NINE = SHAPES["sudoku4"], SHAPES["sudoku6"], SHAPES["sudoku9"]
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
larger_shape = pytest.mark.parametrize("shape", [SIX, NINE], ids=["sudoku6", "sudoku9"])

# The puzzle of Wikipedia's article "Sudoku", and its solution.
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
SMALL = "1234341221434321"  # a 4x4 board


def rows(boards):
    return set(map(tuple, boards.tolist()))


# ---- rules

def test_the_shapes_have_their_sizes_and_names():
    assert {name: (shape.name, shape.size, shape.cells) for name, shape in SHAPES.items()} == {
        "sudoku4": ("sudoku4", 4, 16), "sudoku6": ("sudoku6", 6, 36), "sudoku9": ("sudoku9", 9, 81)}


def test_6x6_boxes_are_two_rows_by_three_columns():
    boxes = SIX.coords()[:, 2].reshape(6, 6).tolist()
    assert boxes == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2 + [[4, 4, 4, 5, 5, 5]] * 2


@every_shape
def test_coords_count_each_row_column_and_box_size_times(shape):
    coords = shape.coords()
    assert coords.shape == (shape.cells, 3) and coords.dtype == torch.int64
    assert all((column.bincount() == shape.size).all() for column in coords.T)
    assert coords[:, :2].tolist() == [[r, c] for r in range(shape.size) for c in range(shape.size)]


def test_exactly_288_of_all_grids_with_correct_rows_are_4x4_boards():
    rows_of_grids = itertools.product(itertools.permutations(range(4)), repeat=4)
    grids = torch.tensor([sum(four, ()) for four in rows_of_grids])
    assert len(grids) == 24 ** 4
    assert rows(grids[valid(FOUR, grids)]) == rows(all_boards(FOUR))
    assert len(all_boards(FOUR)) == BOARD_COUNT["sudoku4"] == 288


def test_a_published_solution_is_valid_and_with_two_cells_swapped_it_is_not():
    board = torch.tensor([parse(NINE, SOLUTION)])
    swapped = board.clone()
    swapped[0, [0, 1]] = board[0, [1, 0]]  # row and box stay right, two columns break
    assert valid(NINE, torch.cat([board, swapped])).tolist() == [True, False]


def test_rows_and_columns_alone_do_not_make_a_board():
    latin = torch.tensor([[0, 1, 2, 3, 1, 2, 3, 0, 2, 3, 0, 1, 3, 0, 1, 2]])
    assert not valid(FOUR, latin)


@pytest.mark.parametrize("value", [-1, 9, 10 ** 12, -(10 ** 12)])
def test_a_value_that_is_no_digit_makes_a_board_invalid(value):
    board = torch.tensor([parse(NINE, SOLUTION)])
    board[0, 40] = value
    assert not valid(NINE, board)


@pytest.mark.parametrize("call", [valid, augment, orbit, held_out,
                                  lambda shape, boards: make_puzzles(shape, boards, 30, 0)])
@pytest.mark.parametrize("boards", [torch.zeros(2, 80, dtype=torch.int64),
                                    torch.zeros(81, dtype=torch.int64), torch.zeros(2, 81)])
def test_another_shape_or_dtype_is_refused(call, boards):
    with pytest.raises(ValueError, match=r"int64 tensor of shape \(B, 81\)"):
        call(NINE, boards)


@every_shape
def test_no_boards_are_no_error(shape):
    none = random_boards(shape, 0, seed=0)
    assert (none.shape == augment(shape, none).shape
            == make_puzzles(shape, none, "minimal", 0).shape == (0, shape.cells))
    assert all(law(shape, none).shape == (0,) for law in (valid, orbit, held_out))


# ---- generator

@every_shape
def test_random_boards_are_valid_and_repeat_with_their_seed(shape):
    boards = random_boards(shape, 50, seed=1)
    assert boards.shape == (50, shape.cells) and boards.dtype == torch.int64
    assert valid(shape, boards).all()
    assert boards.equal(random_boards(shape, 50, seed=1))
    assert not boards.equal(random_boards(shape, 50, seed=2))


def test_every_4x4_board_can_come_out():
    assert rows(random_boards(FOUR, 5000, seed=0)) == rows(all_boards(FOUR))


def test_9x9_boards_do_not_repeat():
    assert len(rows(random_boards(NINE, 300, seed=0))) == 300


@larger_shape
def test_larger_shapes_are_not_listed(shape):
    with pytest.raises(ValueError, match="too many boards to list"):
        all_boards(shape)


def test_a_negative_number_of_boards_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        random_boards(FOUR, -1, seed=0)
    with pytest.raises(ValueError, match="0 or more"):
        load_boards(FOUR, "train", -1)


# ---- solver

def test_a_published_puzzle_has_its_published_solution_and_no_other():
    puzzle = parse(NINE, PUZZLE)
    assert count_solutions(NINE, puzzle) == 1
    assert to_string(NINE, solve(NINE, puzzle)) == SOLUTION


def test_a_board_is_its_own_solution():
    assert solve(NINE, parse(NINE, SOLUTION)) == tuple(parse(NINE, SOLUTION))


def test_four_cells_that_hold_two_digits_crosswise_have_two_solutions():
    puzzle = parse(FOUR, "..34" "3412" "..43" "4321")  # 12 over 21, or 21 over 12
    assert count_solutions(FOUR, puzzle, limit=10) == 2
    assert count_solutions(FOUR, puzzle) == 2
    assert count_solutions(FOUR, puzzle, limit=1) == 1


def test_the_empty_4x4_puzzle_has_288_solutions():
    assert count_solutions(FOUR, [-1] * 16, limit=1000) == 288


@pytest.mark.parametrize("text", [
    # a digit twice in a row, a column, a box
    "11.. .... .... ....", "1... 1... .... ....", "1... .1.. .... ....",
    "123. ...4 .... ....",  # no clash, but no digit is left for the last cell of row 1
])
def test_clues_that_cannot_be_have_no_solution(text):
    puzzle = [-1 if c == "." else int(c) - 1 for c in text.replace(" ", "")]
    assert count_solutions(FOUR, puzzle) == 0
    assert solve(FOUR, puzzle) is None


@pytest.mark.parametrize("puzzle", [[-1] * 80, [-2] + [-1] * 80, [9] + [-1] * 80])
def test_what_is_no_puzzle_is_refused_by_the_solver(puzzle):
    with pytest.raises(ValueError, match="81 integers"):
        count_solutions(NINE, puzzle)
    with pytest.raises(ValueError, match="81 integers"):
        solve(NINE, puzzle)


# ---- puzzles

@pytest.mark.parametrize("shape, clues", [(FOUR, 6), (SIX, 14), (NINE, 40), (NINE, 30), (NINE, 81)])
def test_puzzles_have_the_clues_asked_for_and_their_board_as_only_solution(shape, clues):
    boards = random_boards(shape, 10, seed=3)
    puzzles = make_puzzles(shape, boards, clues, seed=0)
    assert ((puzzles >= 0).sum(dim=1) == clues).all()
    for puzzle, board in zip(puzzles.tolist(), boards.tolist()):
        assert count_solutions(shape, puzzle) == 1
        assert solve(shape, puzzle) == tuple(board)
    assert puzzles.equal(make_puzzles(shape, boards, clues, seed=0))


@every_shape
def test_a_minimal_puzzle_without_any_one_of_its_clues_has_two_solutions(shape):
    boards = random_boards(shape, 3, seed=4)
    puzzles = make_puzzles(shape, boards, "minimal", seed=0).tolist()
    puzzles.append(minimal_puzzle(shape, boards[0].tolist(), random.Random(5)))
    for puzzle in puzzles:
        assert count_solutions(shape, puzzle) == 1
        for cell in range(shape.cells):
            if puzzle[cell] >= 0:
                assert count_solutions(shape, puzzle[:cell] + [-1] + puzzle[cell + 1:]) == 2


def test_with_fewer_clues_than_FEWEST_no_4x4_puzzle_has_one_solution_and_with_as_many_some_have():
    """How many boards have these clues of a board, for all its sets of 3, and of 4. Of 6x6 and 9x9
    the numbers are published (17: arXiv 1201.0749)."""
    boards = all_boards(FOUR)
    three, four = (torch.tensor(list(itertools.combinations(range(16), k))) for k in (3, 4))
    fewest = []
    for board in boards:
        same = boards == board  # (288, 16)
        assert same[:, three].all(2).sum(0).min() > 1
        fewest.append(int(same[:, four].all(2).sum(0).min()))
    assert min(fewest) == 1
    given = torch.full((2, 16), -1)
    given[0, :3], given[1, :4] = 0, 0
    assert load_task("sudoku4").unique(given).tolist() == [False, True]
    given = torch.where(torch.arange(81) < torch.tensor([[17], [16]]), 1, -1)
    assert load_task("sudoku9").unique(given).tolist() == [True, False]


def test_a_removal_order_that_gets_stuck_gives_none_and_fifty_of_them_an_error():
    # No 4x4 puzzle with one solution has fewer than 4 clues, no 9x9 puzzle fewer than 17
    # (McGuire et al. 2012).
    board = parse(FOUR, SMALL)
    assert make_puzzle(FOUR, board, 3, random.Random(0)) is None
    with pytest.raises(ValueError, match="no sudoku4 puzzle with 3 clues"):
        make_puzzles(FOUR, torch.tensor([board]), 3, seed=0)
    assert make_puzzle(NINE, parse(NINE, SOLUTION), 16, random.Random(0)) is None


@pytest.mark.parametrize("clues", [0, -1, 17])
def test_a_number_of_clues_that_cannot_be_is_refused(clues):
    with pytest.raises(ValueError, match="1 to 16 clues"):
        make_puzzle(FOUR, parse(FOUR, SMALL), clues, random.Random(0))


def test_no_puzzle_is_made_from_a_board_that_breaks_a_rule():
    with pytest.raises(ValueError, match="breaks a rule"):
        make_puzzle(FOUR, [0] * 16, 8, random.Random(0))


@every_shape
def test_a_symmetric_puzzle_looks_the_same_upside_down_and_loses_no_opposite_pair(shape):
    board = random_boards(shape, 1, seed=3)[0].tolist()
    puzzle = module.symmetric_puzzle(shape, board, random.Random(1))
    shown = [digit >= 0 for digit in puzzle]
    assert shown == shown[::-1] and solve(shape, puzzle) == tuple(board)
    assert count_solutions(shape, puzzle) == 1
    for cell in (cell for cell in range(shape.cells // 2 + 1) if shown[cell]):
        without = list(puzzle)
        without[cell] = without[shape.cells - 1 - cell] = -1
        assert count_solutions(shape, without) == 2


def test_a_puzzle_of_few_clues_is_minimal_and_has_fewer_than_one_removal_order_leaves():
    board = parse(NINE, SOLUTION)
    few = module.few_puzzle(NINE, board, random.Random(2))
    one = minimal_puzzle(NINE, board, random.Random(2))  # where the search begins
    assert count_solutions(NINE, few) == 1 and few.count(-1) > one.count(-1)
    for cell in (cell for cell, digit in enumerate(few) if digit >= 0):
        assert count_solutions(NINE, few[:cell] + [-1] + few[cell + 1:]) == 2


def test_guesses_are_0_for_singles_1_for_two_solutions_in_four_cells_and_more_for_a_hard_puzzle():
    """Of 1 2 / 3 4 over 2 1 / 4 3, without the 1s and 2s of a rectangle, either order fits: one
    guess, and the other three are singles. The last one is Inkala's of 2012."""
    board = [int(digit) - 1 for digit in "1234341221434321"]
    assert module.guesses(FOUR, board) == module.guesses(NINE, parse(NINE, PUZZLE)) == 0
    rectangle = [-1 if cell in (0, 1, 8, 9) else digit for cell, digit in enumerate(board)]
    assert count_solutions(FOUR, rectangle) == 2 and module.guesses(FOUR, rectangle) == 1
    hard = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
    assert module.guesses(NINE, parse(NINE, hard)) > 1
    with pytest.raises(ValueError, match="no solution"):
        module.guesses(FOUR, [0, 1, 2, -1, -1, -1, -1, 3] + [-1] * 8)


# ---- symmetry and the split

@every_shape
def test_augmented_boards_are_valid_differ_and_repeat_with_their_generator(shape):
    boards = random_boards(shape, 200, seed=5)
    before = boards.clone()
    copies = augment(shape, boards, torch.Generator().manual_seed(0))
    assert valid(shape, copies).all() and boards.equal(before)
    assert copies.equal(augment(shape, boards, torch.Generator().manual_seed(0)))
    assert (copies != boards).any(dim=1).float().mean() > 0.9


@every_shape
def test_a_mark_moves_with_its_cell_and_changes_nothing_else(shape):
    boards, size = random_boards(shape, 200, seed=5), shape.size
    plain = augment(shape, boards, torch.Generator().manual_seed(0))
    by_digit = augment(shape, boards + size * (boards == 2), torch.Generator().manual_seed(0))
    by_row = augment(shape, boards + size * (torch.arange(shape.cells) < size),
                     torch.Generator().manual_seed(0))
    assert (by_digit % size).equal(plain) and (by_row % size).equal(plain)
    for copy, marked in zip(plain, by_digit >= size):  # a digit's cells are those of its new name
        assert marked.equal(copy == copy[marked][0])
    # A row becomes a row, or a column of a transposed board.
    grid = (by_row >= size).reshape(-1, size, size)
    rows, columns = (grid.all(axis).sum(1) == 1 for axis in (2, 1))
    assert (grid.sum((1, 2)) == size).all() and (rows ^ columns).all()
    assert rows.all() or shape.box_rows == shape.box_cols


def test_4x4_has_orbits_of_192_and_96_boards_and_augment_reaches_all_of_one_and_none_of_the_other():
    boards = all_boards(FOUR)
    hashes = orbit(FOUR, boards)
    assert sorted(hashes.unique(return_counts=True)[1].tolist()) == [96, 192]
    for one in hashes.unique():
        members = boards[hashes == one]
        copies = augment(FOUR, members[:1].expand(8000, 16), torch.Generator().manual_seed(1))
        assert rows(copies) == rows(members)
        # Equally likely: 8000/192 = 42 or 8000/96 = 83 copies each, standard deviation 6.5 or 9.
        assert copies.unique(dim=0, return_counts=True)[1].min() > 8000 / len(members) / 3


def test_augment_reaches_every_order_of_rows_bands_columns_and_stacks_of_a_6x6_board():
    # Up to the names of the digits: 2!^3 3! = 48 orders of rows, 3!^2 2! = 72 of columns: 3456.
    # This board has no symmetry of its own: no two of them give the same copy.
    board = torch.tensor([parse(SIX, "164523523614345261612345231456456132")])
    copies = augment(SIX, board.expand(60000, 36), torch.Generator().manual_seed(0))
    names = copies[:, :6].argsort(dim=1)  # names that make the first row 0..5
    assert len(names.unique(dim=0)) == 720
    assert len(names.gather(1, copies).unique(dim=0)) == 3456


def test_augment_transposes_half_of_the_boards_where_boxes_are_square():
    grid = torch.tensor([parse(NINE, SOLUTION)])
    def row_side(boards):
        return module._line_invariant(boards.reshape(-1, 9, 9), 3)
    def column_side(boards):
        return module._line_invariant(boards.reshape(-1, 9, 9).transpose(1, 2), 3)
    assert row_side(grid) != column_side(grid)
    copies = augment(NINE, grid.expand(2000, 81), torch.Generator().manual_seed(0))
    straight, flipped = row_side(copies) == row_side(grid), row_side(copies) == column_side(grid)
    assert (straight ^ flipped).all()
    assert 0.45 < flipped.float().mean() < 0.55  # 4.5 standard deviations


@larger_shape
def test_the_orbit_hash_is_the_same_for_symmetric_copies(shape):
    boards = random_boards(shape, 2100, seed=6)  # more than one part of the batch
    hashes = orbit(shape, boards)
    assert hashes.dtype == torch.int64 and (hashes >= 0).all()
    assert orbit(shape, augment(shape, boards)).equal(hashes)


def test_the_orbit_hash_tells_almost_all_random_9x9_boards_apart():
    assert len(orbit(NINE, random_boards(NINE, 500, seed=7)).unique()) == 500


def test_the_orbit_hash_never_finds_more_6x6_orbits_than_there_are():
    assert 30 <= len(orbit(SIX, random_boards(SIX, 3000, seed=8)).unique()) <= 49


def test_the_orbit_hash_is_the_same_number_in_every_process_and_version():
    # A changed hash changes the split: boards that old weights were trained on would be held out.
    assert orbit(NINE, torch.tensor([parse(NINE, SOLUTION)])).item() == 8958375266242646087


@larger_shape
def test_a_tenth_or_so_of_the_boards_is_held_out(shape):
    share = held_out(shape, random_boards(shape, 2000, seed=9)).float().mean()
    assert 0.06 < share < 0.13


def test_nothing_is_held_out_on_4x4():
    assert held_out(FOUR, all_boards(FOUR)).tolist() == [False] * 288


# ---- data sets

@larger_shape
def test_train_and_test_share_no_orbit_whatever_augmentation_does(shape):
    train, test = load_boards(shape, "train", 150), load_boards(shape, "test", 50)
    assert len(train) == 150 and len(test) == 50
    assert valid(shape, train).all() and valid(shape, test).all()
    assert not held_out(shape, augment(shape, train)).any()
    assert held_out(shape, augment(shape, test)).all()
    assert not set(orbit(shape, train).tolist()) & set(orbit(shape, test).tolist())


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_4x4_splits_are_the_288_boards_over_and_over(split):
    boards = load_boards(FOUR, split, 576)
    assert boards.unique(dim=0, return_counts=True)[1].tolist() == [2] * 288
    assert len(rows(load_boards(FOUR, split, 100))) == 100


def test_load_boards_repeats_with_its_seed_with_and_without_a_cache():
    fresh = load_boards(NINE, "train", 20, seed=1, cache=False)
    assert fresh.equal(load_boards(NINE, "train", 20, seed=1))
    assert fresh.equal(load_boards(NINE, "train", 20, seed=1))
    assert not fresh.equal(load_boards(NINE, "train", 20, seed=2))


def test_a_second_call_reads_the_cache(monkeypatch):
    boards = load_boards(NINE, "test", 5)
    monkeypatch.setattr(module, "random_boards", None)  # calling it would fail
    assert boards.equal(load_boards(NINE, "test", 5))


def test_without_cache_nothing_is_written(cache):
    load_boards(NINE, "train", 5, cache=False)
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"junk", b"PK\x03\x04 not a zip", "half", "one digit",
                                    "other split"])
def test_a_damaged_cache_file_is_made_again(cache, damage):
    boards = load_boards(NINE, "train", 20)
    file, = cache.iterdir()  # one file, and no temporary one left
    whole = file.read_bytes()
    if damage == "other split":
        load_boards(NINE, "test", 20)
        other, = set(cache.iterdir()) - {file}
        other.replace(file)
    else:
        other_digit = whole[:-1] + bytes([whole[-1] % 9 + 1])
        damages = {"half": whole[:len(whole) // 2], "one digit": other_digit}
        file.write_bytes(damages.get(damage, damage))
    assert file.read_bytes() != whole
    assert load_boards(NINE, "train", 20).equal(boards)
    assert file.read_bytes() == whole


def test_a_new_version_ignores_old_files(cache, monkeypatch):
    load_boards(SIX, "train", 5)
    monkeypatch.setattr(module, "VERSION", "another")
    load_boards(SIX, "train", 5)
    assert len(list(cache.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_no_error(cache, monkeypatch):
    cache.write_text("a file where the folder should be")
    assert valid(SIX, load_boards(SIX, "train", 5)).all()
    assert len(load_puzzles(SIX, 14, 3)[0]) == 3


@pytest.mark.parametrize("clues, split", [(32, "test"), ("minimal", "test"), ("minimal", "train"),
                                          ("symmetric", "test")])
def test_load_puzzles_gives_boards_of_the_split_with_one_solution_and_reads_them_back(
        clues, split, monkeypatch):
    puzzles, solutions = load_puzzles(NINE, clues, 5, split=split)
    assert (held_out(NINE, solutions) == (split == "test")).all()
    for puzzle, solution in zip(puzzles.tolist(), solutions.tolist()):
        assert clues in module.KINDS or len(puzzle) - puzzle.count(-1) == clues
        assert count_solutions(NINE, puzzle) == 1 and solve(NINE, puzzle) == tuple(solution)
    monkeypatch.setattr(module, "make_puzzles", None)  # calling it would fail
    again = load_puzzles(NINE, clues, 5, split=split)
    assert puzzles.equal(again[0]) and solutions.equal(again[1])


def test_puzzles_of_the_other_split_under_the_name_of_this_one_are_made_again(cache):
    load_puzzles(NINE, "minimal", 3, split="train")
    file, = cache.glob("*train-puzzles*")
    file.replace(file.with_name(file.name.replace("train", "test")))
    assert held_out(NINE, load_puzzles(NINE, "minimal", 3)[1]).all()


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match='"train" or "test"'):
        load_boards(NINE, "valid", 5)
    with pytest.raises(ValueError, match='"minimal"'):
        load_puzzles(NINE, "hard", 5)


# ---- text

def test_parse_reads_dots_zeros_spaces_and_separators_alike():
    zeros = PUZZLE.replace(".", "0")
    lines = "\n".join(PUZZLE[i:i + 9] for i in range(0, 81, 9))
    assert (parse(NINE, PUZZLE) == parse(NINE, zeros)
            == parse(NINE, lines) == parse(NINE, pretty(NINE, parse(NINE, PUZZLE))))
    assert parse(NINE, PUZZLE)[:5] == [4, 2, -1, -1, 6]


def test_pretty_sets_the_boxes_apart():
    assert pretty(SIX, parse(SIX, "123456" + "." * 30)) == "\n".join([
        "1 2 3 | 4 5 6", ". . . | . . .", "------+------",
        ". . . | . . .", ". . . | . . .", "------+------",
        ". . . | . . .", ". . . | . . ."])


@every_shape
def test_to_string_and_parse_undo_each_other(shape):
    board = random_boards(shape, 1, seed=0)[0]
    puzzle = make_puzzles(shape, board[None], "minimal", seed=0)[0]
    assert parse(shape, to_string(shape, board)) == board.tolist()
    assert parse(shape, to_string(shape, puzzle)) == puzzle.tolist()
    assert shape_of([pretty(shape, puzzle)]) == shape


@pytest.mark.parametrize("text, message", [
    ("." * 15, "has 15 cells and sudoku4 needs 16"),
    ("." * 6 + "5" + "." * 9, "'5' at row 2, column 3 is no digit from 1 to 4"),
    ("." * 15 + "x", "'x' at row 4, column 4 is no digit"),
    ("3..3" + "." * 12, "3 appears twice in row 1"),
    (".2......" + ".2......", "2 appears twice in column 2"),
    ("." * 10 + "4....4", "4 appears twice in box 4"),
])
def test_parse_says_what_is_wrong_and_where(text, message):
    with pytest.raises(ValueError, match=message):
        parse(FOUR, text)


@pytest.mark.parametrize("cells, shape", [
    ([16], FOUR), ([36], SIX), ([80], NINE), ([17], FOUR), ([0, 35, 81], NINE), ([0, 35], SIX),
    ([], None), ([0], None)])
def test_the_shape_of_puzzles_is_the_one_that_a_string_comes_closest_to(cells, shape):
    assert shape_of(["." * count for count in cells]) == shape


def test_a_search_that_takes_long_can_be_given_up_and_a_command_says_so():
    """Norvig's impossible puzzle has no solution, which takes minutes to know."""
    text = ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4........."
    puzzle = module.parse(SHAPES["sudoku9"], text)
    with pytest.raises(TimeoutError):
        count_solutions(SHAPES["sudoku9"], puzzle, tries=1000)
    remark = load_task("sudoku9").remark(torch.tensor(puzzle), good=False)
    assert remark == "how many solutions this puzzle has was not found out"
    assert count_solutions(SHAPES["sudoku4"], [-1] * 16, tries=1000) == 2
