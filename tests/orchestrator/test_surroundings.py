"""What two manifests say of where results were made: the same node or another, and what differs."""

from two_results_inputs import GPU, MANIFEST, OTHER_GPU

from orchestrator.analysis.comparing.surroundings import (
    Difference,
    Unknown,
    another_node,
    differences,
    surroundings_of,
    unknown,
)


def with_(**changed):
    return {**MANIFEST, **changed}


def without(*names):
    return {name: value for name, value in MANIFEST.items() if name not in names}


def block(host="vm", *uuids):
    return {"started_at": "2030-01-01T00:00:00", "host": host, "gpu_uuids": list(uuids)}


def differs(**changed):
    return {(one.what, one.base, one.new) for one in differences(MANIFEST, with_(**changed))}


# -- another node


def test_hosts_of_one_name_are_told_apart_by_their_gpus():
    found, said = another_node(MANIFEST, with_(gpus=[OTHER_GPU]))
    assert found is True
    assert (
        said == "another node: yes, GPUs GPU-aaaaaaaa in the base, GPU-cccccccc in the new result"
    )
    assert another_node(MANIFEST, MANIFEST) == (False, "another node: no, the same GPUs")


def test_hosts_of_two_names_that_have_a_gpu_in_common_are_one_node():
    renamed = with_(host={"name": "container-7"}, gpus=[OTHER_GPU, GPU])
    found, said = another_node(MANIFEST, renamed)
    assert found is False
    assert said.startswith("another node: no, but other GPUs")


def test_a_result_of_several_blocks_is_of_every_node_that_one_of_them_ran_on():
    here = with_(blocks=[block("vm", "GPU-1", "GPU-2")])
    both = with_(blocks=[block("vm", "GPU-1", "GPU-2"), block("vm", "GPU-3", "GPU-4")])
    assert another_node(here, here)[0] is False
    assert another_node(here, both)[0] is True
    assert another_node(both, here)[0] is True
    assert another_node(both, both)[0] is False


def test_without_uuids_the_cpus_tell_two_nodes_apart_but_never_make_them_one():
    def on(cpu_model):
        return with_(gpus=[{"name": "H200"}], host={"name": "vm", "cpu_model": cpu_model})

    assert another_node(on("Xeon"), on("Xeon")) == (
        None,
        "another node: unknown, the manifests do not both say which GPUs ran: "
        "both have Xeon, as others may",
    )
    assert another_node(on("Xeon"), on("EPYC")) == (
        True,
        "another node: yes, Xeon in the base, EPYC in the new result",
    )
    assert another_node(on("Xeon"), {})[0] is None


def test_the_name_of_a_host_says_nothing_of_the_node():
    def called(host):
        return with_(gpus=[], host={"name": host, "cpu_model": "Xeon"})

    assert another_node(called("vm"), called("rack-7"))[0] is None


def test_one_pair_of_experiments_on_another_node_decides_for_all():
    there = with_(gpus=[OTHER_GPU])
    found = surroundings_of([(MANIFEST, MANIFEST), ({}, {}), (MANIFEST, there)])
    assert found.another_node is True
    assert surroundings_of([(MANIFEST, MANIFEST), ({}, {})]).another_node is None


# -- what is different


def test_differences_name_the_field():
    newer = with_(
        versions={"torch": "2.12", "numpy": "2", "scipy": "1"},
        gpus=[GPU, GPU],
        experiment={"seed": 1},
    )
    assert set(differences(MANIFEST, newer)) == {
        Difference("versions.torch", "2.11", "2.12"),
        Difference("versions.scipy", "-", "1"),
        Difference("work.seed", "0", "1"),
        Difference("gpus.count", "1", "2"),
    }


def test_gpus_that_are_not_alike_are_all_named():
    found = differences(MANIFEST, with_(gpus=[GPU, {**GPU, "power_limit_w": 500.0}]))
    assert Difference("gpus.power_limit_w", "700.0", "700.0, 500.0") in found


