"""The model in the browser: its JavaScript gives what the Python gives, and the page stands alone;
and a board that is refined before one's eyes.

The JavaScript is run by node, or by a headless Chromium; without either these tests are skipped.
"""

import json
import re
import shutil
import subprocess
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from fmlm import Denoiser, interpolate, token_times
from harness import files
from harness.checkpoints import load_checkpoint
from harness.tasks import ROOT
from sample import Pass, a_priori_confidence, posterior_refinement
from sudoku import boards as sudoku, page, plot
from toy.exact import two_mode_closed_form

SHIPPED = ROOT / "sudoku" / "sudoku9.pt"
NINE = sudoku.SHAPES["sudoku9"]
NODE = shutil.which("node") or shutil.which("nodejs")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
SAMPLERS = {"posterior": posterior_refinement, "a-priori": a_priori_confidence}
PUZZLES = list(page.EXAMPLES["sudoku9"].values())
runs_javascript = pytest.mark.skipif(not (NODE or CHROMIUM),
                                     reason="neither node nor Chromium is installed")


def script(html: str, name: str) -> str:
    return re.search(rf'<script id="{name}"[^>]*>(.*?)</script>', html, re.DOTALL)[1].strip()


def javascript(html: str, expression: str, tmp_path, **data):
    """The value of an expression that may use the code and the CONFIG and WEIGHTS of a page, and
    `data`."""
    data |= {"CONFIG": json.loads(script(html, "config")), "WEIGHTS": script(html, "weights")}
    lines = [script(html, "code"),
             *(f"const {name} = {json.dumps(value)};" for name, value in data.items()),
             f"const plain = (key, value) => ArrayBuffer.isView(value) ? [...value] : value;"
             f"Promise.resolve({expression}).then((value) => say(JSON.stringify(value, plain)));"]
    if NODE:
        file = tmp_path / "run.js"
        file.write_text("\n".join([*lines, "const say = console.log;"]), encoding="utf-8")
        command = [NODE, file]
    else:
        file = tmp_path / "run.html"
        lines.append("const say = (text) => { document.body.textContent = `<<${text}>>`; };")
        file.write_text('<meta charset="utf-8"><body></body><script>\n' + "\n".join(lines) +
                        "</script>", encoding="utf-8")
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                   "--virtual-time-budget=1000000", f"file://{file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    text = done.stdout if NODE else re.search("&lt;&lt;(.*)&gt;&gt;", done.stdout, re.DOTALL)[1]
    return json.loads(text)


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint(SHIPPED)


@pytest.fixture(scope="module")
def html(shipped):
    return page.page(*shipped)


def random_network(name: str) -> tuple[Denoiser, dict]:
    """A network of that size, no weight of which is 0, and what half precision makes of it."""
    shape = sudoku.SHAPES[name]
    network = {"vocab_size": shape.size, "width": 12, "depth": 2, "heads": 3}
    model = Denoiser(coords=shape.coords(), **network).requires_grad_(False)
    generator = Generator().manual_seed(5)
    for weight in model.parameters():
        weight.copy_((torch.randn(weight.shape, generator=generator) / 2).half())
    return model, {"task": name, "objective": "fmlm+", "network": network}


def fixed_inputs(shape: sudoku.Shape, n: int) -> tuple[torch.Tensor, ...]:
    """x_s, s, t: all kinds of context and times; (0, 1) and (0, 0) for half of the rows."""
    generator = Generator().manual_seed(0)
    rand = partial(torch.rand, generator=generator)
    x1 = F.one_hot(sudoku.random_boards(shape, n, seed=0), shape.size).float()
    s, t = rand(2, n).sort(0).values
    s[::2], t[::4], t[2::4] = 0, 1, 0
    context = rand(n, shape.cells) < rand(n, 1) * (rand(n, 1) < 0.7)
    s, t = token_times(s, context), token_times(t, context)
    return interpolate(x1, torch.randn(x1.shape, generator=generator), s), s, t


def log_delta(html: str, x, s, t, tmp_path) -> torch.Tensor:
    found = javascript(html, """(() => {
        const model = load(CONFIG, WEIGHTS);
        return X.map((x, i) => model.forward(Float32Array.from(x), S[i], T[i]));
    })()""", tmp_path, X=x.flatten(1).tolist(), S=s.tolist(), T=t.tolist())
    return torch.tensor(found).unflatten(1, x.shape[1:])


