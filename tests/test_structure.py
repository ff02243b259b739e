"""Package structure: which folder may import which, what is plain torch, how long signatures may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dc_lightning"
FOUNDATION = {"errors", "files", "pictures", "parts", "seeds", "compilation", "threads", "help", "__init__"}
LEVELS = [
    {"matching", "augmentation", "networks"},
    {"synthetic", "data"},
    {"evaluation", "methods"},
    {"run"},
    {"experiments"},
    {"cli", "__main__"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def imports(path):
    """Modules of the package that a file imports, those for type checkers alone left out."""
    tree = ast.parse(path.read_text())
    hidden = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(inner) for node in hidden for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dc_lightning":
            if node.module == "dc_lightning":
                yield from (f"dc_lightning.{alias.name}" for alias in node.names if alias.name != "__version__")
            else:
                yield node.module


def level(name):
    return -1 if name in FOUNDATION else next(place for place, rooms in enumerate(LEVELS) if name in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = parts[0]
    for module in imports(path):
        other = room(module)
        if own == other:
            continue
        assert level(other) <= level(own), f"{path.name} imports {module}"
        assert {own, other} != {"evaluation", "methods"}, f"{path.name} imports {module}"


def test_plain_torch_needs_no_lightning():
    modules = ["matching.gradients", "matching.embeddings", "augmentation", "networks", "synthetic.initial"]
    plain = [f"dc_lightning.{module}" for module in modules]
    code = f"import sys, {', '.join(plain)}; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_take_at_most_six_arguments(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            overridden = node.name in ("training_step", "on_train_batch_end", "evaluate")  # Lightning's own
            assert overridden or len([a for a in arguments if a not in ("self", "cls")]) <= 6, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_dataset_or_method_is_asked_for_by_name(path):
    names = ("FashionMNIST", "CIFAR10", "SVHN", "MNIST", "DSA", "DM", "dsa", "dm")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If | ast.IfExp):
            test = ast.unparse(node.test)
            assert not any(f"== '{name}'" in test for name in names), test


def test_the_path_of_a_matching_step_is_short():
    files = [PACKAGE / "methods/base.py", PACKAGE / "methods/gradient_matching.py", *PACKAGE.glob("matching/*.py")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 700
