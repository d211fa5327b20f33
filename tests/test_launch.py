"""The scripts of launch/ are sound shell, print exactly what they would run, and restart what they should."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
CLOUD = {"ZONE": "us-west4-a", "PROJECT": "lab"}
TPU = {**CLOUD, "NAME": "seem", "WORKDIR": "/mnt/shared/my run"}
GKE = {**CLOUD, "CLUSTER": "pods", "NAME": "seem", "IMAGE": "reg/seem:1", "WORKDIR": "/mnt/run"}


def script(name, *arguments, **environment):
    """(exit code, commands as lists of words, what it said) of a dry run."""
    base = {"PATH": os.environ["PATH"], "DRY_RUN": "1"}
    done = subprocess.run(
        [LAUNCH / name, *arguments]
        if name.endswith(".sh")
        else ["bash", LAUNCH / name, *arguments],
        cwd=ROOT,
        env=base | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, [shlex.split(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path):
    program = Path(sys.executable).with_name("shellcheck")
    program = program if program.is_file() else shutil.which("shellcheck")
    if not program:
        pytest.skip("shellcheck is not installed (pip install -r requirements-dev.txt)")
    done = subprocess.run(
        [program, "-x", path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_tpu_slice_is_asked_for_installed_used_and_given_back():
    where = ["--zone=us-west4-a", "--project=lab"]
    code, (create,), _ = script("tpu_vm.sh", "create", **TPU, SPOT="1")
    assert code == 0
    assert create == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "seem", "--node-id=seem", *where,
        "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
    ]  # fmt: skip
    _, (archive, copy, install), _ = script("tpu_vm.sh", "install", **TPU, MOUNT="sudo mount /mnt")
    assert archive[:1] == ["git"]
    assert copy == [
        "gcloud", "compute", "tpus", "tpu-vm", "scp", "/tmp/seem_jax.tar.gz", "seem:/tmp/", *where,
        "--worker=all",
    ]  # fmt: skip
    assert install[-1].startswith("--command=sudo mount /mnt && tar -xzf /tmp/seem_jax.tar.gz")
    assert "-r requirements.txt -c launch/constraints.txt 'jax[tpu]'" in install[-1]
    _, (run,), _ = script("tpu_vm.sh", "run", "--config.seed=3", **TPU)
    assert run[:-1] == [
        "gcloud",
        "compute",
        "tpus",
        "tpu-vm",
        "ssh",
        "seem",
        *where,
        "--worker=all",
    ]
    remote = shlex.split(run[-1].removeprefix("--command="))
    at = remote.index("launch/restart.sh")
    assert remote[at + 1 : remote.index(">")] == [
        "python3", "-m", "seem_jax.train", "--config=configs/focalt.py",
        "--workdir=/mnt/shared/my run", "--distributed", "--config.seed=3",
    ]  # fmt: skip
    _, (delete,), _ = script("tpu_vm.sh", "delete", **TPU)
    assert delete[3:6] == ["queued-resources", "delete", "seem"]
    assert "--force" in delete


def test_a_job_on_gke_restarts_on_the_codes_that_ask_for_it():
    code, (run,), _ = script("gke.sh", "run", "--config.seed=3", **GKE)
    assert code == 0
    assert run[:3] == ["xpk", "workload", "create"]
    assert {
        "--restart-on-exit-codes=75,76",
        "--max-restarts=100",
        "--docker-image=reg/seem:1",
    } <= set(run)
    command = shlex.split(run[-1].removeprefix("--command="))
    assert command[:3] == ["python3", "-m", "seem_jax.train"]
    assert command[-2:] == ["--distributed", "--config.seed=3"]
    _, (build, push), _ = script("gke.sh", "image", **GKE)
    assert build[:4] == ["docker", "build", "--build-arg", "VARIANT=tpu"]
    assert push == ["docker", "push", "reg/seem:1"]


def test_slurm_starts_one_process_a_node_with_all_of_its_gpus():
    code, (srun,), _ = script("slurm.sbatch", "--config.seed=3", WORKDIR="/run", VENV="/env")
    assert code == 0
    assert srun == [
        "srun", "--kill-on-bad-exit=0", "/env/bin/python", "-m", "seem_jax.train",
        "--config=configs/focalt.py", "--workdir=/run", "--distributed", "--config.seed=3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "requeued"), [(0, False), (1, False), (75, True), (76, True), (137, True)]
)
def test_slurm_puts_the_job_back_when_it_may_go_on(tmp_path, ending, requeued):
    for name, text in (("srun", f"exit {ending}"), ("scontrol", 'echo "$@" > requeued')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "launch").symlink_to(LAUNCH)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKDIR": "/run", "SLURM_JOB_ID": "17",
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch"], env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == ending
    assert (tmp_path / "requeued").exists() == requeued


def test_one_machine_needs_one_process_and_a_trial_cluster_several():
    _, (alone,), _ = script("machine.sh", WORKDIR="/run", PYTHON="python3")
    assert alone[0].endswith("launch/restart.sh")
    assert alone[1:] == [
        "python3", "-m", "seem_jax.train", "--config=configs/focalt.py", "--workdir=/run",
    ]  # fmt: skip
    _, (_, *several), _ = script("machine.sh", WORKDIR="/run", PYTHON="python3", PROCESSES="2")
    assert sorted(command[-1] for command in several) == ["--process_id=0", "--process_id=1"]
    assert all(command[-2] == "--num_processes=2" for command in several)


TRAINING = """#!/bin/bash
trap 'sleep 0.5; touch "$FOLDER/saved$$"; exit 75' TERM
touch "$FOLDER/up$$"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("processes", ["", "2"])
def test_sigterm_to_the_script_of_one_machine_reaches_training(tmp_path, processes):
    """Which takes half a second to save; its code comes through."""
    program, count = tmp_path / "python", int(processes or 1)
    program.write_text(TRAINING)
    program.chmod(0o755)
    given = {"PYTHON": str(program), "WORKDIR": "/run", "PROCESSES": processes}
    child = subprocess.Popen(
        [LAUNCH / "machine.sh"], env={**os.environ, **given, "FOLDER": str(tmp_path)}
    )
    while len(list(tmp_path.glob("up*"))) < count:
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=30) == 75
    assert len(list(tmp_path.glob("saved*"))) == count


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke.sh", "machine.sh", "slurm.sbatch"])
def test_a_missing_variable_is_named(name):
    code, commands, said = script(name, "run")
    assert code == 2
    assert not commands
    assert "error: set " in said


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke.sh"])
def test_an_unknown_action_lists_the_known_ones(name):
    code, commands, said = script(name, "crate", **TPU, **{"CLUSTER": "pods"})
    assert (code, commands) == (2, [])
    assert "create" in said or "cluster" in said


