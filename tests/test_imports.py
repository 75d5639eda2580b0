"""Who may import whom, and what files that are published beside a checkpoint may contain."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PUBLISHED = ("modeling", "processing")
# What each of the tools may import beside itself: never one that stands further down. What is found further down is
# named as `module:name` in a table.
BELOW = {
    "conversion": PUBLISHED,
    "data": ("processing",),
    "training": (*PUBLISHED, "data"),
    "evaluation": (*PUBLISHED, "data"),
    "tabletop": (*PUBLISHED, "data", "training", "evaluation"),
    "serving": (*PUBLISHED, "evaluation"),
}
TOOLS = tuple(BELOW)
# Of `reasonseg/` the tools may import these, which import nothing when they are imported.
SHARED = ("reasonseg.atomic_files", "reasonseg.loading", "reasonseg.model_names", "reasonseg.precision")
# The table of systems, from which commands, public names and registration are made.
SYSTEMS_TABLE = "reasonseg.conversion.systems"

# Third-party packages each folder may import at all.
MODEL_PACKAGES = {"torch", "transformers", "huggingface_hub", "safetensors"}
ALLOWED_PACKAGES = {
    "modeling": MODEL_PACKAGES | {"diffusers", "peft"},
    "processing": MODEL_PACKAGES | {"numpy", "PIL", "pycocotools", "spacy", "supervision"},
}
# Optional there: a checkpoint loads in an environment without them.
OPTIONAL_PACKAGES = {"diffusers", "peft", "pycocotools", "spacy", "supervision"}

FORBIDDEN_MODULES = {
    *("subprocess", "socket", "pickle", "marshal", "shelve", "ctypes", "importlib", "runpy", "code"),
    *("urllib", "http", "ftplib", "smtplib", "requests", "httpx", "multiprocessing"),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
FORBIDDEN_OS_CALLS = {"system", "popen", "remove", "unlink", "rmdir", "removedirs", "rename", "replace"}

# The expressions with which transformers looks for the files to copy; it reads text, so docstrings count.
COPIED_BY_TRANSFORMERS = (
    re.compile(r"^\s*import\s+\.(\S+)\s*$", re.MULTILINE),
    re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE),
)


def files_of(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def published_files() -> list[Path]:
    return [file for file in files_of(*PUBLISHED) if file.name != "__init__.py"]


@functools.cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


@functools.cache
def imports(tree: ast.AST) -> list[tuple[int, str, ast.stmt]]:
    """Return (level, module, node) of every import statement, wherever it stands."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", node))
    return found


def absolute_name(file: Path, level: int, module: str) -> str:
    """Return the module an import names, as it is called once installed."""
    if level == 0:
        return module
    package = list(file.relative_to(ROOT).parts[:-1])
    if package[0] != "reasonseg":
        package.insert(0, "reasonseg")
    base = package[: len(package) - (level - 1)]
    return ".".join([*base, *([module] if module else [])])


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_there_is_something_to_check():
    assert len(published_files()) >= 10
    assert all(files_of(folder) for folder in TOOLS)


@pytest.mark.parametrize("file", published_files(), ids=name)
def test_published_files_import_siblings_and_allowed_packages_only(file):
    folder = file.parent.name
    for level, module, node in imports(parse(file)):
        where = f"{name(file)}:{node.lineno}"
        if level:
            assert level == 1, f"{where}: `from ..` is not copied with a checkpoint."
            assert module, f"{where}: `from . import x` is not copied with a checkpoint; write `from .x import y`."
            assert "." not in module, f"{where}: published folders are flat."
            assert (file.parent / f"{module}.py").is_file(), f"{where}: no sibling {module!r} in {folder}/."
        else:
            package = module.split(".")[0]
            allowed = package in ALLOWED_PACKAGES[folder] or package in sys.stdlib_module_names
            assert allowed, f"{where}: {package!r} must not be imported in {folder}/."


@pytest.mark.parametrize("file", published_files(), ids=name)
def test_transformers_finds_exactly_the_real_imports(file):
    text = file.read_text(encoding="utf-8")
    found = {match for pattern in COPIED_BY_TRANSFORMERS for match in pattern.findall(text)}
    real = {module for level, module, _ in imports(parse(file)) if level}
    assert found == real, f"{name(file)}: a docstring or string that looks like a relative import, or a missed one."


@pytest.mark.parametrize("file", published_files(), ids=name)
def test_optional_packages_are_imported_where_they_are_used(file):
    for node in parse(file).body:
        for level, module, inner in imports(node):
            package = module.split(".")[0]
            at_top = level == 0 and package in OPTIONAL_PACKAGES and inner is node
            assert not at_top, f"{name(file)}:{inner.lineno}: import {package!r} inside the function that needs it."


