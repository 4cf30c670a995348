"""`verisim export`: a trained model as one file, to hand on or to publish."""

from __future__ import annotations

from pathlib import Path

from verisim.cli.parser import Parser

EXAMPLES = """\
  verisim export runs/first --out first.safetensors
  verisim export runs/first --half --out first.half.safetensors
  verisim sample first.safetensors -n 16
"""


def main(argv: list[str]) -> int:
    from verisim.hub.weights import load_model, save_model

    parser = Parser("export", "Write the weights and the card of a trained model to one file.", EXAMPLES)
    parser.add_argument("source", type=str, help="run folder or weights file")
    parser.add_argument("--out", type=str, default="model.safetensors", help="file to write")
    parser.add_argument("--half", action="store_true", help="round weights to bfloat16: half the size")
    args = parser.parse_args(argv)
    out = Path(args.out)
    model, card = load_model(args.source, "cpu")
    out.parent.mkdir(parents=True, exist_ok=True)
    digest = save_model(out, model, card, half=args.half)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}")
    print(f"It holds recipe {card.recipe or card.model} with its settings and classes.")
    print(f"Next: verisim sample {out} -n 16")
    return 0
