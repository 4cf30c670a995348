"""The page that teaches the core must run as it stands."""

import re
import runpy
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "diffusion_core.md"


def test_the_page_runs(tmp_path):
    """All code blocks of docs/diffusion_core.md, in their order, with their assertions."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 6
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    runpy.run_path(str(script))
