"""What Ray's schema leaves to the provider: node configs, credentials, images, GPUs and disks of each."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from cluster.findings import NEARLY, Check, free, unknown_keys

Settings = Mapping[str, Any]

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"

DRIVERS = {"12": 525, "13": 580}
"""The oldest NVIDIA driver that runs programs of a major version of CUDA."""

NEEDED_GB = {
    "the system": 20,
    "the environment": 12,
    "the data, as files and prepared": 2,
    "Ray's logs and what it spills": 16,
}
"""What a node's disk has to hold; checkpoints of its own trials are far less than a GB."""

DRIVER_GB = 50
"""What an image with driver and CUDA takes beyond a plain system."""

_GCP = free(
    "name machineType networkInterfaces networkPerformanceConfig labels description minCpuPlatform "
    "canIpForward confidentialInstanceConfig shieldedInstanceConfig deletionProtection displayDevice "
    "hostname params reservationAffinity resourcePolicies advancedMachineFeatures "
    "sourceInstanceTemplate sourceMachineImage"
) | {
    "disks": free(
        "boot autoDelete type mode deviceName diskSizeGb interface source architecture diskEncryptionKey "
        "forceAttach guestOsFeatures licenses"
    )
    | {
        "initializeParams": free(
            "diskSizeGb diskType diskName sourceImage sourceImageEncryptionKey sourceSnapshot "
            "sourceSnapshotEncryptionKey labels resourceManagerTags resourcePolicies storagePool "
            "provisionedIops provisionedThroughput"
        )
    },
    "guestAccelerators": free("acceleratorType acceleratorCount"),
    "scheduling": free(
        "automaticRestart hostErrorTimeoutSeconds instanceTerminationAction localSsdRecoveryTimeout "
        "maxRunDuration nodeAffinities onHostMaintenance preemptible provisioningModel"
    ),
    "serviceAccounts": free("email scopes"),
    "metadata": {"items": free("key value")},
    "tags": free("items"),
}
"""Fields of Compute Engine's instances that a node config may set, of which there may be more; None: whatever
stands below is free."""

_AWS_GPUS = {
    "g4dn": 1,
    "g5": 1,
    "g6": 1,
    "g6e": 1,
    "gr6": 1,
    "p3": 1,
    "p3dn": 8,
    "p4d": 8,
    "p4de": 8,
    "p5": 8,
    "p5e": 8,
    "p5en": 8,
    "p6-b200": 8,
}
"""GPUs of the smallest size of each family of EC2 instances; sizes of several are listed below. Of other
families, which may be newer, the number is unknown."""

_AWS_SEVERAL = {
    **{f"g4dn.{size}": count for size, count in {"12xlarge": 4, "metal": 8}.items()},
    **{f"{family}.{size}": count for family in ("g5", "g6", "g6e") for size, count in
       {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}.items()},
    "p3.8xlarge": 4,
    "p3.16xlarge": 8,
    "p5.4xlarge": 1,
}  # fmt: skip

_GCP_SEVERAL = {
    **{"g2-standard-24": 2, "g2-standard-48": 4, "g2-standard-96": 8},
    **{"g4-standard-48": 1, "g4-standard-96": 2, "g4-standard-192": 4, "g4-standard-384": 8},
}

_AWS_REGION = r"[a-z]{2,4}(-[a-z]+)?-(north|south|central|(north|south)?(east|west))-\d+"

_GCP_KINDS = free(
    "standard highmem highcpu highgpu megagpu ultragpu maxgpu edgegpu megamem ultramem hypermem custom micro "
    "small medium"
)
"""What follows a family in the name of a machine type; there may be others."""

UNKNOWN = -1
"""GPUs of a machine that has some, as its name says, but not how many."""


def _nodes(settings: Settings) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Each node type: its name, itself, and its node config."""
    for name, node in settings["available_node_types"].items():
        yield name, node, node["node_config"]


# AWS ...


def _aws_node_configs(settings: Settings) -> Iterator[str]:
    """Held against what EC2 documents of RunInstances, names and values alike."""
    if importlib.util.find_spec("botocore") is None:
        yield "cannot be checked without boto3; pip install boto3"
        return
    for name, _, config in _nodes(settings):
        own = {key: value for key, value in config.items() if key != "SubnetIds"}  # a word of Ray's
        yield from _aws_shape(own, _run_instances(), f"{name}.node_config")


@cache
def _run_instances() -> Any:
    """EC2's own description of what starts an instance, as botocore brings it."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    ec2 = ServiceModel(Loader().load_service_model("ec2", "service-2"))
    return ec2.operation_model("RunInstances").input_shape


