"""Ray's autoscaler starts the nodes that a study needs, and ends them when it is over.

Its nodes are Ray's own fake ones: real raylets, which the head's monitor starts as processes of this machine.
"""

import json
import subprocess
from pathlib import Path

import pytest

from study import store
from tests.nodes import ROOT, Nodes, names_below, wait_for
from tests.test_cluster import LONG, TWO, command
from tests.test_cluster import environment as environment  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
EMPTY = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


class Autoscaled(Nodes):
    """A head that trains nothing, and up to two workers of one CPU, which come and go with the work."""

    WORKERS = 0

    def head_options(self):
        """Every field is spelled out: Ray fills in what is missing only for the providers that it knows."""
        bounds = {"node_config": {}, "min_workers": 0}
        provider = {
            "type": "external",
            "module": FAKE,
            "gcs_address": self.address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,  # else Ray knows its nodes by their address, which is the same for all
            "disable_node_updaters": True,  # they come up by themselves, and not by ssh
        }
        config = {
            "cluster_name": "fake",
            "provider": provider,
            "auth": {},
            "max_workers": 2,
            "idle_timeout_minutes": 0.5,
            "upscaling_speed": 1.0,
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {**bounds, "resources": {"CPU": 0}, "max_workers": 0},
                "worker": {**bounds, "resources": {"CPU": 1}, "max_workers": 2},
            },
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **dict.fromkeys(EMPTY, ()),
        }
        file = Path(self.folder, "autoscaling.yaml")
        file.write_text(json.dumps(config))
        return (f"--autoscaling-config={file}",)

    def workers(self):
        """How many nodes live besides the head."""
        return names_below(self.processes[0]).count("raylet") - 1


@pytest.fixture
def nodes(environment):
    made = Autoscaled(environment | {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0"})
    yield made
    made.stop()


def test_a_study_takes_a_cluster_from_no_workers_to_two_and_back(nodes, environment, tmp_path):
    out = tmp_path / "study"
    assert nodes.workers() == 0
    options = (*TWO, *LONG, "--address", nodes.address, "--max-concurrent", "1")
    process = subprocess.Popen(command(out, *options), cwd=ROOT, env=environment)
    wait_for(lambda: list(out.glob("checkpoints/*/epoch-000002")), process, 600)
    assert nodes.workers() == 2
    assert process.wait(600) == 0
    (row,) = store.read(out).trials.to_pylist()
    assert (row["state"], row["epochs"], row["workers"]) == ("COMPLETE", 4, 2)
    wait_for(lambda: nodes.workers() == 0, nodes.processes[0], 300)
