"""`verisim evaluate`: one generator against held-out real images. A comparison of one."""

from __future__ import annotations

from verisim.cli import compare

EXAMPLES = """\
  verisim evaluate runs/diffusion --out judged
  verisim evaluate runs/diffusion --data.folder my_images --data.size 64 -n 1000
  verisim evaluate made_elsewhere/ --data.folder my_images --data.size 64
"""


def main(argv: list[str]) -> int:
    return compare.main(argv, verb="evaluate", examples=EXAMPLES)