def test_clocks_power_limits_and_the_variables_of_nccl_and_cuda_are_compared():
    capped = {**GPU, "power_limit_w": 500.0, "max_sm_clock_mhz": 1500, "memory_clock_mhz": 2619}
    assert differs(gpus=[capped]) == {
        ("gpus.power_limit_w", "700.0", "500.0"),
        ("gpus.max_sm_clock_mhz", "1980", "1500"),
        ("gpus.memory_clock_mhz", "3201", "2619"),
    }
    assert differs(gpus=[{**GPU, "sm_clock_mhz": 345}]) == set()  # of the moment
    assert differs(nccl_version="2.29", nvls="on") == {
        ("nccl_version", "2.28.9", "2.29"),
        ("nvls", "off", "on"),
    }
    changed = {"NCCL_ALGO": "Tree", "CUDA_MODULE_LOADING": "LAZY"}
    assert differs(environment=changed) == {
        ("environment.NCCL_ALGO", "Ring", "Tree"),
        ("environment.CUDA_MODULE_LOADING", "-", "LAZY"),
    }


def test_how_requests_arrive_and_from_where_is_part_of_the_work_and_comes_first():
    asked = {"request_rate": 8.0, "burstiness": 0.5, "dataset_path": "b.jsonl", "seed": 0}
    found = surroundings_of(
        [(MANIFEST, with_(experiment={**asked, "min_duration": 8.0}, driver_version="590"))]
    )
    assert [one.what for one in found.differences] == [
        "work.request_rate",
        "work.burstiness",
        "work.dataset_path",
        "work.min_duration",
        "driver_version",
    ]


def test_another_number_of_requests_of_a_cell_is_other_work():
    base, new = (with_(num_prompts={"short.c8": count}) for count in (24, 48))
    assert differences(base, new) == [Difference("work.num_prompts.short.c8", "24", "48")]


def test_what_changes_by_itself_is_no_difference():
    assert differs(started_at="later", updated_at="later", name="b") == set()


def test_a_switch_that_is_left_to_the_engine_is_no_difference_to_a_version_without_it():
    def asked(**fields):
        return with_(experiment={"seed": 0, **fields})

    assert differences(asked(), asked(attention="auto", batching="auto")) == []
    assert differences(asked(attention="auto"), asked(attention="eager")) == [
        Difference("work.attention", "-", "eager")
    ]


# -- what is unknown


def test_what_an_older_manifest_does_not_say_is_unknown_and_no_difference():
    old = without("environment", "nvls") | {"gpus": [{"name": "H200"}]}
    assert differences(old, MANIFEST) == []
    assert unknown(old, MANIFEST) == [
        Unknown("nvls", ("base",)),
        Unknown("environment", ("base",)),
        Unknown("gpus.memory_bytes", ("base",)),
        Unknown("gpus.max_sm_clock_mhz", ("base",)),
        Unknown("gpus.memory_clock_mhz", ("base",)),
        Unknown("gpus.power_limit_w", ("base",)),
    ]
    assert Unknown("nvls", ("base", "new")) in unknown(old, old)
    assert unknown(MANIFEST, MANIFEST) == []


def test_of_cpus_nothing_is_asked_that_only_gpus_have():
    cpu = {"device": "cpu", "versions": {}, "host": {"name": "a"}, "environment": {}}
    assert [one.what for one in unknown(cpu, cpu)] == ["git_commit"]


def test_changes_that_no_commit_holds_are_said_of_each_side():
    dirty, before = with_(git_dirty=True), with_(git_commit="abc+")
    assert surroundings_of([(MANIFEST, dirty)]).dirty == ["new"]
    assert surroundings_of([(before, dirty)]).dirty == ["base", "new"]
    assert surroundings_of([(MANIFEST, with_(git_dirty=False))]).dirty == []


def test_the_work_of_an_import_is_unknown_and_no_difference():
    asked = {"strategy": ["tp2"], "scenario": ["short"], "max_concurrency": [2]}
    imported = with_(imported={"format": "vllm-bench"}, experiment=asked)
    found = unknown(MANIFEST, imported)
    assert Unknown("work", ("new",)) in found
    assert not [one for one in differences(MANIFEST, imported) if one.what.startswith("work.")]