@runs_javascript
def test_a_page_is_an_html_file_in_a_folder_that_exists(capsys):
    for out in ("page.htm", "page.html/", "nowhere/page.html"):
        assert page.main(["--out", out]) == 2
        assert "must be a .html in a folder that exists" in capsys.readouterr().err


def test_log_delta_in_the_page_is_that_of_pytorch(shipped, html, tmp_path):
    """100 fixed inputs and the weights that ship, within 1e-3."""
    inputs = fixed_inputs(NINE, 100)
    torch.testing.assert_close(log_delta(html, *inputs, tmp_path), shipped[0](*inputs),
                               atol=1e-3, rtol=0)


@runs_javascript
@pytest.mark.parametrize("name", ["sudoku4", "sudoku6"])
def test_a_network_of_any_size_is_the_same_there(name, tmp_path):
    model, info = random_network(name)
    inputs = fixed_inputs(sudoku.SHAPES[name], 20)
    found = log_delta(page.page(model, info), *inputs, tmp_path)
    torch.testing.assert_close(found, model(*inputs), atol=1e-3, rtol=0)


@runs_javascript
def test_every_pass_of_a_refinement_is_that_of_pytorch(shipped, html, tmp_path):
    """Drafts and committed tokens, from the same noise: boards from nothing, and puzzles."""
    cases, expected = [], []
    empty = [-1] * NINE.cells
    puzzles = [sudoku.parse(NINE, puzzle) for puzzle in PUZZLES]
    for seed, (name, puzzle, rounds) in enumerate(
            [(name, empty, rounds) for name in SAMPLERS for rounds in (1, 6)]
            + [("posterior", puzzle, 6) for puzzle in puzzles]):
        given, trace = torch.tensor([puzzle]), []
        SAMPLERS[name](shipped[0], given.clamp(min=0), given >= 0, rounds, trace=trace,
                       generator=Generator().manual_seed(seed))
        generator = Generator().manual_seed(seed)
        noise = [torch.randn(1, 81, 9, generator=generator).flatten().tolist() for _ in trace]
        cases.append([name, puzzle, rounds, noise])
        expected.append([[record.draft[0].tolist(), record.committed[0].tolist()]
                         for record in trace])
    found = javascript(html, """(() => {
        const model = load(CONFIG, WEIGHTS);
        return CASES.map(([name, given, rounds, noise]) =>
            [...SAMPLERS[name](model, given, rounds, (round) => noise[round])]
                .map(({draft, committed}) => [draft, committed]));
    })()""", tmp_path, CASES=cases)
    assert found == expected


@runs_javascript
def test_the_worker_answers_pass_by_pass_and_stops_when_asked(tmp_path):
    model, info = random_network("sudoku4")
    puzzle = sudoku.parse(sudoku.SHAPES["sudoku4"], "12..34....43..21")
    answers = javascript(page.page(model, info), """new Promise((settle) => {
        const heard = [], scope = {postMessage: (words) => {
            heard.push(words);
            if (words.id === 3 && words.pass) scope.onmessage({data: {ask: "stop", id: 3}});
            if (words.id === 4 && words.done) settle(heard);
        }};
        serve(scope);
        const ask = (id, ask, words) => scope.onmessage({data: {id, ask, ...words}});
        ask(1, "load", {config: CONFIG, base64: WEIGHTS});
        ask(2, "solutions", {given: PUZZLE});
        ask(3, "refine", {samplers: ["posterior"], given: Array(16).fill(-1), rounds: 16, seed: 1});
        ask(4, "refine", {samplers: ["posterior", "a-priori"], given: PUZZLE, rounds: 2, seed: 1});
    })""", tmp_path, PUZZLE=puzzle)
    of = lambda id: [answer for answer in answers if answer["id"] == id]
    assert of(1) == [{"id": 1, "done": True}]
    assert len(of(2)[0]["found"]) == sudoku.count_solutions(sudoku.SHAPES["sudoku4"], puzzle)
    assert ["pass" in answer for answer in of(3)] == [True, False]
    last = {answer["sampler"]: answer["pass"]["draft"] for answer in of(4)[:-1]}
    assert last.keys() == SAMPLERS.keys() and of(4)[-1] == {"id": 4, "done": True}
    for draft in last.values():
        assert all(digit in (-1, written) for digit, written in zip(puzzle, draft))


