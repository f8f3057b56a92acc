"""Checks a RayJob of KubeRay offline, as far as its meaning for a study goes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.findings import Finding, free, placeholders, run_checks, unknown_keys

_CONTAINER = free(
    "name image imagePullPolicy command args env envFrom ports volumeMounts volumeDevices lifecycle "
    "livenessProbe readinessProbe startupProbe securityContext workingDir resizePolicy restartPolicy "
    "restartPolicyRules stdin stdinOnce terminationMessagePath terminationMessagePolicy tty"
) | {"resources": free("requests limits claims")}

_POD = free(
    "serviceAccountName automountServiceAccountToken nodeSelector affinity tolerations volumes "
    "topologySpreadConstraints imagePullSecrets securityContext priorityClassName schedulerName "
    "runtimeClassName restartPolicy terminationGracePeriodSeconds activeDeadlineSeconds dnsPolicy dnsConfig "
    "hostNetwork hostIPC hostPID hostUsers enableServiceLinks resourceClaims ephemeralContainers hostAliases "
    "hostname hostnameOverride nodeName os overhead preemptionPolicy priority readinessGates resources "
    "schedulingGates serviceAccount setHostnameAsFQDN shareProcessNamespace subdomain"
) | {"containers": _CONTAINER, "initContainers": _CONTAINER}

_GROUP = free("rayStartParams resources labels") | {"template": {"metadata": None, "spec": _POD}}

_CLUSTER = free(
    "rayVersion enableInTreeAutoscaling gcsFaultToleranceOptions headServiceAnnotations managedBy suspend "
    "upgradeStrategy"
) | {
    "authOptions": free("mode secretName enableK8sTokenAuth"),
    "autoscalerOptions": free(
        "version idleTimeoutSeconds upscalingMode image imagePullPolicy resources env envFrom volumeMounts "
        "securityContext"
    ),
    "headGroupSpec": _GROUP | free("serviceType headService enableIngress"),
    "workerGroupSpecs": _GROUP
    | free("groupName replicas minReplicas maxReplicas numOfHosts idleTimeoutSeconds suspend scaleStrategy"),
}

_JOB = free(
    "entrypoint runtimeEnvYAML jobId submissionMode entrypointResources entrypointNumCpus entrypointNumGpus "
    "metadata clusterSelector submitterPodTemplate submitterConfig shutdownAfterJobFinishes "
    "ttlSecondsAfterFinished activeDeadlineSeconds backoffLimit deletionStrategy managedBy suspend"
) | {"rayClusterSpec": _CLUSTER}

_FIELDS = free("apiVersion kind metadata") | {"spec": _JOB}
"""Fields of KubeRay's API reference (1.6) and of Kubernetes' pods, of which there may be more; None: whatever
stands below is free."""

_GPU = "nvidia.com/gpu"

NEEDED_GI = 30
"""Ephemeral storage of a worker: data, what Ray spills and logs, checkpoints of its trials."""


def check_rayjob(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Every check of a RayJob."""
    kind = f"{settings.get('apiVersion')} {settings.get('kind')}"
    if kind != "ray.io/v1 RayJob":
        yield Finding("kind", (f"it is {kind}; expected ray.io/v1 RayJob",))
        return
    fields = tuple(unknown_keys(settings, _FIELDS, "RayJob", is_complete=False))
    yield Finding("fields", fields)
    if fields:
        return
    checks = {
        "placeholders": placeholders,
        "job": _job,
        "worker limits": _worker_limits,
        "image": _image,
        "resources": _resources,
        "GPUs": _gpus,
        "disk": _disk,
        "ports": _ports,
        "token": _token,
    }
    yield from run_checks(checks, settings)


