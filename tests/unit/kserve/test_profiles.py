from __future__ import annotations

from typing import Any

import pytest

from support.deployments import small_spec, weighty_engine
from trierarch.builder.errors import ConfigError
from trierarch.kserve.profiles import FACTS, check_profile, knative_features, notes
from trierarch.kserve.spec import Profile


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"profile": "keda", "scale": {"min_replicas": 0}},
            "nothing holds the requests.*knative and external reach zero",
        ),
        (
            {"profile": "llm", "scale": {"min_replicas": 0}},
            "nothing starts a first replica.*knative and external reach zero",
        ),
        ({"scale": {"min_replicas": 5, "max_replicas": 2}}, "max_replicas is 2, fewer than min_replicas, 5"),
        ({"disaggregated": True}, "disaggregated is True.*none here does"),
        ({"image": "registry.example:5000/trierarch"}, "a tag that moves: name a tag or a digest"),
        ({"image": "trierarch:latest"}, "a tag that moves"),
        (
            {"profile": "external", "canary": {"uri": "pvc://a", "percent": 5}},
            "canary is set in profile external.*keda or kn",
        ),
        (
            {"profile": "llm", "canary": {"uri": "pvc://a", "percent": 5}},
            "canary is set in profile llm.*router.route.group",
        ),
        ({"storage": {"uri": "pvc://a", "node_cache": ["g"]}}, "is on the nodes without it"),
        ({"storage": {"uri": "s3://a/b", "node_cache": ["g"], "adapters": "pvc://a"}}, "caches a single storageUri"),
        ({"storage": {"uri": "oci://a:1", "adapters": "pvc://a"}}, "use oci\\+native:// for images"),
        ({"storage": {"uri": "oci+fetch://a:1"}}, "from 0.21 on"),
        (
            {"profile": "llm", "storage": {"uri": "pvc://a", "adapters": "s3://a/b"}},
            "put them on a volume, pvc://CLAIM",
        ),
        (
            {"profile": "llm", "storage": {"uri": "s3://a/b", "node_cache": ["g"]}},
            "matches its caches with InferenceServ",
        ),
        (
            {"storage": {"uri": "s3://a/b", "node_cache": ["g"]}, "canary": {"uri": "s3://a/c", "percent": 5}},
            "keeps one engine",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_profile(small_spec(**changes), weighty_engine())


def test_adapters_want_an_engine_that_takes_them() -> None:
    with pytest.raises(ConfigError, match=r"takes none; build it with --max-adapters 1 or more"):
        check_profile(small_spec(storage={"uri": "pvc://a", "adapters": "pvc://b"}), weighty_engine(lora=None))


def test_every_profile_says_what_it_needs() -> None:
    assert set(FACTS) == set(Profile)
    for profile in Profile:
        assert any("KServe" in note for note in notes(small_spec(profile=profile)))


def test_features_of_knative_follow_from_the_pod() -> None:
    plain = small_spec(profile="knative", gpu=None, storage={"uri": "oci+native://a:1"})
    assert knative_features(plain) == ("kubernetes.podspec-volumes-image",)

    chosen = small_spec(
        profile="knative", gpu={"product": "L4", "node_selector": {"pool": "gpu"}}, storage={"uri": "pvc://a"}
    )
    assert knative_features(chosen) == (
        "kubernetes.podspec-nodeselector",
        "kubernetes.podspec-tolerations",
        "kubernetes.podspec-persistent-volume-claim",
    )
