"""Sessions: ``nox`` runs lint, types, docs and tests; ``nox -l`` lists all."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "virtualenv"

CONSTRAINTS = "constraints.txt"
# The lower ends of the ranges in setup.cfg, as far as they matter.
LOWEST = ("torch==2.10.0", "transformers==5.15.0", "lightning==2.6.0", "torchmetrics==1.6.0")

# Processors that can be imitated on one with wider instructions, by what the libraries are told to use.
PROCESSORS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"},  # with AMX, torch's attention fails
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}

# Folders that the package holds by a link.
LINKS = ("callbacks", "recipes")
# The README's main job, and commands that use its result, shrunk to seconds: `nox -s wheel`.
JOBS = (
    "fit --config vip_kl --trainer.max_steps 2 --trainer.val_check_interval 2 --data.val.size 8 --data.fit_test_size 8",
    "predict --config vip_kl --data.test.size 4 --overlays 1",
    "bench --config bench/glimpse_tiny --pruner runs/vip_kl/fit_0/pruner --batch_sizes [1] --new_tokens 2 --warmup 1 "
    "--repetitions 2 --output bench.json",
)
WRITTEN = ("runs/vip_kl/fit_0/results.json", "runs/vip_kl/predict_0/answers.jsonl", "bench.json", "bench.md")
# Tests that go through every room within some minutes, and need no file of the checkout except tests/ and setup.cfg.
# Those of pages, noxfile, benchmarks and packaging do.
QUICK = """
    tests/metrics tests/scorers tests/policies tests/reducers tests/rewards tests/callbacks
    tests/data --ignore=tests/data/test_workers.py
    tests/backbones/test_chat.py tests/backbones/test_glimpse_tiny_files.py tests/test_golden_model.py
    tests/engine/test_glimpse_run.py tests/engine/test_prompt_cache.py
    tests/objectives/test_kl.py tests/objectives/test_losses.py tests/objectives/test_mask.py
    tests/ablation/test_cells.py tests/ablation/test_budgets.py tests/benchmark/test_straightforward.py
    tests/goldens/test_cases.py tests/serving/test_chat_request.py tests/demo/test_page.py
    tests/test_contracts.py tests/test_public_api.py tests/test_renames.py tests/test_architecture.py
    tests/test_cli.py tests/test_recipes.py tests/test_layers.py tests/test_written_before.py tests/test_evaluation.py
    tests/test_fit.py::test_what_a_run_leaves
""".split()
# The conftest.py of a folder where tests shall find the installed package alone.
INSTALLED = """\
import sysconfig

import glimpse_lightning

assert glimpse_lightning.__file__.startswith(sysconfig.get_path("purelib")), glimpse_lightning.__file__
"""


def install(session: nox.Session, *extras: str) -> None:
    session.install("-c", CONSTRAINTS, "-e", f".[{','.join(extras)}]")
    session.env.setdefault("OMP_NUM_THREADS", "1")


@nox.session
def tests(session: nox.Session) -> None:
    """Everything but the slow tests; extra arguments go to pytest."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take minutes."""
    install(session, "test")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
@nox.parametrize("kind", list(PROCESSORS), ids=list(PROCESSORS))
def processors(session: nox.Session, kind: str) -> None:
    """The tests as other processors compute: without vector kernels, and with AVX2 alone."""
    install(session, "test")
    session.run("pytest", "-n", "2", *session.posargs, env=PROCESSORS[kind])


@nox.session
def gpu(session: nox.Session) -> None:
    """What a GPU has to prove, headline figures first, then the tests that need one: benchmarks/README.md."""
    install(session, "test")
    session.run("python", "benchmarks/gpu.py", *(session.posargs or ["--output", "runs/gpu"]))