def _cluster(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = settings["spec"]["rayClusterSpec"]
    return found


def _groups(settings: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Head and worker groups by name."""
    cluster = _cluster(settings)
    yield "head", cluster["headGroupSpec"]
    for group in cluster.get("workerGroupSpecs", []):
        yield group.get("groupName", "workers"), group


def _containers(settings: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, group in _groups(settings):
        for container in group["template"]["spec"].get("containers", []):
            yield name, container


def _job(settings: Mapping[str, Any]) -> Iterator[str]:
    entrypoint = settings["spec"].get("entrypoint", "")
    if not re.search(r"--address[= ][\"']?auto\b", entrypoint):
        yield "entrypoint lacks --address auto, so the study would train on the head alone"
    if not re.search(r"--out[= ][\"']?(s3|gs)://", entrypoint):
        yield "entrypoint has no --out in a bucket, so results would go with the pods"
    if not settings["spec"].get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes is not true, so the pods would stay, and cost, after the study"


def _worker_limits(settings: Mapping[str, Any]) -> Iterator[str]:
    groups = _cluster(settings).get("workerGroupSpecs", [])
    if not groups:
        yield "workerGroupSpecs is empty: nothing would train"
    for group in groups:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        if not least <= group.get("replicas", least) <= most:
            yield f"{group.get('groupName')}: expected minReplicas <= replicas <= maxReplicas, got " + (
                f"{least}, {group.get('replicas', least)}, {most}"
            )


def _image(settings: Mapping[str, Any]) -> Iterator[str]:
    images = {container.get("image") for _, container in _containers(settings)}
    if len(images) > 1:
        yield f"head and workers have different images: {', '.join(sorted(map(str, images)))}"
    for image in images:
        if not image:
            yield "a container has no image; build one with cluster/Dockerfile"
        elif image.endswith(":latest"):
            yield f"image {image} may change while a study runs; give it a tag of its own"


def _resources(settings: Mapping[str, Any]) -> Iterator[str]:
    """Kubernetes knows no others by a plain name; those of devices have a slash, as nvidia.com/gpu."""
    known = free("cpu memory ephemeral-storage")
    for name, container in _containers(settings):
        for part in ("requests", "limits"):
            own = container.get("resources", {}).get(part, {})
            plain = {each: None for each in own if not re.search(r"/|^hugepages-", each)}
            yield from unknown_keys(plain, known, f"{name}: {part}")


def _gpus(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, container in _containers(settings):
        resources = container.get("resources", {})
        limit = str(resources.get("limits", {}).get(_GPU, 0))
        request = str(resources.get("requests", {}).get(_GPU, limit))
        if limit != request:
            yield f"{name}: {_GPU} is {request} in requests and {limit} in limits; they must be equal"
        elif limit == "0" and name != "head":
            yield f"{name}: no {_GPU}, so no trial would get a GPU; add it to limits"
    for name, group in _groups(settings):
        claimed = str(group.get("rayStartParams", {}).get("num-gpus", 0))
        if claimed != "0" and name == "head":
            yield f"head: num-gpus {claimed} claims GPUs that the head's pod has not"


def _disk(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, container in _containers(settings):
        if name == "head":
            continue
        size = str(container.get("resources", {}).get("limits", {}).get("ephemeral-storage", ""))
        number = re.fullmatch(r"([\d.]+(?:[eE]\+?\d+)?)([KMGTP]i?|k)?", size)
        if not number or float(number[1]) * _UNITS[number[2]] < NEEDED_GI * 2**30:
            yield f"{name}: ephemeral-storage is {size or 'not limited'}; expected {NEEDED_GI}Gi or more"


_UNITS: Mapping[str | None, float] = {
    None: 1,
    "k": 1e3,
    **{letter: 1000.0**power for power, letter in enumerate("KMGTP", 1)},
    **{f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTP", 1)},
}
"""Bytes of Kubernetes' units."""


def _ports(settings: Mapping[str, Any]) -> Iterator[str]:
    head = _cluster(settings)["headGroupSpec"]
    service = head.get("serviceType", "ClusterIP")
    if service != "ClusterIP":
        yield f"serviceType {service} opens the dashboard to the network; use ClusterIP"
    if head.get("enableIngress"):
        yield "enableIngress opens the dashboard to the network; leave it out"
    for name, group in _groups(settings):
        if group["template"]["spec"].get("hostNetwork"):
            yield f"{name}: hostNetwork opens Ray's ports on the node; leave it out"


def _token(settings: Mapping[str, Any]) -> Iterator[str]:
    if _cluster(settings).get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token, so whoever reaches a pod of the cluster runs code in it"
