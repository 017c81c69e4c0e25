"""Sessions: ``nox`` runs lint, types, docs and tests; ``nox -l`` lists all."""

from __future__ import annotations

import tempfile
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


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it elsewhere, and use it without a checkout."""
    folder = session.create_tmp()
    for old in Path(folder).glob("*.whl"):
        old.unlink()
    session.run("pip", "wheel", "--no-deps", "--wheel-dir", folder, ".")
    (built,) = Path(folder).glob("glimpse_lightning-*.whl")
    session.install("-c", CONSTRAINTS, str(built))
    session.chdir(folder)
    session.run("glimpse-lightning", "recipes", "list")
    session.run("glimpse-lightning", "fit", "--config", "vip_kl", "--print_config", silent=True)


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
    session.run("pytest", "-m", "site", "tests/test_site.py", *session.posargs)