@nox.session(name="lmms-eval")
def lmms_eval(session: nox.Session) -> None:
    """The bridge to lmms-eval, and our scores beside its own, with the real package."""
    install(session, "test", "lmms-eval")
    session.run("pytest", "tests/lmms_eval_bridge", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """A pruned model in Hugging Face's Trainer and in lm-eval, with the real packages."""
    install(session, "test")
    session.install("accelerate", "lm-eval>=0.4.9")
    session.run("pytest", "-m", "slow", "tests/peers", *session.posargs)


@nox.session
def ray(session: nox.Session) -> None:
    """Batch jobs on a local Ray cluster of two actors, with the real package."""
    install(session, "test", "ray")
    session.run("pytest", "-m", "slow or not slow", "tests/ray_batch", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests on the oldest torch and transformers that setup.cfg admits."""
    session.install("-e", ".[test]", *LOWEST)
    session.env.setdefault("OMP_NUM_THREADS", "1")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, and codespell."""
    session.install("-c", CONSTRAINTS, "ruff", "codespell")
    session.run("ruff", "check", ".")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy."""
    install(session, "dev")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Links in the documentation lead somewhere, and its commands parse."""
    install(session, "test")
    session.run("pytest", "tests/test_docs.py", *session.posargs)


@nox.session(name="main-job")
def main_job(session: nox.Session) -> None:
    """Train VIP by KL and test it, as in the README."""
    install(session)
    session.run("glimpse-lightning", "fit", "--config", "vip_kl", *session.posargs)


@nox.session(reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel into dist/, and use the wheel in an empty environment, without a checkout."""
    built = build(session)
    check_files(session, built)
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = Path(elsewhere)
        session.install("-c", CONSTRAINTS, str(built))
        session.run("pip", "check")
        run_jobs(session, folder)
        session.install("-c", CONSTRAINTS, f"{built}[test]")
        session.run("pip", "check")
        run_quick_tests(session, folder)


def build(session: nox.Session) -> Path:
    """The wheel made from the sdist, as for a release."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install("-c", CONSTRAINTS, "build")
    session.run("python", "-m", "build")
    (built,) = Path("dist").resolve().glob("*.whl")
    return built


def check_files(session: nox.Session, built: Path) -> None:
    """Refuse a wheel that holds other files of the package than git does."""
    listed = session.run("git", "ls-files", "glimpse_lightning", *LINKS, external=True, silent=True)
    tracked = {name.removeprefix("glimpse_lightning/") for name in str(listed).split()} - set(LINKS)
    names = (name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name)
    held = {name.removeprefix("glimpse_lightning/") for name in names}
    if held != tracked:
        session.error(f"The wheel lacks {sorted(tracked - held)} and should not hold {sorted(held - tracked)}.")


def run_jobs(session: nox.Session, folder: Path) -> None:
    """Train, answer and measure, without a download."""
    with session.chdir(folder):
        for job in JOBS:
            session.run("glimpse-lightning", *job.split(), env={"HF_HUB_OFFLINE": "1"})
    if missing := [name for name in WRITTEN if not (folder / name).is_file()]:
        session.error(f"The jobs have not written {', '.join(missing)}.")


def run_quick_tests(session: nox.Session, folder: Path) -> None:
    """The quick part of the tests, which finds no package but the installed one."""
    shutil.copytree("tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("setup.cfg", folder)
    (folder / "conftest.py").write_text(INSTALLED)
    with session.chdir(folder):
        # Not `pytest` alone: processes that a test starts import it as a module below the current folder.
        session.run("python", "-m", "pytest", *QUICK, *session.posargs)


@nox.session
def editable(session: nox.Session) -> None:
    """Install as in the README, and see from another folder that mypy finds the package's types."""
    session.install("-c", CONSTRAINTS, "-e", ".")
    session.install("-c", CONSTRAINTS, "mypy")
    with tempfile.TemporaryDirectory() as elsewhere, session.chdir(elsewhere):
        session.run("python", "-c", "import glimpse_lightning.callbacks, glimpse_lightning.recipes")
        told = session.run("mypy", "-c", "import glimpse_lightning as gl; reveal_type(gl.PrunedVLM)", silent=True)
    if "glimpse_lightning.model.pruned_vlm.PrunedVLM" not in str(told):
        session.error(f"mypy does not see the package: {told}")


@nox.session
def site(session: nox.Session) -> None:
    """Build the documentation as a site, and look at every page in a headless Chromium, where there is one."""
    install(session, "docs", "test")
    session.env["NO_MKDOCS_2_WARNING"] = "1"
    session.run("mkdocs", "build", "--quiet")
    session.run("pytest", "-m", "browser", "tests/test_site.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """The page of `demo` in a headless Chromium, where there is one: asked, shown, refused."""
    install(session, "test")
    session.install("-c", CONSTRAINTS, "playwright")
    session.run("pytest", "-m", "browser", "tests/demo", *session.posargs)
