from __future__ import annotations

from typing import Any

import pytest

from support.deployments import raw_spec, small_spec
from trierarch.builder.errors import ConfigError
from trierarch.kserve.parse_spec import parse_spec
from trierarch.kserve.plain_secrets import secret_in
from trierarch.kserve.spec import Profile


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "Tiny"}, r"name is 'Tiny': use lower-case letters"),
        ({"name": "1tiny"}, "a letter first"),
        ({"name": "a" * 41}, "at most 40 characters"),
        ({"namespace": "no_de"}, "namespace is 'no_de'"),
        ({"profile": "serverless"}, "profile is 'serverless': use one of knative, keda, external, llm"),
        ({"storage": {"uri": "/mnt/engine"}}, "storage.uri is '/mnt/engine': write a URI"),
        ({"storage": {}}, "storage.uri is missing"),
        ({"replicas": 3}, "replicas is unknown"),
        ({"scale": {"max_replicas": 0}}, "scale.max_replicas is 0"),
        ({"scale": {"min_replicas": -1}}, "scale.min_replicas is -1"),
        ({"canary": {"uri": "pvc://a", "percent": 101}}, "canary.percent is 101"),
    ],
)
def test_a_spec_that_cannot_be_names_field_value_and_remedy(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_spec(raw_spec(**changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"env": {"HF_TOKEN": "hf_abcdefghijklmnopqrstuvwx"}}, "env.HF_TOKEN holds a Hugging Face token.*secret_env"),
        ({"env": {"OPENAI_API_KEY": "whatever"}}, "env.OPENAI_API_KEY looks like a secret.*secret_env"),
        ({"storage": {"uri": "s3://me:hunter2@bucket/engine"}}, "storage.uri holds a password.*service_account"),
        ({"storage": {"uri": "https://host/e?X-Amz-Signature=ab12"}}, "storage.uri holds a signature.*service_account"),
        ({"storage": {"uri": "pvc://a", "adapters": "https://u:p@host/a"}}, "storage.adapters holds a password"),
        ({"canary": {"uri": "https://u:p@host/a", "percent": 1}}, "canary.uri holds a password"),
    ],
)
def test_secrets_in_plain_text_are_refused_with_the_remedy(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        parse_spec(raw_spec(**changes))
    assert "hunter2" not in str(refused.value), "an error must not show the secret that it is about"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOG_LEVEL", "info"),
        ("MAX_TOKEN", "4096"),
        ("API_KEY_FILE", "/var/run/key"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("S3_ENDPOINT", "https://minio.storage:9000"),
        ("API_KEY", "$(FROM_ELSEWHERE)"),
        ("", "oci://registry.example:5000/engines/tiny@sha256:0123"),
    ],
)
def test_what_is_no_secret_passes(name: str, value: str) -> None:
    assert secret_in(name, value) is None


def test_replicas_go_to_zero_where_the_profile_reaches_it() -> None:
    least = {profile: small_spec(profile=profile).min_replicas for profile in Profile}
    assert least == {Profile.KNATIVE: 0, Profile.EXTERNAL: 0, Profile.KEDA: 1, Profile.LLM: 1}
    assert small_spec(profile="knative", scale={"min_replicas": 2}).min_replicas == 2