def _aws_shape(value: Any, shape: Any, where: str) -> Iterator[str]:
    """What a value has that its shape in EC2's description does not allow."""
    match shape.type_name:
        case "structure" if isinstance(value, dict):
            yield from unknown_keys(value, dict.fromkeys(shape.members), where)
            for key in value.keys() & shape.members.keys():
                yield from _aws_shape(value[key], shape.members[key], f"{where}.{key}")
        case "list" if isinstance(value, list):
            for index, each in enumerate(value):
                yield from _aws_shape(each, shape.member, f"{where}[{index}]")
        case "string" if isinstance(value, str):
            if shape.enum and value not in shape.enum:
                yield from _aws_enum(value, shape.enum, where)
        case "integer" | "long" if type(value) is int:
            pass
        case "boolean" if isinstance(value, bool):
            pass
        case "blob" | "timestamp" | "double" | "float" | "map":
            pass
        case expected:
            yield f"{where} is {value!r}; expected {expected}"


def _aws_enum(value: str, known: list[str], where: str) -> Iterator[str]:
    guess = get_close_matches(value, known, n=1)
    yield f"{where} cannot be {value!r}" + (f"; did you mean {guess[0]!r}?" if guess else "")


def _aws_credentials(settings: Settings) -> Iterator[str]:
    del settings
    if importlib.util.find_spec("boto3") is None:
        yield "boto3 is missing, without which `ray up` cannot talk to AWS; pip install boto3"
    variables = (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",  # CloudShell
    )
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
        "AWS_CONFIG_FILE": "~/.aws/config",
    }
    found = any(os.environ.get(name) for name in variables) or any(
        Path(os.environ.get(name, usual)).expanduser().is_file() for name, usual in files.items()
    )
    if not found:
        yield "no AWS credentials in the environment or in ~/.aws; run: aws configure"


def _aws_image(settings: Settings) -> Iterator[str]:
    for name, _, config in _nodes(settings):
        image = str(config.get("ImageId", ""))
        if image.lower() in ("", "latest_dlami"):
            yield (
                f"{name} has no ImageId: Ray would take Ubuntu 18.04, whose Python and driver are too old; "
                "copy the one of gpu.yaml"
            )
        elif not re.fullmatch(r"ami-([0-9a-f]{8}|[0-9a-f]{17})|resolve:ssm:/\S+", image):
            yield f"{name}: ImageId {image!r} is no image; expected ami- and 17 digits, or resolve:ssm:/..."
        elif _aws_gpus(config) and image.startswith("resolve:") and not re.search("gpu|nvidia", image):
            yield f"{name} has a GPU, but its image brings no driver; copy the one of gpu.yaml"


def _aws_roles(settings: Settings) -> Iterator[str]:
    """The role that Ray makes for a head may start instances, but no more."""
    head = settings["head_node_type"]
    if "IamInstanceProfile" in settings["available_node_types"][head]["node_config"]:
        return
    for name, _, config in _nodes(settings):
        if name != head and ("IamInstanceProfile" in config or "resolve:" in str(config.get("ImageId"))):
            yield (
                f"{head} has no IamInstanceProfile, and the role that Ray would make for it may neither pass "
                f"on the role of {name} nor look up its image; give the one that cluster/aws_roles.py makes"
            )


def _aws_gpus(config: Mapping[str, Any]) -> int:
    """GPUs of an instance type, or UNKNOWN."""
    instance = str(config.get("InstanceType", ""))
    otherwise = UNKNOWN if re.match(r"(g|gr|p)\d", instance) else 0
    return _AWS_SEVERAL.get(instance, _AWS_GPUS.get(instance.partition(".")[0], otherwise))


def _aws_disk(settings: Settings) -> Iterator[str]:
    for name, _, config in _nodes(settings):
        disks = config.get("BlockDeviceMappings", [])
        root = next((disk for disk in disks if disk.get("DeviceName") == "/dev/sda1"), None)
        if root is None:
            yield f"{name} sets no size for its root disk, /dev/sda1; {_sizes(bool(_aws_gpus(config)))}"
        else:
            yield from _too_small(name, root.get("Ebs", {}).get("VolumeSize"), bool(_aws_gpus(config)))


