"""The roles of a cluster on AWS, made on an AWS that is played."""

import json

import boto3
import pytest
import yaml
from moto import mock_aws

from cluster import aws_roles
from cluster.launcher import PROJECT


@pytest.fixture
def iam(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        yield boto3.client("iam")


def allowed(iam, role):
    """What a role's own policy allows, by action."""
    policy = iam.get_role_policy(RoleName=role, PolicyName="mmjsd-study")["PolicyDocument"]
    found = policy if isinstance(policy, dict) else json.loads(policy)
    return {action: each["Resource"] for each in found["Statement"] for action in each["Action"]}


def test_heads_start_workers_and_both_use_the_bucket(iam, capsys):
    for _ in range(2):  # again, it changes nothing
        assert aws_roles.main(["studies"]) == 0
    assert capsys.readouterr().out.count(aws_roles.HEAD) == 2
    worker, head = (allowed(iam, role) for role in (aws_roles.WORKER, aws_roles.HEAD))
    assert worker["s3:PutObject"] == head["s3:PutObject"] == "arn:aws:s3:::studies/*"
    assert "iam:PassRole" not in worker
    role = iam.get_role(RoleName=aws_roles.WORKER)["Role"]
    assert head["iam:PassRole"] == role["Arn"]
    assert "ec2.amazonaws.com" in json.dumps(role["AssumeRolePolicyDocument"])
    (attached,) = iam.list_attached_role_policies(RoleName=aws_roles.HEAD)["AttachedPolicies"]
    assert attached["PolicyName"] == "AmazonEC2FullAccess"
    settings = yaml.safe_load((PROJECT / "cluster" / "gpu.yaml").read_text())
    for node in settings["available_node_types"].values():
        image = node["node_config"]["ImageId"]
        assert image.startswith("resolve:ssm:/aws/service/")  # as ssm:GetParameters is allowed on
    for name in (aws_roles.WORKER, aws_roles.HEAD):
        (role,) = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
        assert role["RoleName"] == name


@pytest.mark.parametrize("bucket", ["s3://studies", "studies/runs", "Studies", "st", ".studies", " "])
def test_refuses_what_is_no_buckets_name(bucket, capsys):
    assert aws_roles.main([bucket]) == 2
    assert f"error: {bucket!r} is no bucket's name; expected" in capsys.readouterr().err


def test_without_rights_or_credentials_it_says_so(monkeypatch, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    assert aws_roles.main(["studies"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