@pytest.mark.parametrize("file", published_files(), ids=name)
def test_published_files_cannot_reach_out(file):
    tree = parse(file)
    for level, module, node in imports(tree):
        forbidden = level == 0 and module.split(".")[0] in FORBIDDEN_MODULES
        assert not forbidden, f"{name(file)}:{node.lineno}: {module!r} in published code."
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        where = f"{name(file)}:{node.lineno}"
        if isinstance(function, ast.Name):
            assert function.id not in FORBIDDEN_CALLS, f"{where}: {function.id}() in published code."
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            called = (function.value.id, function.attr)
            assert called[0] != "os" or called[1] not in FORBIDDEN_OS_CALLS, f"{where}: os.{called[1]}()."
            assert called != ("torch", "load"), f"{where}: checkpoints are safetensors."


# What runs beside a checkpoint or in a Space, and what requirements.txt names for it.
DEPLOYED = {"gradio", "huggingface_hub", "numpy", "PIL", "torch", "transformers"}


@pytest.mark.parametrize("file", files_of("deployment"), ids=name)
def test_what_is_deployed_needs_nothing_of_this_project(file):
    for level, module, node in imports(parse(file)):
        where = f"{name(file)}:{node.lineno}"
        package = module.split(".")[0]
        assert level == 0, f"{where}: the file lies alone where it runs."
        assert package in DEPLOYED or package in sys.stdlib_module_names, f"{where}: {package!r} is not installed."
        assert package not in FORBIDDEN_MODULES, f"{where}: {module!r} in what others run."


def test_published_folders_are_flat_with_unique_names():
    for folder in PUBLISHED:
        nested = [file for file in (ROOT / folder).rglob("*.py") if file.parent != ROOT / folder]
        assert not nested, f"{folder}/ must be flat: {nested}."
    names = [file.name for file in published_files()]
    assert len(names) == len(set(names)), f"All files land in one folder: {sorted(names)}."


# What stands in processing/ for this package alone: HTML, drawn answers, polygons, soft edges, training's prompts.
OWN = {"answer_rendering", "mask_reading", "visual_prompt_sampling"}


@pytest.mark.parametrize("file", published_files(), ids=name)
def test_what_only_this_package_needs_travels_with_no_checkpoint(file):
    found = {module for level, module, _ in imports(parse(file)) if level}
    assert file.stem in OWN or not found & OWN, f"{name(file)}: {sorted(found & OWN)} would be published."


@pytest.mark.parametrize("file", files_of(*TOOLS), ids=name)
def test_tools_import_only_published_folders_and_themselves(file):
    folder = file.relative_to(ROOT).parts[0]
    allowed = (*(f"reasonseg.{part}" for part in (folder, *BELOW[folder])), *SHARED)
    for level, module, node in imports(parse(file)):
        target = absolute_name(file, level, module)
        where = f"{name(file)}:{node.lineno}"
        assert target.split(".")[0] not in (*PUBLISHED, *TOOLS, "tests"), f"{where}: write reasonseg.{target}."
        if target.split(".")[0] == "reasonseg":
            inside = any(target == prefix or target.startswith(f"{prefix}.") for prefix in allowed)
            assert inside, f"{where}: {folder}/ must not import {target}."


@pytest.mark.parametrize("module", [*SHARED, SYSTEMS_TABLE])
def test_what_everybody_may_import_imports_nothing(module):
    path = module.replace(".", "/")
    file = next(
        file for file in (ROOT / f"{path}.py", ROOT / f"{path.removeprefix('reasonseg/')}.py") if file.is_file()
    )
    skipped = (ast.FunctionDef, ast.If)  # `if TYPE_CHECKING:`
    at_top = ast.Module([node for node in parse(file).body if not isinstance(node, skipped)], [])
    used = {absolute_name(file, level, name) for level, name, _ in imports(at_top)} - {*SHARED}
    assert {name.split(".")[0] for name in used} <= set(sys.stdlib_module_names)


# Calls that run a repository's code where nobody says no, or ask at the terminal whether to.
LOADERS = {"from_pretrained", "from_config", "pipeline", "get_class_from_dynamic_module", "load_custom_generate"}
LOADING = ROOT / "reasonseg" / "loading.py"