def test_the_container_knows_its_three_variants():
    text = (LAUNCH / "Dockerfile").read_text()
    for line in ('cpu) extra="" ;;', 'cuda) extra="jax[cuda13]" ;;', 'tpu) extra="jax[tpu]" ;;'):
        assert line in text
    assert "COPY requirements.txt launch/constraints.txt ./" in text
    assert "pip install --no-cache-dir -r requirements.txt -c constraints.txt" in text
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "data", "runs"} <= set(ignored)


def test_every_requirement_has_a_pin_within_its_range():
    def requirements(path):
        lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
        found = [Requirement(line) for line in lines if line]
        return {canonicalize_name(each.name): each.specifier for each in found}

    pins = requirements(LAUNCH / "constraints.txt")
    for name, wanted in requirements(ROOT / "requirements.txt").items():
        (pin,) = pins[name]
        assert pin.operator == "=="
        assert pin.version in wanted, name


def restart(tmp_path, codes, **environment):
    """(exit code, times run) of restart.sh around a program that ends with one code after the other."""
    count = tmp_path / "count"
    program = (
        f'echo x >> {count}; n=$(wc -l < {count}); set -- {codes}; shift $((n - 1)); exit "$1"'
    )
    done = subprocess.run(
        [LAUNCH / "restart.sh", "bash", "-c", program],
        env={**os.environ, "RESTART_SECONDS": "0", **environment},
        timeout=60,
        check=False,
    )
    return done.returncode, len(count.read_text().splitlines())


@pytest.mark.parametrize(
    ("codes", "want"),
    [
        ("0", (0, 1)),
        ("75 76 75 0", (0, 4)),
        ("76 1", (1, 2)),
        ("2 0", (2, 1)),
        ("134 137 0", (0, 3)),
    ],
)
def test_restart_goes_on_while_the_code_says_so(tmp_path, codes, want):
    assert restart(tmp_path, codes) == want


def test_restart_gives_up_after_its_limit(tmp_path):
    assert restart(tmp_path, "75 75 75 75 75", MAX_RESTARTS="2") == (75, 3)


def test_restart_passes_sigterm_on_waits_and_does_not_start_again(tmp_path):
    """The command takes a second to save; its code comes through."""
    program = f'trap "sleep 1; echo saved > {tmp_path}/saved; exit 75" TERM; touch {tmp_path}/up; while :; do sleep 0.1; done'
    child = subprocess.Popen([LAUNCH / "restart.sh", "bash", "-c", program])
    while not (tmp_path / "up").exists():
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=30) == 75
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_restart_told_to_stop_between_two_starts_does_not_start_again(tmp_path):
    child = subprocess.Popen(
        [LAUNCH / "restart.sh", "bash", "-c", f"echo x >> {tmp_path}/count; exit 75"],
        env={**os.environ, "RESTART_SECONDS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in child.stderr:
        if "starting again" in line:
            child.send_signal(signal.SIGTERM)
            break
    child.communicate(timeout=30)
    assert child.returncode == 75
    assert (tmp_path / "count").read_text() == "x\n"
