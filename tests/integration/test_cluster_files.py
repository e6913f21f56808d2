"""The files by which others start a cluster. Those of Ray's launcher are read by Ray's own code;
Slurm's script is run with its commands played by this machine."""

import contextlib
import functools
import getpass
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import jsonschema
import psutil
import pytest
import yaml
from driver_inputs import plan
from variables import without_ray

from orchestrator.cli import main
from orchestrator.cluster.connection import NICENESS, NO_MASK
from orchestrator.cluster.environment import WORKER_ENVIRONMENT
from orchestrator.cluster.room import bundles_for
from orchestrator.config import load_experiment
from strategies import registry

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", "docs/cluster-aws.yaml"]
START_COMMANDS = ["head_start_ray_commands", "worker_start_ray_commands"]


def prepared(file):
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load((ROOT / file).read_text()))


def start_command(config, which):
    """The command that starts Ray: (the variables it exports, the words of `ray start`)."""
    (command,) = (command for command in config[which] if "ray start" in command)
    parts = [shlex.split(part) for part in command.split(";")]
    (exports,) = (words[1:] for words in parts if words[0] == "export")
    return dict(word.split("=", 1) for word in exports), parts[-1]


@pytest.mark.parametrize("file", FILES)
def test_ray_accepts_the_file(file):
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared(file))


@pytest.mark.parametrize("which", START_COMMANDS)
@pytest.mark.parametrize("file", FILES)
def test_ray_is_started_with_the_environment_of_a_worker(file, which):
    environment, start = start_command(prepared(file), which)
    cluster = {NO_MASK: "1", NICENESS: "0", "RAY_AUTH_MODE": "token"}
    assert environment == {**WORKER_ENVIRONMENT, **cluster}
    assert start[:2] == ["ray", "start"]


@pytest.mark.parametrize("file", FILES)
def test_the_head_and_the_others_agree_on_the_port(file):
    config = prepared(file)
    _, head = start_command(config, "head_start_ray_commands")
    _, worker = start_command(config, "worker_start_ray_commands")
    assert {"--head", "--port=6379", "--dashboard-port=8265"} <= set(head)
    assert "--address=$RAY_HEAD_IP:6379" in worker


@pytest.mark.parametrize("file", FILES)
def test_every_node_gets_all_that_installing_the_project_reads(file):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [
        pattern.rstrip("*")
        for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
    ]
    files = [
        "pyproject.toml",
        "constraints.txt",
        project["project"]["readme"],
        *project["project"]["license-files"],
    ]
    config = prepared(file)
    mounts = config["file_mounts"]
    assert {
        f"~/shard-orchestrator/{name}": name for name in packages + files
    }.items() <= mounts.items()
    for commands in (config["head_setup_commands"], config["worker_setup_commands"]):
        assert any(
            "pip install" in command and command.endswith(" ~/shard-orchestrator")
            for command in commands
        )


def test_the_local_cluster_keeps_all_of_its_nodes():
    config = prepared("cluster.yaml")
    (node_type,) = config["available_node_types"].values()
    assert (
        node_type["min_workers"]
        == node_type["max_workers"]
        == len(config["provider"]["worker_ips"])
    )


@pytest.mark.parametrize(
    ("ranks", "nodes"), [(1, {"gpu": 1}), (4, {"gpu": 1}), (8, {"gpu": 1}), (9, {})]
)
def test_a_layout_fits_one_gpu_node_of_aws_up_to_its_eight_gpus(ranks, nodes):
    """By the code with which Ray decides which nodes to add for a placement group, from the bundles
    that `submit` asks for."""
    from ray._private.gcs_utils import PlacementGroupTableData
    from ray.autoscaler._private import resource_demand_scheduler as scheduler
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
    from ray.core.generated.common_pb2 import Bundle, PlacementStrategy

    config = prepared("docs/cluster-aws.yaml")
    bundles = bundles_for(replace(plan(ranks), device="cuda"), "torch")
    assert bundles == [{"GPU": 1}] * ranks
    request = PlacementGroupTableData(
        strategy=PlacementStrategy.STRICT_PACK,
        bundles=[Bundle(unit_resources=bundle) for bundle in bundles],
    )
    demands, _ = scheduler.placement_groups_to_resource_demands([request])
    added, left = scheduler.get_nodes_for(
        config["available_node_types"],
        {},
        config["head_node_type"],
        config["max_workers"],
        demands,
        functools.partial(
            scheduler._default_utilization_scorer,
            node_availability_summary=NodeAvailabilitySummary({}),
        ),
    )
    assert dict(added) == nodes
    assert bool(left) == (not nodes)


def test_a_gpu_node_of_aws_is_there_when_submit_counts_gpus():
    assert prepared("docs/cluster-aws.yaml")["available_node_types"]["gpu"]["min_workers"] >= 1


# -- Slurm, one machine and Kubernetes

# Slurm's commands on one machine that plays every node.
SHIMS = {
    "scontrol": 'printf "node%d\\n" $(seq "$NODES")',
    "srun": """
while [[ $1 == --* ]]; do shift; done
if [[ $1 == hostname ]]; then echo 127.0.0.1; exit; fi
exec "$@" --num-cpus=2 --object-store-memory=100000000""",
}
SLURM = ROOT / "docs" / "slurm.sh"
AGENTS_S = 120  # until Ray's agents notice that their raylet has ended
PATIENCE_S = 400  # a start of Ray takes a minute where the machine is busy


