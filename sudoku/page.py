"""The model in the browser: python -m sudoku.page [CKPT] --out FILE.html

Writes one HTML file that needs nothing else: the weights in half precision, the network and the
samplers in plain JavaScript (page.js), and what one sees of them (page.html). It is opened from
disk, without a server or a network. Three parts: boards from nothing, a puzzle of one's own, and
the two modes of the toy.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from fmlm import Denoiser
from harness import commands
from harness.checkpoints import halves, load_checkpoint, newest_checkpoint
from harness.files import replace
from harness.samplers import choose_sampler
from sudoku import boards as sudoku

HERE = Path(__file__).parent
EXAMPLES = {"sudoku9": {  # puzzles that the page offers
    "easy": "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
    "minimal": "....3.9.4.4...5...3.6.1...8.6..5..9....7.3.....7.94.....3...47.5......2......98.3",
    "many solutions": "53..7....6..195....98......8...6...3...8.3..17...2.....6....28....419......."
                      "8..79",
}}


def weights_of(model: Denoiser) -> tuple[list[list], bytes]:
    """[name, rows, columns] of every weight, and all of them in half precision, one after another.

    A vector has one row. ValueError for a weight that half precision cannot hold.
    """
    weights = halves(dict(model.named_parameters()))
    shapes = [[name, *value.reshape(-1, value.shape[-1]).shape] for name, value in weights.items()]
    return shapes, b"".join(value.numpy().astype("<f2").tobytes() for value in weights.values())


def page(model: Denoiser, info: dict) -> str:
    """The HTML of a network and what its checkpoint says of it. Raises as `weights_of`, and
    ValueError for a network that is no FMLM+ of Sudoku."""
    choose_sampler(info["objective"], "posterior")
    if info["task"] not in sudoku.SHAPES:
        raise ValueError(f"the page shows boards, and a checkpoint of {info['task']!r} draws none: "
                         f"choose one of {', '.join(sudoku.SHAPES)}")
    shape, (shapes, halves) = sudoku.SHAPES[info["task"]], weights_of(model)
    config = {
        "shape": {"box_rows": shape.box_rows, "box_cols": shape.box_cols, "size": shape.size},
        "network": info["network"], "coords": model.coords.tolist(), "shapes": shapes,
        "parameters": len(halves) // 2, "examples": EXAMPLES.get(info["task"], {}),
    }
    parts = {"CODE": (HERE / "page.js").read_text(encoding="utf-8"),
             "CONFIG": json.dumps(config).replace("<", "\\u003c"),
             "WEIGHTS": base64.b64encode(halves).decode()}
    html = (HERE / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        html = html.replace(f"{{{{{name}}}}}", text, 1)
    return html


@commands.command("sudoku.page")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m sudoku.page",
                             description="Write one HTML file that runs a model in the browser.")
    parser.add_argument("checkpoint", nargs="?", type=commands.path,
                        help="default: the newest of 9x9 trained here, else the weights that ship")
    parser.add_argument("--out", metavar="FILE", required=True, type=commands.file_of(".html"),
                        help="the page: .html")
    options = parser.parse_args(arguments)
    model, info = load_checkpoint(options.checkpoint or newest_checkpoint("sudoku9"))
    text = page(model, info)
    replace(Path(options.out), text.encode())
    print(f"page: {options.out}, {len(text.encode()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    commands.run(main)
