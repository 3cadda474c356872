"""Keys that are text take what was typed; what is no value is told in a sentence."""

import os
from pathlib import Path

import pytest

from ipu_proxynorm.config import UNNEEDED_WITHOUT_A_RUN, dump, load, loads
from ipu_proxynorm.config.check import get
from ipu_proxynorm.config.text import PATHS
from ipu_proxynorm.errors import UserError

RUN = """
name: {name}
model: {{name: resnetv2_8, norm: gn4}}
data: {{name: digits}}
ipu: {{micro_batch_size: 4}}
training: {{epochs: 1}}
"""
TYPED = [
    *("1e5", "007", "yes", "on", "null", "true", "0x10", "1_000", "1:30", "2024-01-01", ".5", "~"),
    *("1.0", "é", "a=b", "-1", "NaN", ".inf", "0o7", "1e-3"),
]


@pytest.mark.parametrize("text", [*TYPED, "a #b", " #", "[a]", "{a: b}", "- a", "*x", "%x", ">x"])
def test_text_on_the_command_line_is_what_was_typed(text):
    config = load("quickstart", [f"name={text}", f"training.wandb={text}x"])
    assert (config.name, config.training.wandb) == (text, f"{text}x")
    assert loads(dump(config)) == config


@pytest.mark.parametrize("text", TYPED)
def test_text_in_a_file_is_what_was_written(text):
    config = loads(RUN.format(name=text) + f"runs: {text}1\n")
    assert (config.name, config.runs) == (text, os.path.expanduser(f"{text}1"))
    assert loads(dump(config)) == config


def test_lists_of_text_nothing_and_quotes():
    config = load("quickstart", ["training.trainable=[1e5, 007, yes, 'no']", "data.path=null"])
    assert config.training.trainable == ["1e5", "007", "yes", "no"]
    assert config.data.path is None
    assert load("quickstart", ["name='quoted'"]).name == "quoted"
    assert load("quickstart", ["name=${seed}", "seed=3"]).name == "3"
    config = loads(RUN.format(name="a") + "runs: r\noptimizer: {lr: 1e-3}\nseed: 007\n")
    assert (config.optimizer.lr, config.seed) == (1e-3, 7)


def test_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    config = load("quickstart", ["data.path=~/photos", "training.init_from=timm:~/a.pt"])
    assert config.data.path == "/home/x/photos"
    assert config.training.init_from == "timm:/home/x/a.pt"
    assert loads(RUN.format(name="a") + "runs: ~/runs\n").runs == "/home/x/runs"
    assert load("quickstart", ["data.path=/a:~/b"]).data.path == "/a:~/b"
    rule = Path("docs/recipes.md").read_text(encoding="utf-8")
    for name in PATHS:
        assert f"`{name}`" in rule
        assert get(load("quickstart", [f"{name}=~/x"]), name) == "/home/x/x"
        assert get(load("quickstart", [f"{name}=./x"]), name) == "./x"  # from the current folder


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "ipu.splits={a: b}",
            r"command line: ipu.splits={'a': 'b'}: expected list of str",
        ),
        ("ipu.splits={}", r"ipu.splits={}: expected list of str, no keys"),
        ("ipu=${model}", r"command line: ipu='\${model}': expected keys below it, e.g. ipu."),
        ("ipu=[1]", r"command line: ipu=\[1\]: expected keys below it"),
        ("optimizer.lr=abc", "command line: optimizer.lr='abc': expected float"),
        (
            "seed=${nope}",
            r"command line: seed: Interpolation key 'nope' not found; expected \${KEY} with",
        ),
        (
            "data.path=${oc.env:NOPE_}",
            "command line: data.path: the environment variable NOPE_ is not set; set",
        ),
        ("name=" + "x" * 256, r"name='x{60}...': expected a folder's name"),
        ("data.path=a/" + "x" * 256, "data.path='a/x+...': expected a path whose folders"),
        ("runs=" + "é" * 128, r"runs='é{60}...': expected a path"),
    ],
)
def test_what_is_no_value_is_one_sentence_that_blames_the_command_line(text, words):
    with pytest.raises(UserError, match=words) as error:
        load("quickstart", [text])
    assert "\n" not in str(error.value)


def test_all_missing_keys_are_named_at_once():
    with pytest.raises(UserError, match=r"data.name is not set: .*; nor are ipu.micro_batch_size"):
        loads("seed: 1\n")
    with pytest.raises(UserError, match=r"model.name \(.*, name \(.*, training.epochs \("):
        loads("seed: 1\n")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rate", "optimizer.lr"),
        ("optimizer.learning-rate", "optimizer.lr"),
        ("batch_size", "ipu.micro_batch_size"),
        ("num_workers", "data.workers"),
        ("data.root", "data.path"),
        ("arch", "model.name"),
        ("epochs", "training.epochs"),
        ("weight_decay", "optimizer.weight_decay"),
        ("pretrained", "training.init_from"),
        ("trainig.epochs", "training.epochs"),
    ],
)
def test_a_key_is_suggested_by_what_it_means_elsewhere(name, meant):
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        load("quickstart", [f"{name}=1"])


ENVIRONMENT = (
    RUN.format(name="a")
    + """
runs: ${oc.env:RUNS_}/of
optimizer: {lr: "${oc.env:LR_,0.5}"}
"""
)


def test_what_came_from_the_environment_is_said_and_can_be_written_again(monkeypatch):
    monkeypatch.setenv("RUNS_", "~/all")
    config = loads(ENVIRONMENT, ["seed=${oc.env:SEED_,3}"])
    assert config.runs == os.path.expanduser("~/all/of")
    assert config.environment == {
        "runs": "${oc.env:RUNS_}/of",
        "seed": "${oc.env:SEED_,3}",
        "optimizer.lr": "${oc.env:LR_,0.5}",
    }
    said, *lines = dump(config).splitlines()
    assert said == "# from the environment:"
    assert lines[0] == '# runs: "${oc.env:RUNS_}/of"'
    again = loads(dump(config))
    assert (again, again.environment) == (config, {})
    assert loads(dump(config, as_written=True)).environment == config.environment
    overridden = loads(ENVIRONMENT, ["runs=mine"])
    assert (overridden.runs, list(overridden.environment)) == ("mine", ["optimizer.lr"])


def test_a_variable_is_asked_for_only_by_the_keys_that_need_it(monkeypatch, tmp_path):
    monkeypatch.delenv("RUNS_", raising=False)
    (tmp_path / "a.yaml").write_text(ENVIRONMENT)
    with pytest.raises(UserError, match=r"a.yaml: runs: the environment variable RUNS_ is not set"):
        load(tmp_path / "a.yaml")
    assert load(tmp_path / "a.yaml", [], UNNEEDED_WITHOUT_A_RUN).runs == "runs"
    with pytest.raises(UserError, match="command line: seed: the environment variable RUNS_"):
        load(tmp_path / "a.yaml", ["seed=${oc.env:RUNS_}"], UNNEEDED_WITHOUT_A_RUN)


def test_an_interpolation_is_blamed_on_where_it_stands(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: ${nope}\n")
    (tmp_path / "a.yaml").write_text("defaults: [base.yaml]\n" + RUN.format(name="a"))
    with pytest.raises(UserError, match=f"{tmp_path}/base.yaml: seed: Interpolation key 'nope'"):
        load(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"base.yaml: seed: "):  # not name, which leads to it
        load(tmp_path / "a.yaml", ["name=${seed}"])
    with pytest.raises(UserError, match=r"command line: ipu.splits: Interpolation key 'x'"):
        load(tmp_path / "a.yaml", ["seed=1", "ipu.splits=['${x}']"])