@contextlib.contextmanager
def allocation(folder, nodes):
    """The environment of a job of Slurm's. At its end nothing of the job is left, come what may."""
    shims = folder / "bin"
    shims.mkdir()
    for name, text in SHIMS.items():
        (shims / name).write_text(f"#!/bin/bash\n{text}\n")
        (shims / name).chmod(0o755)
    job = str(20000 + os.getpid() % 10000)
    try:
        yield {
            **without_ray(),
            "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}",
            "NODES": str(nodes),
            "SLURM_JOB_ID": job,
            "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
            "ORCHESTRATOR_ENVIRONMENT": str(Path(sys.executable).parents[1]),
            "ORCHESTRATOR_RESULTS": str(folder / "results"),
        }
    finally:
        for process in processes_of(job):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)


def processes_of(job):
    """Those that a job of Slurm's has started, by their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == job:
                found.append(process)
    return found


def run_script(environment, words, folder):
    """Run Slurm's script. Returns its exit status and what it printed."""
    out = folder / "out"
    with out.open("w") as stream:
        script = subprocess.Popen(
            ["bash", SLURM, *words.split()],
            env=environment,
            cwd=folder,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            status = script.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            script.kill()
            pytest.fail(f"the script did not end:\n{out.read_text()}")
    return status, out.read_text()


@pytest.mark.ray
@pytest.mark.nodes
@pytest.mark.timeout(3 * PATIENCE_S + 100)
def test_the_slurm_script_runs_an_experiment_over_its_nodes_and_leaves_nothing(tmp_path):
    words = "--strategy tp2 --device cpu --input-len 16 --output-len 4 --max-concurrency 2"
    with allocation(tmp_path, nodes=2) as environment:
        for _ in range(3):  # Ray gives its own processes 30 s, which a busy machine may take
            status, printed = run_script(environment, words, tmp_path)
            if "Ray did not start" not in printed:
                break
        assert status == 0, printed
        assert list((tmp_path / "results").glob("*/comparison.arrow"))
        (manifest,) = (tmp_path / "results").glob("*/manifest.json")
        devices = json.loads(manifest.read_text())["topology"]
        assert len(devices) == 4, "both nodes, of two CPUs each, have joined"
        deadline = time.monotonic() + AGENTS_S
        while left := processes_of(environment["SLURM_JOB_ID"]):
            assert time.monotonic() < deadline, left
            time.sleep(0.5)


def test_the_slurm_script_ends_where_ray_does_not_start(tmp_path):
    with allocation(tmp_path, nodes=2) as environment:
        (tmp_path / "bin" / "srun").write_text(
            "#!/bin/bash\n[[ $* == *hostname* ]] && echo 127.0.0.1\n"
        )
        status, printed = run_script(environment, "--strategy tp2", tmp_path)
    assert (status, printed) == (1, "Ray did not start on node1\n")


def test_the_script_of_one_machine_gives_ray_what_it_understands(tmp_path):
    """`ray` is a shim that prints what it is given; Ray's own command line reads that."""
    from ray.scripts.scripts import start

    shims = tmp_path / "bin"
    shims.mkdir()
    (shims / "ray").write_text(
        '#!/bin/bash\nif [[ $1 == start ]]; then printf "%s\\n" "$@"; env | grep ^RAY_ >&2; '
        "else touch ~/.ray/auth_token; fi\n"
    )
    (shims / "ray").chmod(0o755)
    (tmp_path / ".ray").mkdir()
    done = subprocess.run(
        ["bash", ROOT / "docs" / "one-machine.sh", "--num-gpus=2"],
        env={"PATH": f"{shims}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    command, *words = done.stdout.splitlines()
    context = start.make_context(command, words)
    asked = {name: context.params[name] for name in ("head", "block", "port", "num_gpus")}
    assert asked == {"head": True, "block": True, "port": 6379, "num_gpus": 2}
    assert context.params["temp_dir"] == f"/tmp/ray-{getpass.getuser()}-6379"
    assert "RAY_AUTH_MODE=token" in done.stderr.split()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("file", ["slurm.sh", "one-machine.sh"])
def test_a_script_ends_no_ray_but_its_own(file):
    commands = [
        line for line in (ROOT / "docs" / file).read_text().splitlines() if not line.startswith("#")
    ]
    assert not any("ray stop" in line or "symmetric-run" in line for line in commands)


def test_the_manifest_of_kuberay_asks_for_what_the_project_is():
    manifest = yaml.safe_load((ROOT / "docs" / "kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    program, command, *flags = shlex.split(spec["entrypoint"])
    assert (program, command) == ("orchestrator", "submit")
    context = main.commands["submit"].make_context("submit", flags)
    experiment = load_experiment(None, {"strategy": context.params["strategy"]})
    cluster = spec["rayClusterSpec"]
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pinned
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    gpus = workers["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    ranks = max(parse_layout(name) for name in experiment.strategy)
    assert ranks <= gpus
    heads = cluster["headGroupSpec"]["template"]["spec"]
    assert heads["containers"][0]["image"] == container["image"]
    assert heads["containers"][0]["volumeMounts"][0]["mountPath"] == context.params["result_dir"]


def test_kuberay_knows_every_field_of_the_manifest():
    schema = json.loads((ROOT / "tests" / "support" / "kuberay_rayjob.json").read_text())
    spec = yaml.safe_load((ROOT / "docs" / "kuberay.yaml").read_text())["spec"]
    known = jsonschema.Draft7Validator(schema)
    assert not list(known.iter_errors(spec))
    spec["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = "2"
    (error,) = known.iter_errors(spec)
    assert "'minReplica' was unexpected" in error.message


def parse_layout(name):
    return math.prod(number for _, number in registry.parse(name))
