"""What a wheel installs: one package that stands beside any other, whole also by way of an sdist."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import openai
import pytest

from tests.serving import serve

ROOT = Path(__file__).parents[1]
FOREIGN = ("config", "optimize", "runtimes", "server")  # what our folders are called in a checkout


def build(source: Path, out: Path, *targets: str) -> None:
    options = [option for target in targets for option in ("-t", target)]
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(out), *options], cwd=source, check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist of this checkout."""
    out = tmp_path_factory.mktemp("built")
    build(ROOT, out, "wheel", "sdist")
    return out


def the(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_one_package_without_what_trains_the_pocket_model(built: Path) -> None:
    names = files(the(built, "*.whl"))
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"enginehouse"}
    assert "enginehouse/config/pocket/model.safetensors" in names
    assert {"enginehouse/server/page/files/index.html", "enginehouse/server/page/files/main.js"} <= names
    assert not [name for name in names if "/training/" in name]


def test_a_wheel_built_from_the_sdist_holds_the_same_files(built: Path, tmp_path: Path) -> None:
    with tarfile.open(the(built, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    build(the(tmp_path, "enginehouse-*"), tmp_path, "wheel")
    assert files(the(tmp_path, "*.whl")) == files(the(built, "*.whl"))


def test_installed_beside_packages_of_our_folders_names_it_serves_and_they_work(built: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python, pins = str(environment / "bin" / "python"), str(ROOT / "requirements" / "serve.txt")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", pins]
    subprocess.run([*install, str(the(built, "*.whl"))], check=True)
    packages = the(environment, "lib/python*/site-packages")
    for name in FOREIGN:
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text("FOREIGN = True\n")
    command = (str(environment / "bin" / "enginehouse"),)
    with serve(tmp_path, {"echo": {"source": "builtin:echo"}}, {"PYTHONPATH": ""}, command=command) as served:
        client = openai.OpenAI(base_url=f"{served.root}/v1", api_key="none", max_retries=0, timeout=60)
        reply = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "one two"}])
    assert reply.choices[0].message.content == "one two"
    program = f"import {', '.join(FOREIGN)}; print(all(m.FOREIGN for m in ({', '.join(FOREIGN)})))"
    shown = subprocess.run([python, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "True\n"
