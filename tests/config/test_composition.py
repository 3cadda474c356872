"""Files that build on others: what wins, and what is said when something is wrong."""

import pytest

from ipu_proxynorm.config import dump, load, loads, recipes
from ipu_proxynorm.errors import UserError

RUN = """
name: trial
model: {name: resnetv2_8, norm: ln}
data: {name: digits}
ipu: {micro_batch_size: 4, gradient_accumulation: 4, splits: [layer2.0]}
training: {epochs: 3}
"""


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_bases_are_taken_in_order_and_the_file_itself_last(files):
    folder = files(
        base__run=RUN,
        base__pn="model: {norm: gn4+pn}\noptimizer: {lr: 0.5}",
        base__both="defaults: [run.yaml, pn.yaml]\ntraining: {epochs: 5}",
        recipes__mine="defaults: [../base/both.yaml]\noptimizer: {lr: 0.25}\nipu: {splits: []}",
    )
    config = load(folder / "recipes/mine.yaml", ["training.epochs=7"])
    assert (config.model.name, config.model.norm) == ("resnetv2_8", "gn4+pn")
    assert (config.optimizer.lr, config.training.epochs) == (0.25, 7)
    assert config.ipu.splits == []  # replaced, not joined
    assert recipes(folder) == [folder / "recipes/mine.yaml"]


def test_what_is_dumped_is_complete(files):
    folder = files(run=RUN, mine="defaults: [run.yaml]\nname: mine")
    config = load(folder / "mine.yaml")
    text = dump(config)
    assert "defaults" not in text
    assert loads(text) == config


def test_a_base_may_be_named_twice_on_different_ways(files):
    folder = files(
        run=RUN,
        a="defaults: [run.yaml]\nmodel: {norm: bn}",
        b="defaults: [run.yaml]\noptimizer: {lr: 3}",
        mine="defaults: [a.yaml, b.yaml]",
    )
    config = load(folder / "mine.yaml")
    assert (config.model.norm, config.optimizer.lr) == ("ln", 3)  # b brings run.yaml's norm again


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (
            {"mine": "defaults: [bas.yaml]"},
            r"mine.yaml: defaults: .*bas.yaml.* cannot be read.*run",
        ),
        ({"mine": "defaults: [no/bas.yaml]"}, r"no/bas.yaml.*there is no YAML file at all"),
        ({"mine": "defaults: [mine.yaml]"}, r"'mine.yaml' leads back to itself"),
        (
            {"mine": "defaults: [other.yaml]", "other": "defaults: [mine.yaml]"},
            r"other.yaml: .*mine.yaml -> .*other.yaml -> .*mine.yaml",
        ),
        ({"mine": "defaults: run.yaml"}, r"mine.yaml: defaults='run.yaml': expected a list"),
        ({"mine": "defaults: [3]"}, r"mine.yaml: defaults=\[3\]: expected a list"),
        (
            {"mine": "defaults: [run.yaml, other.yaml]", "other": "model: {nrom: ln}"},
            r"other.yaml: key 'model.nrom' .* did you mean 'model.norm'",
        ),
        ({"mine": "defaults: [other.yaml]", "other": "a: ["}, "other.yaml: not valid YAML"),
        ({"mine": "defaults: [other.yaml]", "other": "name: a"}, "mine.yaml: data.name is not set"),
    ],
)
def test_what_is_wrong_is_said_with_the_file_it_is_in(files, texts, words):
    folder = files(run=RUN, **texts)
    with pytest.raises(UserError, match=words) as caught:
        load(folder / "mine.yaml")
    assert "\n" not in str(caught.value)


def test_text_alone_builds_on_no_file():
    with pytest.raises(UserError, match=r"defaults=\['run.yaml'\]: only a file can"):
        loads("defaults: [run.yaml]")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0.2", [0.2]), ("1", [1.0]), ("[0.1, 0.3]", [0.1, 0.3]), ("null", None)],
)
def test_memory_proportion_is_a_number_or_one_a_stage(given, expected):
    config = loads(RUN, [f"ipu.available_memory_proportion={given}"])
    assert config.ipu.available_memory_proportion == expected
    assert loads(dump(config)) == config


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("[0.1, 0.2, 0.3]", "expected a number, or one for each of the 2 stages"),
        ("[]", "expected a number, or one for each of the 2 stages"),
        ("1.5", r"\[1.5\]: expected numbers from 0 to 1"),
        ("much", "expected list of float or null"),
    ],
)
def test_wrong_memory_proportions(given, words):
    with pytest.raises(UserError, match=words):
        loads(RUN, [f"ipu.available_memory_proportion={given}"])
