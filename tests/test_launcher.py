"""The doctor finds nothing wrong with launcher files that are filled in, and names every planted mistake."""

import contextlib
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from botocore.loaders import Loader
from botocore.model import ServiceModel
from hypothesis import given
from hypothesis import strategies as st
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.core.generated.autoscaler_pb2 import ResourceRequest, ResourceRequestByCount

from cluster import doctor, providers
from cluster.findings import CheckError, run_checks, unknown_keys
from cluster.launcher import TOKEN, check_file
from study import run

FILES = Path(__file__).parent.parent / "cluster"
LAUNCHERS = ("gpu.yaml", "gcp.yaml", "onprem.yaml", "kuberay.yaml", "slurm.sh")

FILLED = {
    "gpu.yaml": {
        "REPLACE-WITH-YOUR-INSTANCE-PROFILE": "mmjsd-study-worker",
        "REPLACE-WITH-THE-HEADS-INSTANCE-PROFILE": "mmjsd-study-head",
    },
    "gcp.yaml": {
        "REPLACE-WITH-YOUR-PROJECT": "studies-1234",
        "REPLACE-WITH-YOUR-SERVICE-ACCOUNT": "study@studies-1234.iam.gserviceaccount.com",
    },
    "onprem.yaml": {
        "REPLACE-WITH-THE-HEAD": "192.0.2.1",
        "REPLACE-WITH-A-WORKER": "192.0.2.2",
        "REPLACE-WITH-YOUR-USER": "ada",
    },
    "kuberay.yaml": {
        "REPLACE-WITH-YOUR-BUCKET": "studies",
        "REPLACE-WITH-YOUR-SERVICE-ACCOUNT": "study",
        "REPLACE-WITH-YOUR-IMAGE": "registry.example/mmjsd-study:1",
    },
    "slurm.sh": {"REPLACE-WITH-YOUR-ACCOUNT": "lab", "REPLACE-WITH-A-PARTITION": "gpu"},
}
"""What a user replaces before the first `ray up`."""


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """A user with a token, a key, credentials of both clouds and the packages that talk to them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in os.environ:
        if name.startswith("AWS_") or name == "GOOGLE_APPLICATION_CREDENTIALS":
            monkeypatch.delenv(name)
    for path in (
        TOKEN,
        "~/.ssh/id_ed25519",
        "~/.aws/credentials",
        "~/.config/gcloud/application_default_credentials.json",
    ):
        file = Path(path).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(64 * "a")
        file.chmod(0o600)
    (tmp_path / "packages" / "googleapiclient").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "packages")


def filled(tmp_path, name, *changes):
    text = (FILES / name).read_text()
    for old, new in [*FILLED[name].items(), *changes]:
        assert old in text, old
        text = text.replace(old, new)
    file = tmp_path / name
    file.write_text(text)
    return file


def problems(file):
    return [f"{finding.check}: {problem}" for finding in check_file(file) for problem in finding.problems]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_filled_in_is_well(tmp_path, name):
    assert problems(filled(tmp_path, name)) == []


@pytest.mark.parametrize("name", LAUNCHERS)
def test_as_it_comes_lacks_what_has_to_be_replaced_and_nothing_else(name):
    found = problems(FILES / name)
    assert {each.partition(":")[0] for each in found} == {"placeholders"}
    text = " ".join(found)
    assert all(placeholder in text for placeholder in FILLED[name])


MISTAKES = {
    "gpu.yaml": {
        "typo inside a node config": ("InstanceType: m7i", "InstanceTyp: m7i", "did you mean InstanceType?"),
        "typo deep inside a node config": ("VolumeSize: 150", "VolumSize: 150", "did you mean VolumeSize?"),
        "an instance that is not": ("g6.xlarge", "g6.xlarg", "InstanceType cannot be 'g6.xlarg'"),
        "a head without rights": (
            "      IamInstanceProfile: {Name: mmjsd-study-head}\n",
            "",
            "head has no IamInstanceProfile, and the role that Ray would make",
        ),
        "a newer GPU without its driver": (
            "g6.xlarge  # one L4 with 24 GB\n      ImageId: resolve:ssm:/aws/service/deeplearning/ami/x86_64/"
            "base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
            "g7e.2xlarge\n      ImageId: resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/ami-id",
            "spot has a GPU, but its image brings no driver",
        ),
        "a market that is not": ("MarketType: spot", "MarketType: spott", "did you mean 'spot'?"),
        "a number as text": ("VolumeSize: 60", 'VolumeSize: "60"', "expected integer"),
        "typo of a launcher's own": ("idle_timeout_minutes", "idle_timeout_minute", "was unexpected"),
        "a key twice": ("max_workers: 4\nidle", "max_workers: 4\nmax_workers: 40\nidle", "stands twice"),
        "min above max": (
            "min_workers: 0\n    max_workers: 2",
            "min_workers: 3\n    max_workers: 2",
            "min_workers 3 is more than its max_workers 2",
        ),
        "a type above the cluster": ("max_workers: 2", "max_workers: 20", "more than the cluster's"),
        "a head that is no type": ("head_node_type: head", "head_node_type: haed", "head_node_type"),
        "no token": ("  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "brings no token"),
        "token off on workers": (
            "export RAY_AUTH_MODE=token && ulimit -n 65536 &&\n    ray start --address",
            "ulimit -n 65536 &&\n    ray start --address",
            "worker_start_ray_commands lack RAY_AUTH_MODE=token",
        ),
        "a port open to the world": (
            "    GroupName: mmjsd-study",
            "    IpPermissions: [{FromPort: 8265, ToPort: 8265, IpRanges: [{CidrIp: 0.0.0.0/0}]}]",
            "ports 8265-8265 are open to the world",
        ),
        "Ray's own security group": ("    GroupName: mmjsd-study", "    {}", "no security group"),
        "an open dashboard": ("host=127.0.0.1", "host=0.0.0.0", "opens the dashboard"),
        "a GPU without a resource": (
            "{CPU: 4, GPU: 1}",
            "{CPU: 4, GPU: 0}",
            "has a GPU that resources do not name",
        ),
        "a resource without a GPU": ("g6.xlarge", "m7i.xlarge", "resources name 1 GPU, m7i.xlarge has 0"),
        "no image": (
            "resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
            "latest_dlami",
            "has no ImageId",
        ),
        "an image without a driver": (
            "service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu",
            "service/canonical/ubuntu/server",
            "brings no driver",
        ),
        "a small disk": ("VolumeSize: 150", "VolumeSize: 30", "a disk of 30 GB is too small"),
        "a zone elsewhere": (
            "region: us-west-2",
            "region: us-west-2\n  availability_zone: us-east-1a",
            "does not lie in region",
        ),
        "a region that is not": ("region: us-west-2", "region: us-wset-2", "'us-wset-2' is no region of AWS"),
        "a secret key in a command": (
            "export RAY_AUTH_MODE=token",
            "export AWS_SECRET_ACCESS_KEY='wJalrXUtnFEMI/K7MDENG' RAY_AUTH_MODE=token",
            "holds a secret",
        ),
        "a session's token in a command": (
            "setup.sh boto3]",
            "setup.sh && AWS_SESSION_TOKEN=IQo]",
            "a secret",
        ),
        "a key in the file": ("setup.sh boto3]", "setup.sh boto3, AKIAIOSFODNN7EXAMPLE]", "holds a secret"),
        "an unpinned environment": (
            "[bash ~/mmjsd-study/cluster/setup.sh]",
            "[pip install ray]",
            "install no pinned environment",
        ),
        "a file that is not": ("study: study\n", "study: studdy\n", "studdy"),
        "code that stays behind": ("  ~/mmjsd-study/analysis: analysis\n", "", "lacks analysis"),
        "workers that do not join": (
            "ray start --address=$RAY_HEAD_IP:6379",
            "ray start",
            "worker_start_ray_commands lack 'ray start --address=$RAY_HEAD_IP:PORT'",
        ),
        "another port": ("--port=6379", "--port=6380", "look for the head at port 6379"),
        "no autoscaling": (" --autoscaling-config=~/ray_bootstrap_config.yaml", "", "no worker ever starts"),
        "an unknown provider": ("type: aws", "type: azur", "provider.type is 'azur'"),
    },
    "gcp.yaml": {
        "typo in GCP's node config": ("machineType: g2", "machinetype: g2", "did you mean machineType?"),
        "a machine that is not": (
            "g2-standard-4  #",
            "g2-standart-4  #",
            "machineType cannot be 'g2-standart-4'; did you mean 'g2-standard-4'?",
        ),
        "a GPU that Ray does not know": ("{CPU: 4, GPU: 1}", "{CPU: 4}", "that resources do not name"),
        "no zone": ("  availability_zone: us-west1-a\n", "", "provider.availability_zone is missing"),
        "an old driver": ("with-nvidia-580", "with-nvidia-570", "driver 570 is too old"),
        "a GPU that would migrate": ("          onHostMaintenance: TERMINATE\n", "", "onHostMaintenance"),
    },
    "onprem.yaml": {
        "a machine twice": ("192.0.2.2", "192.0.2.1", "stands twice"),
        "more workers than machines": ("max_workers: 1", "max_workers: 3", "there are 1 worker_ips"),
        "fewer workers than machines": ("[192.0.2.2]", "[192.0.2.2, 192.0.2.3]", "there are 2 worker_ips"),
        "a key that is not there": ("id_ed25519", "id_rsa", "does not exist"),
    },
    "kuberay.yaml": {
        "typo in a RayJob": ("shutdownAfterJobFinishes", "shutdownAfterJobFinish", "did you mean"),
        "typo in requests": (
            'requests: {cpu: "4", memory: 16Gi',
            'requests: {cpu: "4", memroy: 16Gi',
            "gpu: requests has no field 'memroy'; did you mean memory?",
        ),
        "a disk by another name": ("ephemeral-storage: 40Gi", "storage: 40Gi", "has no field 'storage'"),
        "too small a disk": ("ephemeral-storage: 40Gi", "ephemeral-storage: 4000M", "expected 30Gi or more"),
        "a pod without GPU": ('nvidia.com/gpu: "1", ', "", "no trial would get a GPU"),
        "a request without a limit": (
            'limits: {cpu: "4", memory: 16Gi, nvidia.com/gpu: "1", ',
            "limits: {",
            "is 1 in requests and 0 in",
        ),
        "a head that claims a GPU": ('num-cpus: "0"', 'num-gpus: "1"', "num-gpus 1 claims GPUs"),
        "a load balancer": ("serviceType: ClusterIP", "serviceType: LoadBalancer", "opens the dashboard"),
        "a RayJob without token": ("mode: token", "mode: disabled", "not token"),
        "replicas out of bounds": ("minReplicas: 0", "minReplicas: 5", "minReplicas <= replicas"),
        "results on a pod": ("s3://studies", "/tmp", "results would go with the pods"),
    },
    "slurm.sh": {
        "typo of sbatch": ("--gpus-per-node=1", "--gpu-per-node=1", "did you mean --gpus-per-node?"),
        "tasks of a node by another name": ("--ntasks-per-node=1", "--tasks-per-node=4", "expected 1"),
        "a time that is none": ("--time=08:00:00", "--time=abc", "--time cannot be 'abc'; expected minutes"),
        "a token for all": ("umask 077", "umask 022", "could read the token"),
        "bad bash": ("end() {", "end( {", "syntax error"),
    },
}
"""By file: what is replaced by what, and what the doctor has to say of it."""


@pytest.mark.parametrize(("name", "mistake"), [(name, each) for name in MISTAKES for each in MISTAKES[name]])
def test_names_the_mistake(tmp_path, name, mistake):
    old, new, words = MISTAKES[name][mistake]
    found = problems(filled(tmp_path, name, (old, new)))
    assert any(words in each for each in found), found


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("kuberay.yaml", (("--address auto", "--address=auto"), ("--out s3://", "--out=s3://"))),
        ("kuberay.yaml", (("--address auto", "--address 'auto'"),)),
        ("kuberay.yaml", (("--address auto", '--address="auto"'),)),
        ("kuberay.yaml", (("ephemeral-storage: 40Gi", "ephemeral-storage: 1Ti"),)),
        ("kuberay.yaml", (("ephemeral-storage: 40Gi", "ephemeral-storage: 4e10"),)),
        ("kuberay.yaml", (('requests: {cpu: "4", memory: 16Gi, nvidia.com/gpu: "1", ', "requests: {"),)),
        (
            "kuberay.yaml",
            (('requests: {cpu: "4", memory: 16Gi, nvidia.com/gpu: "1"', "requests: {nvidia.com/gpu: 1"),),
        ),
        ("kuberay.yaml", (('num-cpus: "0"', 'num-cpus: "0"\n        num-gpus: "0"'),)),
        ("slurm.sh", (("--nodes=", "-N "), ("--time=", "-t "), ("--cpus-per-task=", "-c"))),
        ("slurm.sh", (("--time=08:00:00", "--time=08:00:00 # sinfo --long shows the limit, -t 3 is short"),)),
        ("slurm.sh", (("--mem=48G", "--mem=48G --constraint='a100 -b'"),)),
        ("slurm.sh", (("--gpus-per-node=1", "--gpus=2"), ("--mem=48G\n#SBATCH --time", "--mem=48G --time"))),
        ("slurm.sh", (("--gpus-per-node=1", "--tres-per-task=gres/gpu:1"),)),
        ("slurm.sh", (("--requeue", "--licenses=scratch:1 -M gpu --hold --no-kill --get-user-env"),)),
        (
            "slurm.sh",
            (("--requeue", "--threads-per-core=1 --gres-flags=enforce-binding -s --deadline=now+9hour"),),
        ),
        ("slurm.sh", (("--requeue", "--a-plugin-of-the-site=1"),)),
        *(("slurm.sh", (("08:00:00", time),)) for time in ("480", "480:30", "1-8", "1-8:0:0", "UNLIMITED")),
        ("slurm.sh", (("--ntasks-per-node=1", "--tasks-per-node=1"),)),
        ("slurm.sh", (("--requeue", "--container-image=a.sqsh --container-mounts=/a:/b --container-env=A"),)),
        ("slurm.sh", (("--requeue", "--container-name=a --container-workdir=/a --container-mount-home"),)),
        ("slurm.sh", (("--requeue", "--no-container-mount-home --container-writable"),)),
        ("slurm.sh", (("umask 077", "umask 0077 # private"),)),
        (
            "kuberay.yaml",
            (("tolerations:", f"hostAliases: []\n{12 * ' '}brandNew: 1\n{12 * ' '}tolerations:"),),
        ),
        (
            "kuberay.yaml",
            (("- name: ray-head", f"- name: ray-head\n{14 * ' '}terminationMessagePolicy: File"),),
        ),
        ("gcp.yaml", (("- boot: true", f"- boot: true\n{10 * ' '}diskEncryptionKey: {{}}"),)),
        ("gcp.yaml", (("machineType: g2", "networkPerformanceConfig: {}\n      machineType: g2"),)),
        ("kuberay.yaml", (("ephemeral-storage: 40Gi}", "ephemeral-storage: 40Gi, hugepages-2Mi: 4Mi}"),)),
        (
            "gpu.yaml",
            (("ray start --head", 'AWS_SESSION_TOKEN="$OWN" AWS_SECRET_ACCESS_KEY=$KEY ray start --head'),),
        ),
        ("gpu.yaml", (("{CPU: 4, GPU: 1}", "{CPU: 4}"),)),
        ("gpu.yaml", (("{CPU: 4, GPU: 1}", "{}"),)),
        ("gpu.yaml", (("    resources: {CPU: 4, GPU: 1}\n", ""),)),
        ("gpu.yaml", (("start --address=$RAY_HEAD_IP:6379", 'start --address="${RAY_HEAD_IP}:6379"'),)),
        ("gpu.yaml", (("g6.xlarge", "g7e.2xlarge"),)),
        ("gpu.yaml", (("GPU: 1}", "GPU: 8}"), ("g6.xlarge", "p6-b200.48xlarge"))),
        ("gcp.yaml", (("g2-standard-4", "g4-standard-48"),)),
        ("gcp.yaml", (("e2-standard-2", "n2-custom-2-8192"),)),
        ("gcp.yaml", (("e2-standard-2", "n9-newkind-2"),)),
        ("gcp.yaml", (("GPU: 1}", "GPU: 8}"), ("g2-standard-4", "a4-highgpu-8g"))),
    ],
)
def test_takes_options_in_every_way_that_their_program_does(tmp_path, name, changes):
    text = filled(tmp_path, name).read_text()
    assert all(old in text for old, _ in changes)
    assert problems(filled(tmp_path, name, *changes)) == []


def test_names_what_the_user_lacks(tmp_path, monkeypatch):
    file = filled(tmp_path, "gpu.yaml")
    token = Path(TOKEN).expanduser()
    token.chmod(0o644)
    assert any("can be read by other users" in each for each in problems(file))
    token.write_text("short")
    assert any("fewer than 32 characters" in each for each in problems(file))
    token.unlink()
    assert any("ray get-auth-token" in each for each in problems(file))
    Path("~/.aws/credentials").expanduser().unlink()
    assert any("aws configure" in each for each in problems(file))
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://localhost:1338/")  # as in CloudShell
    assert not any("aws configure" in each for each in problems(file))
    monkeypatch.setitem(sys.modules, "googleapiclient", None)
    assert any("google-api-python-client" in each for each in problems(filled(tmp_path, "gcp.yaml")))


def test_tells_what_a_check_found_before_it_could_not_go_on():
    def check(settings):
        yield "first"
        raise settings["error"]

    errors = {
        "cannot read token: Permission denied": PermissionError(errno.EACCES, "Permission denied", "token"),
        "something is missing or of another kind than expected (KeyError: 'a')": KeyError("a"),
    }
    for words, error in errors.items():
        (finding,) = run_checks({"check": check}, {"error": error})
        assert finding.problems == ("first", words)


@pytest.mark.parametrize("name", ["gpu.yaml", "gcp.yaml"])
@pytest.mark.parametrize(("priority", "kind"), [(0, "spot"), (2, "on_demand")])
def test_ray_starts_workers_of_the_kind_that_comes_first(name, priority, kind):
    settings = yaml.safe_load((FILES / name).read_text())
    settings["available_node_types"]["on_demand"]["priority"] = priority
    trials = ResourceRequestByCount(request=ResourceRequest(resources_bundle={"CPU": 1, "GPU": 1}), count=2)
    asked = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=AutoscalingConfig(settings, skip_content_hash=True).get_node_type_configs(),
        max_num_nodes=settings["max_workers"],
        resource_requests=[trials],
    )
    launches = ResourceDemandScheduler(None).schedule(asked).to_launch
    assert {launch.instance_type: launch.count for launch in launches} == {kind: 2}


def test_commands_of_a_files_head_fit_the_file():
    text = (FILES / "gpu.yaml").read_text()
    region = yaml.safe_load(text)["provider"]["region"]
    assert len(re.findall(rf"#   aws ec2 \S+ --region {region} ", text)) == text.count("#   aws ec2 ") == 3


def test_slurms_head_names_the_data_set_that_its_job_trains_on(tmp_path, capsys):
    text = (FILES / "slurm.sh").read_text()
    (options,) = re.findall(r"python study/run.py (.*--dry-run.*?)  ", text)
    assert run.main([*options.split(), "--out", str(tmp_path / "run")]) == 0
    (name,) = re.findall(r"^data.name +(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert f'load("{name}")' in text


def test_setup_ends_at_once_where_it_may_not_install(tmp_path):
    for name, what in {"python3": "case $2 in *ensurepip*) exit 1;; esac", "sudo": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{what}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "MMJSD_VENV": str(tmp_path / "venv"),
    }
    done = subprocess.run(
        ["bash", FILES / "setup.sh"], env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: Python lacks ensurepip, and sudo apt-get is refused; have python3-venv installed\n"
    )


def test_tells_one_line_a_check_and_its_exit_code(tmp_path, capsys):
    file = filled(tmp_path, "gpu.yaml")
    assert doctor.main([str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(check_file(file))
    assert all(line.startswith("ok    ") for line in lines)
    assert doctor.main([str(filled(tmp_path, "gpu.yaml", ("VolumeSize: 150", "VolumeSize: 30")))]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 2  # spot and on_demand
    assert all(line.startswith("FAIL  disk: ") for line in failed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "cannot read"),
        (b"- 1", "no launcher file"),
        (b"a: 1", "no launcher file"),
    ],
)
def test_refuses_what_is_no_launcher_file(tmp_path, capsys, content, words):
    file = tmp_path / "file.yaml"
    if content is not None:
        file.write_bytes(content)
    assert doctor.main([str(file)]) == 2
    assert words in capsys.readouterr().err


def test_what_ray_has_to_say_of_a_file_is_a_finding_alone(tmp_path, capfd):
    assert doctor.main([str(filled(tmp_path, "onprem.yaml", ("  head_ip: 192.0.2.1", "")))]) == 1
    told = capfd.readouterr()
    assert told.out.startswith("ok    yaml\nFAIL  Ray's schema: Please supply a `head_ip`")
    assert told.err == ""


def test_refuses_options_of_a_running_cluster_with_a_file(capsys):
    assert doctor.main(["cluster/gpu.yaml", "--out", "/tmp"]) == 2
    assert "leave FILE out" in capsys.readouterr().err


def test_knows_the_form_of_all_regions():
    regions = [region for each in Loader().load_data("endpoints")["partitions"] for region in each["regions"]]
    assert len(regions) > 40
    assert all(re.fullmatch(providers._AWS_REGION, region) for region in regions)


def test_counts_the_gpus_of_instances_that_exist():
    known = ServiceModel(Loader().load_service_model("ec2", "service-2")).shape_for("InstanceType").enum
    assert {name.partition(".")[0] for name in known} >= providers._AWS_GPUS.keys()
    assert providers._AWS_SEVERAL.keys() <= set(known) | {"p3.8xlarge"}


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("provider", "config", "told"),
    [
        ("aws", {"InstanceType": "g6.xlarge"}, []),
        ("gcp", {"machineType": "g2-standard-4"}, ["a GPU that resources do not name; add GPU: 1"]),
    ],
)
def test_resources_that_ray_fills_in_may_be_left_out(provider, config, told):
    settings = {"available_node_types": {"spot": {"node_config": config}}}
    found = list(providers.PROVIDERS[provider]["GPUs"](settings))
    assert [each.partition(" has ")[2] for each in found] == told


def test_where_more_keys_may_be_known_tells_those_alone_that_look_misspelt():
    settings = {"spec": [{"hostNetwrok": 1, "brandNew": 2}]}
    known = {"spec": {"hostNetwork": None}}
    (problem,) = unknown_keys(settings, known, "x", is_complete=False)
    assert problem == "x.spec has no field 'hostNetwrok'; did you mean hostNetwork?"


@given(nested)
def test_finds_an_unknown_key_at_any_depth_and_nothing_in_known_ones(settings):
    def known(value):
        if isinstance(value, list):
            merged = {}
            for each in value:
                merged |= known(each) or {}
            return merged
        return {key: known(each) for key, each in value.items()} if isinstance(value, dict) else {}

    if not isinstance(settings, list):
        assert list(unknown_keys(settings, known(settings), "x")) == []
    if isinstance(settings, dict):
        assert len(list(unknown_keys({**settings, "unknown": 1}, known(settings), "x"))) == (
            "unknown" not in settings
        )


@given(name=st.sampled_from(("gpu.yaml", "kuberay.yaml", "slurm.sh")), data=st.data())
def test_neither_fails_nor_hangs_on_a_file_with_a_part_replaced(tmp_path_factory, name, data):
    text = (FILES / name).read_text()
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("# ")]
    place = data.draw(st.integers(0, len(lines) - 1))
    junk = data.draw(
        st.sampled_from(["", ": [\n", "- 1\n", "a: !!python/object/apply:os.getcwd []\n", "\t\n", "x\n"])
    )
    file = tmp_path_factory.mktemp("part") / name
    file.write_text("".join([*lines[:place], junk, *lines[place + 1 :]]))
    with contextlib.suppress(CheckError):
        check_file(file)


def submit(tmp_path, job, fails="nothing"):
    """With Slurm, Ray and the study played: the head's Ray listens, and the cluster is whole at once."""
    commands = {
        "srun": """while [[ $1 == --* ]]; do shift; done
echo "on $SRUN_CPUS_PER_TASK CPUs: $*" >&2; exec "$@\"""",
        "scontrol": "echo first; echo second; echo third",
        "hostname": "echo 127.0.0.1",
        "ray": f"""role=worker; port=0
for word in "$@"; do case $word in --head) role=head;; --port=*) port=${{word#*=}};; esac; done
if [ $role = {fails} ]; then echo "ray fails" >&2; exit 1; fi
if [ $role = worker ]; then exec sleep 100; fi
exec {sys.executable} -m http.server --bind 127.0.0.1 $port""",
        "python": f"""case "$1" in
study/run.py) echo "trains $*";;
-) test {fails} != worker;;
*) exec {sys.executable} "$@";;
esac""",
    }
    scripts = tmp_path / "venv" / "bin"
    scripts.mkdir(parents=True, exist_ok=True)
    for name, text in commands.items():
        (scripts / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (scripts / name).chmod(0o755)
    (scripts / "activate").write_text(f"export PATH={scripts}:$PATH\n")
    environment = os.environ | {
        "HOME": str(tmp_path),
        "MMJSD_VENV": str(tmp_path / "venv"),
        "OUT": str(tmp_path / "run"),
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "nodes",
        "SLURM_CPUS_PER_TASK": "2",
    }
    return subprocess.run(
        ["bash", FILES / "slurm.sh", "--space", "smoke"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("fails", ["nothing", "head", "worker"])
def test_a_job_of_slurms_ends_where_ray_does_not_start(tmp_path, fails):
    job = os.getpid()  # from which its ports follow
    done = submit(tmp_path, job, fails)
    if fails == "nothing":
        assert done.returncode == 0
        where = f"--address 127.0.0.1:{20000 + job % 4000 * 3} --out {tmp_path / 'run'}"
        assert f"trains study/run.py {where}" in done.stdout
        assert done.stderr.count("on 2 CPUs: ray start") == 3
    else:
        assert done.returncode == 1
        assert "error: Ray has ended before the study began" in done.stderr
    assert not list((tmp_path / ".ray").glob("slurm-*"))


def test_jobs_of_slurms_that_share_a_node_share_no_port(tmp_path):
    said = [submit(tmp_path, job).stderr for job in (os.getpid(), os.getpid() + 1)]
    first, second = (set(re.findall(r"port=(\d+)", each)) for each in said)
    assert len(first) == len(second) == 3  # of Ray, its dashboard and its client server
    assert not first & second
