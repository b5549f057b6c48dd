"""The wheel in a bare environment: `make test-wheel`. Builds it, installs it with what it needs and
nothing else, and runs commands, the quickstart's Python, and what asks for an extra.

It takes some minutes and fetches PyTorch, so pytest does not collect it.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDED = {
    "fader/py.typed",
    "fader/server/static/index.html",
    "fader/server/static/vendor/LICENSE.preact.txt",
    "fader/server/static/vendor/preact.js",
    "fader/starter/data/levels/medical.jsonl",
    "fader/starter/vectors/formal/adapter_model.safetensors",
    "fader/starter/vectors/personal/adapter_model.safetensors",
    "fader/starter/profiles/brief.yaml",
}
PROFILE = "guides: [{kind: contrast, principle: Answer like a pirate.}]\n"


def run(*words: str | Path, cwd: Path = ROOT, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command that must end with that code; what it printed."""
    print("$", *words, flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=environment)
    if done.returncode != code:
        sys.exit(f"exit status {done.returncode} instead of {code}\n{done.stdout}\n{done.stderr}")
    return done


def main() -> None:
    """Build, install, run."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", place)
        (wheel,) = place.glob("*.whl")
        missing = NEEDED - set(zipfile.ZipFile(wheel).namelist())
        assert not missing, f"not in the wheel: {missing}"

        run(sys.executable, "-m", "venv", place / "bare")
        python, fader = place / "bare/bin/python", place / "bare/bin/fader"
        pins = ROOT / "constraints.txt"
        run(python, "-m", "pip", "install", "--quiet", "--constraint", pins, wheel)

        work = place / "work"
        (work / ".fader/profiles").mkdir(parents=True)
        (work / ".fader/profiles/pirate.yaml").write_text(PROFILE)
        installed = run(python, "-c", "import fader; print(fader.__file__)", cwd=work).stdout
        assert installed.startswith(str(place)), installed
        said = run(fader, "generate", "Name a river.", "--max-tokens", "8", cwd=work).stdout
        assert said.strip(), "no answer"

        page = (ROOT / "docs/quickstart.md").read_text()
        code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
        (work / "quickstart.py").write_text(code)
        assert run(python, "quickstart.py", cwd=work).stdout.strip()

        for words, extra in (
            (("data", "check", "x.jsonl"), "data"),
            (("train", "vector", "x", "--data", "x.jsonl"), "train,eval"),
        ):
            refused = run(fader, *words, cwd=work, code=2)
            assert f"pip install 'fader[{extra}]'" in refused.stderr, refused.stderr
            assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    print("the wheel runs in a bare environment")


if __name__ == "__main__":
    main()
