"""The schema for editors: what it lets through and what it marks, by a validator of its own."""

import jsonschema
import pytest
import yaml
from omegaconf import OmegaConf

from ipu_proxynorm.config import SHIPPED, documentation, dump, load, recipe_names
from ipu_proxynorm.config.json_schema import json_schema


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_every_recipe_and_what_it_builds_on_is_valid(validator):
    files = sorted(SHIPPED.rglob("*.yaml"))
    assert len(files) > len(recipe_names()) >= 47
    for path in files:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        assert [error.message for error in validator.iter_errors(values)] == [], path


@pytest.mark.parametrize("recipe", ["configs/quickstart.yaml", recipe_names()[-1]])
def test_a_saved_configuration_is_valid(validator, recipe):
    validator.validate(yaml.safe_load(dump(load(recipe))))


@pytest.mark.parametrize(
    "text",
    [
        "ipu: {precision: 16.32}",
        "ipu: {precision: '16.32', available_memory_proportion: 0.3}",
        "ipu: {available_memory_proportion: [0.2, 0.3]}",
        "ipu: {popart: {enableOutlining: false}, engine: {target.hostSyncTimeout: 600}}",
        "name: 007",
        "name: run-${model.norm}",
        "seed: ${model.width}",
        "schedule: {step_epochs: [30, '${training.epochs}']}",
        "optimizer: {eps: null, lr: 1}",
        "defaults: [base/a.yaml]",
    ],
)
def test_what_can_be_loaded_is_not_marked(validator, text):
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("modle: {}", "$"),
        ("model: {nrm: ln}", "$.model"),
        ("model: ln", "$.model"),
        ("ipu: {micro_batch_size: 0}", "$.ipu.micro_batch_size"),
        ("ipu: {micro_batch_size: 2.5}", "$.ipu.micro_batch_size"),
        ("ipu: {precision: 8.8}", "$.ipu.precision"),
        ("ipu: {io_tiles: 33}", "$.ipu.io_tiles"),
        ("ipu: {splits: layer1}", "$.ipu.splits"),
        ("ipu: {check_memory: ja}", "$.ipu.check_memory"),
        ("model: {norm_eps: 0}", "$.model.norm_eps"),
        ("training: {label_smoothing: 1.5}", "$.training.label_smoothing"),
        ("training: {epochs: null}", "$.training.epochs"),
        ("training: {epochs: ten}", "$.training.epochs"),
    ],
)
def test_what_is_wrong_is_marked_where_it_stands(validator, text, place):
    (error,) = validator.iter_errors(yaml.safe_load(text))
    assert error.json_path == place


def test_every_key_is_explained_and_has_its_default():
    schema = json_schema()
    for key in documentation():
        entry = schema
        for part in key.name.split("."):
            entry = entry["properties"][part]
        assert key.text in entry["description"]
        assert entry.get("default", "???") == key.default