def _aws_ports(settings: Settings) -> Iterator[str]:
    group = settings["provider"].get("security_group", {})
    own = all(
        "SecurityGroupIds" in config or "NetworkInterfaces" in config for _, _, config in _nodes(settings)
    )
    if not (group.get("GroupName") or own):
        yield "no security group: Ray would make one with port 22 open to the world; see the head of gpu.yaml"
    for rule in group.get("IpPermissions", []):
        ranges = [each.get("CidrIp") or each.get("CidrIpv6") for key in ("IpRanges", "Ipv6Ranges")
                  for each in rule.get(key, [])]  # fmt: skip
        if {"0.0.0.0/0", "::/0"}.intersection(ranges):
            ports = f"{rule.get('FromPort', 'all')}-{rule.get('ToPort', 'all')}"
            yield f"ports {ports} are open to the world; give your own address, or leave the rule out"


def _aws_zone(settings: Settings) -> Iterator[str]:
    provider = settings["provider"]
    region = provider.get("region")
    if not region:
        yield "provider.region is missing"
    elif not re.fullmatch(_AWS_REGION, str(region)):
        yield f"provider.region {region!r} is no region of AWS; expected one such as us-west-2"
    for zone in str(provider.get("availability_zone", "")).split(","):
        if zone.strip() and not zone.strip().startswith(str(region)):
            yield f"availability_zone {zone.strip()} does not lie in region {region}"


# Google Cloud ...


def _gcp_node_configs(settings: Settings) -> Iterator[str]:
    for name, _, config in _nodes(settings):
        yield from unknown_keys(config, _GCP, f"{name}.node_config", is_complete=False)
        if not config.get("machineType"):
            yield f"{name}.node_config has no machineType"
        machine = str(config.get("machineType"))
        kind = f"{machine}-".split("-")[1]
        guess = get_close_matches(kind, _GCP_KINDS, n=1, cutoff=NEARLY)
        if guess and kind not in _GCP_KINDS:
            meant = machine.replace(kind, guess[0])
            yield f"{name}: machineType cannot be {machine!r}; did you mean {meant!r}?"