@runs_javascript
def test_the_noise_of_a_seed_is_normal_and_the_same_again(html, tmp_path):
    one, again, other = javascript(html, "[3, 3, 4].map((seed) => [...normals(seed, 20000)()])",
                                   tmp_path)
    assert one == again != other
    noise = torch.tensor(one)
    moments = torch.stack([noise.mean(), noise.std(), (noise**4).mean()])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1.0, 3.0]), atol=0.15, rtol=0)


@runs_javascript
def test_the_rules_are_those_of_the_boards(html, tmp_path):
    """Solutions, valid boards, and what is wrong with a puzzle: the cells of its sentence."""
    unsolvable = "531" + PUZZLES[0][3:]  # 531 for 534, which breaks no rule yet
    texts = [*PUZZLES, unsolvable, "." * 81, PUZZLES[0][:80], "x" + PUZZLES[0][1:],
             "5" * 2 + "." * 79, "." * 72 + "1........", "1" + "." * 8 + "1" + "." * 71]
    boards = sudoku.random_boards(NINE, 3, seed=1).tolist() + [[0] * 81, [-1] * 81]
    found = javascript(html, """({
        parsed: TEXTS.map((text) => parse(CONFIG.shape, text)),
        solved: TEXTS.slice(0, 5).map((text) =>
            solutions(CONFIG.shape, parse(CONFIG.shape, text).given)),
        valid: BOARDS.map((board) => valid(CONFIG.shape, board)),
        hopeless: solutions(CONFIG.shape, Array(81).fill(-1), 1e9, 100),
    })""", tmp_path, TEXTS=texts, BOARDS=boards)
    for text, parsed in zip(texts, found["parsed"]):
        try:
            assert parsed == {"given": sudoku.parse(NINE, text), "error": ""}
        except ValueError as error:
            words = lambda sentence: re.findall(r"row \d|column \d|box \d|digit \d|\d+ cells",
                                                str(sentence))
            assert set(words(parsed["error"])) <= set(words(error)) and parsed["error"]
    for text, solved in zip(texts, found["solved"]):
        given = torch.tensor(sudoku.parse(NINE, text))
        assert len(solved) == sudoku.count_solutions(NINE, given.tolist())
        for board in torch.tensor(solved, dtype=torch.int64).reshape(-1, 81):
            assert sudoku.valid(NINE, board[None]) and ((board == given) | (given < 0)).all()
    assert found["valid"] == sudoku.valid(NINE, torch.tensor(boards)).tolist()
    assert found["hopeless"] is None


@runs_javascript
def test_the_two_modes_are_the_closed_form(html, tmp_path):
    x = torch.randn(20, 2, 2, generator=Generator().manual_seed(0), dtype=torch.float64)
    x[0] = 0  # a tie
    times = [(0, 0), (0, 1), (0.3, 0.3), (0.6, 1)]
    found = javascript(html, "TIMES.map(([s, t]) => X.map((x) => two_mode_closed_form(x, s, t)))",
                       tmp_path, X=x.tolist(), TIMES=times)
    modes = torch.tensor([[0, 0], [1, 1]])
    for (s, t), first in zip(times, found):
        exact = two_mode_closed_form(x, modes, s, t)
        torch.testing.assert_close(torch.tensor(first, dtype=torch.float64), exact[:, 0, 0])


# ---- the command


