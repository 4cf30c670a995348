"""The page on report to image must run as it stands."""

import re
import runpy
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "text_to_image.md"


def test_the_page_runs(tmp_path, capsys):
    """All Python blocks of docs/text_to_image.md, in their order."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    runpy.run_path(str(script))
    assert "effusion" in capsys.readouterr().out
