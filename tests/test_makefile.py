"""The rules of the Makefile that users see."""

import re
import subprocess
import sys
from pathlib import Path

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def test_install_says_nothing_but_what_did_not_compile(tmp_path):
    [rule] = re.findall(r"-m compileall (.*?) *#", MAKEFILE.read_text())
    for_others = tmp_path / "lib" / "torch" / "testing" / "_internal" / "py312_intrinsics.py"
    for_others.parent.mkdir(parents=True)
    for_others.write_text("def f[T](a): syntax of another Python")
    options = rule.replace("$(VENV)", str(tmp_path)).split()

    def compile_all():
        command = [sys.executable, "-m", "compileall", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = compile_all()
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)
    (tmp_path / "lib" / "broken.py").write_text("def")
    assert "broken.py" in compile_all().stdout