def test_the_page_is_one_file_of_at_most_8_mb_that_asks_for_no_other(html):
    assert len(html.encode()) <= 8_000_000
    assert not re.findall(r"\{\{[A-Z]+\}\}", html)  # every part is filled in
    seen = html.replace(script(html, "weights"), "")
    assert set(re.findall(r"\w+://[^\s\"']*", seen)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script[^>]*\ssrc|<link[^>]*stylesheet|@import|\bfetch\(|\bimport\(",
                         seen)
    assert "default-src 'none'" in seen


def test_the_command_writes_the_page_and_says_how_long_it_is(tmp_path, capsys):
    file = tmp_path / "page.html"
    file.write_text("an older page")
    assert page.main([str(SHIPPED), "--out", str(file)]) == 0
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out == f"page: {file}, {file.stat().st_size / 1e6:.1f} MB\n"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("out", ["", "page.txt", "folder.html", "nowhere/page.html"])
def test_a_page_that_cannot_be_written_ends_in_one_sentence(out, tmp_path, capsys):
    (tmp_path / "folder.html").mkdir()
    assert page.main([str(SHIPPED), "--out", out and str(tmp_path / out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sudoku.page: ") and said.count("\n") == 1


def test_a_disk_that_refuses_leaves_the_old_page(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("an older page")

    def refuse(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left.*still there"):
        files.replace(file, b"a new page")
    assert file.read_text() == "an older page" and list(tmp_path.iterdir()) == [file]


def test_weights_that_are_missing_or_of_another_kind_end_in_one_sentence(checkpoint, tmp_path,
                                                                         capsys):
    out = tmp_path / "page.html"
    for path in (str(tmp_path / "none.pt"), checkpoint("mdm")):
        assert page.main([path, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("sudoku.page: ") and said.count("\n") == 1
    assert not out.exists()


def test_a_weight_beyond_half_precision_is_an_error():
    model, info = random_network("sudoku4")
    model.head.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="head.weight has entries beyond half precision"):
        page.page(model, info)


def test_a_network_of_another_task_is_an_error():
    model, info = random_network("sudoku4")
    with pytest.raises(ValueError, match="draws none"):
        page.page(model, info | {"task": "stories"})


# ---- a board in motion


def test_a_board_is_shown_as_noise_as_every_draft_and_as_what_is_left_of_it():
    pytest.importorskip("matplotlib")
    shape = sudoku.SHAPES["sudoku4"]
    board = torch.tensor(sudoku.solve(shape, [-1] * 16))
    place = torch.arange(16)
    given = torch.where(place < 12, board, -1)
    draft = torch.where(place == 15, (board + 1) % 4, board)
    trace = [Pass(draft, torch.full((16,), 0.5), (place == 12) | (place == 13)),
             Pass(board, torch.ones(16), place > 13)]
    seen = [(figure.axes[0].get_title(), [text.get_text() for text in figure.axes[0].texts], time)
            for figure, time in plot.draw_frames(shape, given, trace)]
    digits = [str(int(digit) + 1) for digit in board]
    wrong = digits[:15] + [str(int(draft[15]) + 1)]
    assert seen == [("Noise", digits[:12] + ["·"] * 4, plot.BACK),
                    ("Round 1 of 2: 1 wrong", wrong, plot.DRAFT),
                    ("Round 1 of 2: 1 wrong", digits[:14] + ["·"] * 2, plot.BACK),
                    ("Round 2 of 2: 0 wrong", digits, plot.END)]


@pytest.mark.parametrize("name", ["board.gif", "board.png"])
def test_a_board_in_motion_is_written_to_a_file(name, checkpoint, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    out = tmp_path / name
    assert plot.main([checkpoint("fmlm+"), "--clues", "0", "--nfe", "3",
                      "--animate", str(out)]) == 0
    assert capsys.readouterr().out == f"animation: {out}\n"
    with image.open(out) as picture:
        assert picture.is_animated and picture.n_frames >= 3


@pytest.mark.parametrize("arguments", [
    ["--animate", "board.svg"], ["--animate", "nowhere/board.gif"], ["--animate", ""],
    ["--animate", "board.gif", "--out", "board.png"], []])
def test_a_motion_that_cannot_be_written_is_one_sentence(arguments, checkpoint, capsys):
    assert plot.main([checkpoint("fmlm+"), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sudoku.plot: ") and said.count("\n") == 1


def test_the_board_in_motion_of_the_readme_is_at_most_1_mb():
    image = pytest.importorskip("PIL.Image")
    file = ROOT / "sudoku" / "board.gif"
    assert file.stat().st_size <= 1_000_000
    with image.open(file) as picture:
        assert picture.n_frames >= 6