def _gcp_credentials(settings: Settings) -> Iterator[str]:
    del settings
    if importlib.util.find_spec("googleapiclient") is None:
        yield "`ray up` cannot talk to Google Cloud yet; pip install google-api-python-client"
    usual = "~/.config/gcloud/application_default_credentials.json"
    file = Path(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", usual)).expanduser()
    if not file.is_file():
        yield f"no credentials in {file}; run: gcloud auth application-default login"


def _gcp_image(settings: Settings) -> Iterator[str]:
    for name, _, config in _nodes(settings):
        images = [disk.get("initializeParams", {}).get("sourceImage") for disk in config.get("disks", [])]
        image = next(filter(None, images), None)
        if image is None:
            yield f"{name} has no sourceImage; copy the one of gcp.yaml"
        elif _gcp_gpus(config):
            driver = re.search(r"nvidia-(\d+)", image)
            if driver is None:
                yield f"{name} has a GPU, but its image brings no driver; copy the one of gcp.yaml"
            elif int(driver[1]) < oldest_driver():
                yield f"{name}: driver {driver[1]} is too old for torch; expected {oldest_driver()} or later"


def oldest_driver() -> int:
    """The oldest NVIDIA driver that runs the pinned torch."""
    pinned = re.search(
        r"^nvidia-cuda-runtime==(\d+)\.", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE
    )
    return DRIVERS[pinned[1]] if pinned else 0


def _gcp_gpus(config: Mapping[str, Any]) -> int:
    """GPUs of a machine type and of what is attached to it, or UNKNOWN."""
    machine = str(config.get("machineType", ""))
    own = _GCP_SEVERAL.get(machine, 1 if machine.startswith("g2-") else 0)
    if accelerator := re.match(r"a\d+x?-\w+-(\d+)g", machine):
        own = int(accelerator[1])
    elif not own and re.match(r"[ag]\d+x?-", machine):
        return UNKNOWN
    return own + sum(int(each.get("acceleratorCount", 0)) for each in config.get("guestAccelerators", []))


def _gcp_disk(settings: Settings) -> Iterator[str]:
    for name, _, config in _nodes(settings):
        boot: Mapping[str, Any] = next((disk for disk in config.get("disks", []) if disk.get("boot")), {})
        yield from _too_small(
            name, boot.get("initializeParams", {}).get("diskSizeGb"), bool(_gcp_gpus(config))
        )


def _gcp_maintenance(settings: Settings) -> Iterator[str]:
    for name, _, config in _nodes(settings):
        values = [each.get("onHostMaintenance") for each in config.get("scheduling", [])]
        if _gcp_gpus(config) and "TERMINATE" not in values:
            yield f"{name} has a GPU, so scheduling needs onHostMaintenance: TERMINATE"


def _gcp_zone(settings: Settings) -> Iterator[str]:
    provider = settings["provider"]
    for needed in ("project_id", "region", "availability_zone"):
        if not provider.get(needed):
            yield f"provider.{needed} is missing"
    zone, region = (str(provider.get(each) or "") for each in ("availability_zone", "region"))
    if zone and not zone.startswith(region):
        yield f"availability_zone {zone} does not lie in region {region}"


# Machines that one owns ...


def _local_machines(settings: Settings) -> Iterator[str]:
    provider = settings["provider"]
    machines = [provider.get("head_ip"), *provider.get("worker_ips", [])]
    for machine in dict.fromkeys(machines):
        if machines.count(machine) > 1:
            yield f"{machine} stands twice among head_ip and worker_ips"
    workers = len(machines) - 1
    least, most = settings.get("min_workers", workers), settings.get("max_workers", workers)
    if least > most:
        yield f"min_workers {least} is more than max_workers {most}"
    if most != workers:
        yield f"max_workers is {most}, but there are {workers} worker_ips"


def _local_key(settings: Settings) -> Iterator[str]:
    auth = settings.get("auth", {})
    if not auth.get("ssh_user"):
        yield "auth.ssh_user is missing"
    key = auth.get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        yield f"auth.ssh_private_key {key} does not exist; make one with: ssh-keygen -t ed25519 -f {key}"


# What all clouds share ...


def _gpus(gpus_of: Callable[[Mapping[str, Any]], int], filled_in_by_ray: bool) -> Check:
    """Whether resources name the GPUs that the machines have; Ray knows those of AWS, and no others."""

    def check(settings: Settings) -> Iterator[str]:
        for name, node, config in _nodes(settings):
            has = gpus_of(config)
            says = node.get("resources", {}).get("GPU", has if filled_in_by_ray else 0)
            machine = config.get("InstanceType") or config.get("machineType")
            if has and not says:
                number = "their number" if has == UNKNOWN else has
                yield f"{name}: {machine} has a GPU that resources do not name; add GPU: {number}"
            elif has not in (says, UNKNOWN):
                yield f"{name}: resources name {says} GPU, {machine} has {has}"

    return check


def _too_small(name: str, size: Any, has_gpu: bool) -> Iterator[str]:
    if size is None or int(size) < _needed_gb(has_gpu):
        yield f"{name}: a disk of {size or 'no given'} GB is too small; {_sizes(has_gpu)}"


def _needed_gb(has_gpu: bool) -> int:
    return sum(NEEDED_GB.values()) + (DRIVER_GB if has_gpu else 0)


def _sizes(has_gpu: bool) -> str:
    parts = chain(NEEDED_GB.items(), [("driver and CUDA", DRIVER_GB)] if has_gpu else [])
    return f"expected {_needed_gb(has_gpu)} GB: " + ", ".join(f"{size} for {what}" for what, size in parts)


PROVIDERS: Mapping[str, Mapping[str, Check]] = {
    "aws": {
        "node configs": _aws_node_configs,
        "credentials": _aws_credentials,
        "roles": _aws_roles,
        "region": _aws_zone,
        "image and driver": _aws_image,
        "GPUs": _gpus(_aws_gpus, filled_in_by_ray=True),
        "disk": _aws_disk,
        "security group": _aws_ports,
    },
    "gcp": {
        "node configs": _gcp_node_configs,
        "credentials": _gcp_credentials,
        "region": _gcp_zone,
        "image and driver": _gcp_image,
        "GPUs": _gpus(_gcp_gpus, filled_in_by_ray=False),
        "maintenance": _gcp_maintenance,
        "disk": _gcp_disk,
    },
    "local": {"machines": _local_machines, "credentials": _local_key},
}
"""By provider.type, what is checked."""
