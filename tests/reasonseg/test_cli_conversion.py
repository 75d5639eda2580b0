"""The commands that look at checkpoints, as they are typed."""

import json
import shutil

from tests.conversion.originals import LISA
from tests.reasonseg.test_cli import one_line, run


def test_verify_says_that_all_is_right(lisa_repo):
    tower = LISA / "vision_tower"
    result = run("verify", lisa_repo, "--against", LISA / "checkpoint", "--vision-tower", tower)
    assert "258 tensors are right" in result.stdout
    assert "258 tensors equal the source bit for bit" in result.stdout
    report = json.loads(run("verify", lisa_repo, "--json").stdout)
    assert report["ok"]
    assert report["problems"] == []
    assert report["repo"] == str(lisa_repo)


def test_verify_names_the_damaged_file_and_fails(lisa_repo, tmp_path):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    with (repo / "modeling_lisa.py").open("ab") as file:
        file.write(b"\n")
    result = run("verify", repo, code=1)
    assert "modeling_lisa.py: The file has" in result.stdout
    assert "1 problems in 1 files" in one_line(result.stderr)
    report = json.loads(run("verify", repo, "--json", code=1).stdout)
    assert report["problems"][0]["file"] == "modeling_lisa.py"


def test_verify_of_another_folder(tmp_path):
    assert "no manifest.json" in one_line(run("verify", tmp_path, code=1).stderr)