@pytest.mark.parametrize("file", files_of(*TOOLS, "reasonseg"), ids=name)
def test_checkpoints_are_loaded_in_one_place(file):
    """`load_pretrained` says whether code may run; a call beside it would have transformers ask."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call) and file != LOADING:
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            allowed = ast.unparse(node.func) in ("self.pipeline", "GenerationConfig.from_pretrained")
            assert called not in LOADERS or allowed, f"{name(file)}:{node.lineno}: use load_pretrained."


@pytest.mark.parametrize("file", files_of(*PUBLISHED, *TOOLS, "reasonseg"), ids=name)
def test_images_are_opened_in_one_place(file):
    """`open_image` knows which formats are meant and how many pixels are allowed."""
    for node in ast.walk(parse(file)):
        opened = isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
        assert not opened or file.name == "image_loading.py", f"{name(file)}:{node.lineno}: use open_image."


@pytest.mark.parametrize("file", published_files(), ids=name)
def test_published_files_pass_on_whether_code_may_run(file):
    """Parts of a model are never built from code that their configs name."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = {keyword.arg for keyword in node.keywords}
            where = f"{name(file)}:{node.lineno}"
            if node.func.attr == "from_config" and ast.unparse(node.func.value).startswith("Auto"):
                assert "trust_remote_code" in given, f"{where}: say trust_remote_code=False."
            if node.func.attr == "from_pretrained":
                assert None in given, f"{where}: pass the caller's **kwargs on."


@pytest.mark.parametrize("file", files_of("reasonseg/cli"), ids=name)
def test_commands_write_through_printing(file):
    """Names of others reach the terminal in a form that it does not obey."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call) and file.name != "printing.py":
            called = ast.unparse(node.func)
            assert called not in ("sys.stdout.write", "sys.stderr.write", "print", "Console", "typer.echo"), (
                f"{name(file)}:{node.lineno}: use write_out or stderr_console."
            )


# Tables from which commands derive their options; tests of their own say that these import nothing.
LIGHT = ("reasonseg.evaluation.registry", "reasonseg.data.annotation_formats", SYSTEMS_TABLE)


@pytest.mark.parametrize("file", files_of("reasonseg/cli"), ids=name)
def test_command_line_modules_are_light(file):
    """`reasonseg --help` answers at once only if torch and what needs it are imported inside functions."""
    heavy = ("torch", "transformers", "numpy", "PIL", *(f"reasonseg.{part}" for part in (*PUBLISHED, *TOOLS)))
    tree = parse(file)
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for level, module, _ in imports(node):
                target = absolute_name(file, level, module)
                assert target in LIGHT or not target.startswith(heavy), (
                    f"{name(file)}:{node.lineno}: import {target} in the function."
                )


@pytest.mark.parametrize("file", files_of(*PUBLISHED, *TOOLS, "reasonseg"), ids=name)
def test_library_code_leaves_devices_alone_and_unpickles_nothing(file):
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{name(file)}:{number}"
        assert ".cuda()" not in line, f"{where}: the caller chooses the device."
        assert "empty_cache(" not in line, f"{where}: the caller manages memory."
        if "torch.load(" in line:
            assert "weights_only=True" in line, f"{where}: torch.load needs weights_only=True."


# What transformers documents, so that it stands in no row of the table in CONTRIBUTING.md.
DOCUMENTED = {"ModelOutput", "logging"}


def test_undocumented_names_of_transformers_stand_in_the_table():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## What of transformers may change")[2].partition("\n## ")[0]
    listed = {word for row in table.splitlines() if row.startswith("| ") for word in re.findall(r"`(\w+)`", row)}
    used = {
        (alias.name, name(file))
        for file in files_of(*PUBLISHED, *TOOLS, "reasonseg")
        for level, module, node in imports(parse(file))
        if level == 0 and module.startswith("transformers.") and isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert len(used) > 20
    missing = sorted((word, file) for word, file in used if word not in listed | DOCUMENTED)
    assert not missing, f"Use a documented name instead, or add a row with the test that notices: {missing}"


def test_every_threat_has_a_test_that_exists():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [row for row in text.partition("| threat |")[2].splitlines() if row.startswith("| ")]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(tests/[\w/.]+)`", row.rsplit("|", 2)[1])
        assert named, f"No test stands for: {row}"
        assert all((ROOT / path).is_file() for path in named), row


def test_the_table_names_tests_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## What of transformers may change")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(tests/[\w/.]+)`", table))
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_map_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| question | file |")[2].partition("\n\n")[0]
    named = re.findall(r"\| `([\w/.<>-]+)` \|", table)
    assert len(named) >= 25
    assert not [path for path in named if not list(ROOT.glob(path.replace("<system>", "*")))]
