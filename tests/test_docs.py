"""What the documentation shows is what the package does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def test_tables_of_results_are_what_the_runs_say() -> None:
    done = subprocess.run(
        [sys.executable, "docs/results/generate.py", "--check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from nets import batches, tiny
    from runs import make_phantom

    monkeypatch.chdir(tmp_path)
    make_phantom(tmp_path / "frames", 8)
    model = tiny()
    batch = next(batches(1, 0))
    scope = {
        "model": model,
        "server": tiny(),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "masks": batch.masks,
        "is_small": batch.is_small,
        "n": 4,
    }
    blocks = python_blocks("README.md")
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block.replace("rounds=30", "rounds=1, size=32, local_steps=1"), "README.md", "exec"), scope)
    assert scope["update"].num_steps == 1


@pytest.mark.parametrize(
    "page", [str(p.relative_to(REPOSITORY)) for p in REPOSITORY.rglob("*.md") if ".venv" not in p.parts]
)
def test_links_inside_the_documentation_lead_somewhere(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            assert ((REPOSITORY / page).parent / target).exists(), f"{page}: {target}"
