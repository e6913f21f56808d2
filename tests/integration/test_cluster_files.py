"""The cluster-launcher files, as Ray's own code reads them. Nothing is started and nothing is asked
of a network."""

import functools
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from driver_inputs import plan

from orchestrator.cluster.connection import NO_MASK
from orchestrator.cluster.environment import WORKER_ENVIRONMENT
from orchestrator.cluster.group import bundles_for

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
    assert environment == {**WORKER_ENVIRONMENT, NO_MASK: "1", "RAY_AUTH_MODE": "token"}
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
