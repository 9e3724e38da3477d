"""The package as others get it: its names, and its wheel."""

from __future__ import annotations

import ast
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import fedgs
from runs import environment

REPOSITORY = Path(__file__).resolve().parents[1]


def test_every_public_name_can_be_imported() -> None:
    assert fedgs.__all__ == sorted(fedgs.__all__, key=lambda name: (name.startswith("_"), name)) or fedgs.__all__
    for name in fedgs.__all__:
        assert getattr(fedgs, name) is not None
    assert set(fedgs.__all__) <= set(dir(fedgs))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedgs.nothing  # noqa: B018


def test_every_public_name_is_documented() -> None:
    for name in fedgs.__all__:
        if name != "__version__":
            assert (getattr(fedgs, name).__doc__ or "").strip(), name


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, fedgs; assert not {'torch', 'numpy', 'pandas', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_the_wheel_holds_everything_and_no_test(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = REPOSITORY / "src"
    wanted = {str(path.relative_to(source)) for path in (source / "fedgs").rglob("*") if path.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert wanted <= names
    assert not [name for name in names if "test" in name.lower()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = str(REPOSITORY / "constraints.txt")
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, str(wheel)], check=True)
    clean = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python.with_name("fedgs"), "demo", "--out", tmp_path / "demo"],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Dice all" in done.stdout
    assert "fedgs[report]" in done.stdout  # no page without the extra, and it says so


def code_lines(path: Path) -> int:
    """Lines of a module that are code: no docstring, no comment, not blank."""
    text = path.read_text()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in documented for number, line in lines
    )


def test_the_core_can_be_read_in_one_sitting() -> None:
    source = REPOSITORY / "src" / "fedgs"
    core = [source / name for name in ("core.py", "scaling.py", "algorithms/fedgs.py", "engine.py")]
    assert sum(code_lines(path) for path in core) <= 350
    assert code_lines(source / "scaled_update.py") <= 200
